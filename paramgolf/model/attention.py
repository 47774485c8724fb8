"""Causal attention: rotary positions, normalised queries and keys, XSA, head gates.

Shapes: B rows, T tokens, H query heads, K key and value heads, D channels a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_sdpa(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
    """Return causal attention [B, T, H, D] by PyTorch; the heads of a group share k and v."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(
        1, 2
    )


def attend_fa3(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
    """Return causal attention [B, T, H, D] by FlashAttention-3 (Hopper, bfloat16)."""
    result = _flash_attention()(q_BTHD, k_BTKD, v_BTKD, causal=True)
    return result[0] if isinstance(result, tuple) else result


@functools.cache
def _flash_attention() -> Callable[..., Any]:
    from flash_attn_interface import flash_attn_func  # present on Hopper machines only

    return flash_attn_func


def rotary_table(
    length: int, dims: int, base: float, *, trained_length: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 [length, dims / 2], of the angles of positions 0..length-1.

    Beyond `trained_length` tokens the base grows by (length / trained)^(dims / (dims - 2)) (NTK).
    """
    if trained_length is not None and length > trained_length and dims > 2:
        base = base * (length / trained_length) ** (dims / (dims - 2))
    exponents = torch.arange(0, dims, 2, device=device, dtype=torch.float32) / max(dims, 1)
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, base**-exponents)
    return angles.cos(), angles.sin()


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of each head in half-split pairs (i, i + half); the rest pass."""
    half = cos.shape[-1]
    if half == 0:
        return x_BTHD
    cos, sin = cos[None, :, None].to(x_BTHD.dtype), sin[None, :, None].to(x_BTHD.dtype)
    first, second, rest = x_BTHD.split([half, half, x_BTHD.shape[-1] - 2 * half], dim=-1)
    turned = (first * cos + second * sin, second * cos - first * sin, rest)
    return torch.cat(turned, dim=-1)


def exclude_own_value(y_BTHD: Tensor, v_BTKD: Tensor) -> Tensor:
    """Take from each head's output its part along the value at its own position (XSA)."""
    B, T, H, D = y_BTHD.shape
    grouped = y_BTHD.view(B, T, v_BTKD.shape[2], -1, D)
    direction = F.normalize(v_BTKD, dim=-1).unsqueeze(3)
    along = (grouped * direction).sum(-1, keepdim=True)
    return (grouped - along * direction).view(B, T, H, D)
