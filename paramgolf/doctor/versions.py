"""Which builds go together: FlashAttention-3 for a torch, and pairs known to be broken."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from paramgolf.doctor.check import Check, fault

FLASH_ATTENTION = "flash-attn-3==3.0.0"  # as in requirements-gpu.lock


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenPair:
    """Releases of torch that do not work with GPUs of a compute capability."""

    torch: SpecifierSet
    capability: tuple[int, int]
    text: str
    remedy: str


BROKEN = (
    BrokenPair(
        torch=SpecifierSet("==2.10.*"),
        capability=(8, 0),
        text="compiled code gives NaN on an A100 (KellerJordan/modded-nanogpt#268)",
        remedy="install the torch of requirements.lock, or set runtime.compile to off",
    ),
)


def flash_attention_command(cuda: str) -> str:
    """Return the command that installs FlashAttention-3 for the CUDA that torch was built for.

    A wheel for another CUDA installs, but does not find its libraries. TORCH_INDEX holds the
    address of PyTorch's package index; where the environment lacks it, the shell fills it in.
    """
    index = os.environ.get("TORCH_INDEX", "$TORCH_INDEX")
    folder = f"{index}/cu{cuda.replace('.', '')}"
    return f"pip install --force-reinstall --no-deps --index-url {folder} {FLASH_ATTENTION}"


def check_pairs(torch: str, capabilities: Sequence[Sequence[int]]) -> Iterator[Check]:
    """Yield a fault for each broken pair of this torch and a GPU that is there."""
    for pair in BROKEN:
        if pair.torch.contains(torch, prereleases=True) and any(
            tuple(capability) == pair.capability for capability in capabilities
        ):
            yield fault("torch and GPU", f"torch {torch}: {pair.text}", pair.remedy)
