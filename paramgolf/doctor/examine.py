"""The whole examination: what takes time runs side by side."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from paramgolf.doctor.finding import Finding
from paramgolf.doctor.plans import recipe_findings
from paramgolf.doctor.project import (
    dvc_config,
    dvc_finding,
    git_findings,
    hub_finding,
    params_finding,
    remote_finding,
)
from paramgolf.doctor.reach import reachable
from paramgolf.doctor.software import (
    driver_gpus,
    gpus_of,
    package_finding,
    probe_torch,
    python_finding,
    torch_findings,
)
from paramgolf.doctor.storage import (
    cache_folder,
    disk_finding,
    free_bytes,
    link_finding,
    memory_finding,
    total_memory,
)
from paramgolf.recipes import RECIPES

HUB = "https://huggingface.co"  # huggingface_hub's default; HF_ENDPOINT names another


def examine(root: Path) -> Iterator[Finding]:
    """Yield every finding on this machine and on the project in `root`, in a fixed order."""
    with ThreadPoolExecutor() as pool:
        torch_facts = pool.submit(probe_torch)
        driver = pool.submit(driver_gpus)
        hub = pool.submit(hub_finding, os.environ.get("HF_ENDPOINT", HUB), reachable)
        project = pool.submit(lambda: list(_project_findings(root)))
        yield python_finding(sys.version_info[:3], shutil.which("python"))
        yield package_finding(metadata.requires("paramgolf") or [])
        yield from torch_findings(torch_facts.result(), driver.result())
        yield memory_finding(total_memory())
        yield from project.result()
        yield hub.result()
        yield from recipe_findings(gpus_of(torch_facts.result()), total_memory(), root / RECIPES)


def _project_findings(root: Path) -> Iterator[Finding]:
    config = dvc_config(root)
    cache = cache_folder(config or {}, root)
    yield disk_finding(free_bytes(cache), cache)
    yield link_finding(config or {}, root)
    yield params_finding(root)
    yield from git_findings(root)
    yield dvc_finding(config)
    if config is not None:
        yield remote_finding(config, root, reachable)
