"""What serves a GPU: which attention, which kernels. Without torch, so that `doctor` can ask too.

A compute capability is (major, minor), None for a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

AMPERE, HOPPER = 8, 9  # major compute capabilities: A100 and later, H100 and H200
FLASH_ATTENTION_MODULE = "flash_attn_interface"  # of the package flash_attn_3
FLASH_ATTENTION_4_MODULE = "flash_attn.cute"  # of the package flash-attn-4


def flash_attention_obstacle(capability: Sequence[int] | None, *, installed: bool) -> str | None:
    """Return why FlashAttention-3 cannot serve a device, or None if it can.

    It is written for Hopper's asynchronous matrix products; on other GPUs its kernels do not start.
    """
    return _not_hopper(capability) or (None if installed else "package flash_attn_3 absent")


def flash_attention_4_obstacle(capability: Sequence[int] | None, *, installed: bool) -> str | None:
    """Return why FlashAttention-4 cannot serve a device, or None: Hopper and later can."""
    return _before(HOPPER, capability) or (None if installed else "package flash-attn-4 absent")


def cudnn_attention_obstacle(capability: Sequence[int] | None) -> str | None:
    """Return why cuDNN's attention cannot serve a device, or None."""
    return _before(AMPERE, capability)


def fused_kernels_obstacle(capability: Sequence[int] | None, *, triton: bool) -> str | None:
    """Return why the fused kernels of paramgolf.model.kernels cannot serve a device, or None.

    The MLP's hidden layer is made by instructions that Hopper's tensor cores have alone, from tiles
    that are chosen for its shared memory.
    """
    return _not_hopper(capability) or (None if triton else "package triton absent")


def _before(major: int, capability: Sequence[int] | None) -> str | None:
    if capability is None:
        return "device cpu"
    if capability[0] < major:
        return "a GPU of compute capability {}.{}, below {}.0".format(*capability, major)
    return None


def _not_hopper(capability: Sequence[int] | None) -> str | None:
    if capability is None:
        return "device cpu"
    if capability[0] != HOPPER:
        return "a GPU of compute capability {}.{}, where Hopper has 9.0".format(*capability)
    return None
