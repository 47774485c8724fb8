"""What torch sees of this machine: `python -m paramgolf.doctor.torch_probe` prints it as JSON.

A process of its own, so that a torch that cannot be imported is a finding and not a crash.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from typing import Any


def main() -> None:
    """Print version, CUDA, GPUs, NCCL, Triton and FlashAttention-3."""
    import torch

    gpus = [gpu_facts(torch, i) for i in range(torch.cuda.device_count())]
    facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpus else None,
        "triton": version_of("triton"),
        "flash_attention": import_fault("flash_attn_interface") if gpus else "not tried",
    }
    print(json.dumps(facts))


def gpu_facts(torch: Any, index: int) -> dict[str, Any]:
    """Return name, memory in bytes and compute capability of a GPU."""
    properties = torch.cuda.get_device_properties(index)
    capability = [properties.major, properties.minor]
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": capability,
    }


def version_of(module: str) -> str | None:
    """Return a module's version, or None where it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    return str(getattr(importlib.import_module(module), "__version__", "unknown"))


def import_fault(module: str) -> str | None:
    """Return why a module cannot be imported, or None."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing
        return str(error)
    return None


if __name__ == "__main__":
    main()
