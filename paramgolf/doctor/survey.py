"""Every check of this machine and project; what takes time runs side by side."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paramgolf.doctor.check import Check
from paramgolf.doctor.plans import check_recipes
from paramgolf.doctor.project import (
    check_dvc,
    check_git,
    check_hub,
    check_params,
    check_remote,
    dvc_config,
)
from paramgolf.doctor.reach import reachable
from paramgolf.doctor.software import (
    check_packages,
    check_python,
    check_torch,
    gpus_of,
    probe_torch,
    required_packages,
)
from paramgolf.doctor.storage import (
    cache_folder,
    check_disk,
    check_links,
    check_memory,
    free_bytes,
    total_memory,
)
from paramgolf.nvidia_smi import gpus
from paramgolf.recipes import RECIPES

HUB = "https://huggingface.co"  # huggingface_hub's default; HF_ENDPOINT names another


def survey(root: Path) -> Iterator[Check]:
    """Yield every check of this machine and of the project in `root`, in a fixed order."""
    with ThreadPoolExecutor() as pool:
        torch_facts = pool.submit(probe_torch)
        driver = pool.submit(gpus)
        hub = pool.submit(check_hub, os.environ.get("HF_ENDPOINT", HUB), reachable)
        project = pool.submit(lambda: list(_check_project(root)))
        yield check_python(sys.version_info[:3], shutil.which("python"))
        yield check_packages(required_packages())
        yield from check_torch(torch_facts.result(), [gpu.name for gpu in driver.result()])
        yield check_memory(total_memory())
        yield from project.result()
        yield hub.result()
        yield from check_recipes(gpus_of(torch_facts.result()), total_memory(), root / RECIPES)


def _check_project(root: Path) -> Iterator[Check]:
    config = dvc_config(root)
    cache = cache_folder(config or {}, root)
    yield check_disk(free_bytes(cache), cache)
    yield check_links(config or {}, root)
    yield check_params(root)
    yield from check_git(root)
    yield check_dvc(config)
    if config is not None:
        yield check_remote(config, root, reachable)
