"""Checks of Python, packages, torch, the GPUs and their libraries."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from paramgolf.doctor.check import Check, fault, ok, warning
from paramgolf.estimate.devices import GIB
from paramgolf.files import parse_object
from paramgolf.gpu_support import flash_attention_obstacle

OLDEST_PYTHON = (3, 11)
OLDEST_GPU = 8  # compute capability of the first GPUs with bfloat16
GPU_LIBRARIES = ("flash_attn_3", "Triton", "NCCL")
FLASH_ATTENTION = "flash-attn-3==3.0.0"  # as in requirements-gpu.lock
INSTALL = "pip install -e . (or `make setup`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as torch sees it."""

    name: str
    memory_bytes: int
    capability: Sequence[int]


def check_python(version: tuple[int, ...], on_path: str | None) -> Check:
    """Check the interpreter; `on_path` is the `python` that dvc.yaml's commands will run."""
    text = ".".join(map(str, version))
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if version < OLDEST_PYTHON:
        return fault("Python", text, f"install Python {oldest} or newer, then `make setup`")
    here = Path(sys.executable).parent
    # not Path(on_path).resolve(): an environment's python links to the one that it was made with
    if on_path is None or Path(on_path).parent.resolve() != here.resolve():
        text += f" in {here}, but the stages would run {on_path or 'none'}"
        return warning("Python", text, f"activate the environment: source {here}/activate")
    return ok("Python", f"{text}, {platform.system()} {platform.machine()}")


def required_packages() -> list[str] | None:
    """Return what the installed paramgolf asks for, None where it runs without being installed."""
    try:
        return metadata.requires("paramgolf") or []
    except metadata.PackageNotFoundError:
        return None


def check_packages(requirements: Sequence[str] | None) -> Check:
    """Check whether the packages that pyproject.toml asks for are installed in these versions."""
    if requirements is None:
        return fault("packages", "paramgolf is not installed for this Python", INSTALL)
    wrong = []
    wanted = [Requirement(text) for text in requirements]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in wanted:
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement} is asked for, {found} is installed")
    if wrong:
        return fault("packages", "; ".join(wrong), INSTALL)
    return ok("packages", f"{len(wanted)} as pyproject.toml asks for")


def probe_torch() -> dict[str, Any]:
    """Return what torch_probe prints, or {"error": ...} where torch does not work."""
    command = [sys.executable, "-m", "paramgolf.doctor.torch_probe"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not result.stdout:
        return {"error": (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return parse_object(result.stdout.strip().rpartition("\n")[2], "paramgolf.doctor.torch_probe")


def gpus_of(facts: dict[str, Any]) -> list[Gpu]:
    """Return the GPUs of a torch_probe."""
    return [Gpu(**gpu) for gpu in facts.get("gpus", [])]


def check_torch(facts: dict[str, Any], driver: Sequence[str]) -> Iterator[Check]:
    """Check torch, CUDA, the GPUs and what makes them fast; `driver` names those of the driver."""
    if "error" in facts:
        yield fault("torch", f"cannot be imported: {facts['error']}", INSTALL)
        return
    yield ok("torch", facts["version"])
    gpus = gpus_of(facts)
    yield _check_cuda(facts["cuda"], gpus, driver)
    if not gpus:
        yield from (ok(name, "not used without a GPU") for name in GPU_LIBRARIES)
        return
    names = " + ".join(f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB" for gpu in gpus)
    if min(gpu.capability[0] for gpu in gpus) < OLDEST_GPU:
        remedy = "choose newer ones with CUDA_VISIBLE_DEVICES, or set runtime.device to cpu"
        yield fault("GPU", f"{names}: no bfloat16 before compute capability {OLDEST_GPU}", remedy)
    else:
        yield ok("GPU", names)
    yield _check_attention(facts["flash_attention"], facts["cuda"], gpus)
    if facts["triton"] is None:
        remedy = "pip install triton, or set runtime.compile to off"
        yield warning("Triton", "not installed: blocks cannot be compiled", remedy)
    else:
        yield ok("Triton", facts["triton"])
    yield ok("NCCL", facts["nccl"] if len(gpus) > 1 else f"{facts['nccl']}, not used by one GPU")


def _check_cuda(cuda: str | None, gpus: Sequence[Gpu], driver: Sequence[str]) -> Check:
    if gpus:
        return ok("CUDA", str(cuda))
    if not driver:
        return ok("CUDA", "no GPU: everything runs on the CPU")
    seen = f"the driver sees {len(driver)} x {driver[0]}, torch none"
    if cuda is None:
        remedy = "move .venv away, then `make gpu` (docs/pod.md)"
        return fault("CUDA", f"{seen}: it was built without CUDA", remedy)
    remedy = (
        "check CUDA_VISIBLE_DEVICES; update the driver, or `make gpu CUDA=cu126` in a new .venv"
    )
    return fault("CUDA", f"{seen} (built for CUDA {cuda})", remedy)


def _check_attention(problem: str | None, cuda: str, gpus: Sequence[Gpu]) -> Check:
    name = "flash_attn_3"
    if any(flash_attention_obstacle(gpu.capability, installed=True) for gpu in gpus):
        return ok(name, "not for these GPUs: flash-attn-4 or PyTorch's attention is used")
    if problem is None:
        return ok(name, "installed")
    text = f"cannot be imported: {problem}; PyTorch's attention is used instead, a little slower"
    return warning(name, f"{text} (for TORCH_INDEX see docs/pod.md)", flash_attention_command(cuda))


def flash_attention_command(cuda: str) -> str:
    """Return the command that installs FlashAttention-3 for the CUDA that torch was built for.

    A wheel for another CUDA installs, but does not find its libraries. TORCH_INDEX holds the
    address of PyTorch's package index; where the environment lacks it, the shell fills it in.
    """
    index = os.environ.get("TORCH_INDEX", "$TORCH_INDEX")
    folder = f"{index}/cu{cuda.replace('.', '')}"
    return f"pip install --force-reinstall --no-deps --index-url {folder} {FLASH_ATTENTION}"
