"""Low-rank adapters of the block's projections and the head (LoRA), as arguments of a pass.

An adapter adds scale (x a^T) b^T to a projection of x. Every row of a batch may own one, so that
documents which learn side by side never meet; every place of the layer order owns one, so that a
layer that recurs adapts at each visit (#1530).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paramgolf.model.block import Pair
from paramgolf.model.config import ModelConfig, Order

HEAD = "head"
Shapes = dict[str, tuple[int, int, int]]


def adapter_shapes(
    config: ModelConfig, vocab_size: int, order: Order, targets: Sequence[str]
) -> Shapes:
    """Return (places, out, in) of each of `targets`: q, k, v, o, mlp, head.

    The o and mlp adapters map the sublayer's normalised input to its output, past the sublayer.
    """
    width, kv_width = config.width, config.kv_heads * config.head_dim
    out = {"q": width, "k": kv_width, "v": kv_width, "o": width, "mlp": width, HEAD: vocab_size}
    return {name: (1 if name == HEAD else len(order), out[name], width) for name in targets}


class AdapterSet:
    """The adapters of `rows` rows: a [places, rows, r, in] and b [places, rows, out, r] by name.

    A fresh set adds nothing: b is 0. a is uniform within 1 / sqrt(in), the same for all rows, so
    that a document's scores do not depend on the row that it happens to take. float32 leaves.
    """

    def __init__(
        self, shapes: Shapes, *, rank: int, alpha: float, rows: int, seed: int, device: torch.device
    ) -> None:
        self.scale = alpha / rank
        generator = torch.Generator().manual_seed(seed)
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        for name, (places, out, width) in shapes.items():
            drawn = 2 * torch.rand((places, 1, rank, width), generator=generator) - 1
            shared = (drawn / width**0.5).to(device).expand(-1, rows, -1, -1)
            self.a[name] = shared.contiguous().requires_grad_()
            shape = (places, rows, out, rank)
            self.b[name] = torch.zeros(shape, device=device, requires_grad=True)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return next(iter(self.a.values())).shape[1]

    def pairs(self) -> dict[str, Pair]:
        """Return what Pass.adapters takes; gradients flow through it."""
        return {name: Pair(self.a[name], self.scale * self.b[name]) for name in self.a}

    def parameters(self) -> list[Tensor]:
        """Return the leaves that an optimiser steps, all of a before all of b."""
        return [*self.a.values(), *self.b.values()]

    def keep(self, rows: int) -> None:
        """Forget all but the first `rows` rows; the leaves are new tensors."""
        for tensors in (self.a, self.b):
            for name, tensor in tensors.items():
                tensors[name] = tensor.detach()[:, :rows].clone().requires_grad_()

    def warm(self, a: Mapping[str, Tensor]) -> None:
        """Take over `a` of another set (#1767), row by row; b stays as it is."""
        with torch.no_grad():
            for name, tensor in a.items():
                self.a[name].copy_(tensor)
