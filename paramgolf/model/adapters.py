"""Low-rank adapters of the block's projections and the head (LoRA), as arguments of a pass.

An adapter adds scale (x a^T) b^T to a projection of x. Every row of a batch may have its own, so
that documents which learn side by side never meet; every virtual layer has its own, so that a layer
that recurs adapts at each visit (pg#1530).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paramgolf.model.block import Adapters, Pair
from paramgolf.model.config import ModelConfig, Order

HEAD = "head"
Shapes = dict[str, tuple[int, int, int]]


def adapter_shapes(
    config: ModelConfig, vocab_size: int, order: Order, targets: Sequence[str]
) -> Shapes:
    """Return (virtual layers, out, in) of each of `targets`: q, k, v, o, mlp, head.

    The o and mlp adapters map the sublayer's normalized input to its output, past the sublayer.
    """
    width, kv_width = config.width, config.kv_heads * config.head_dim
    out = {"q": width, "k": kv_width, "v": kv_width, "o": width, "mlp": width, HEAD: vocab_size}
    return {name: (1 if name == HEAD else len(order), out[name], width) for name in targets}


def layer_adapters(
    adapters: Mapping[str, Pair] | None, length: int, dtype: torch.dtype
) -> list[Adapters | None]:
    """Return the adapters of each virtual layer of an order of `length`, in the compute dtype.

    Those that are given, but the head's, are of the last layers of the order.
    """
    if adapters is None:
        return [None] * length
    # unbind once per pass, as for the weights, instead of a slice per layer; then cast, for
    # compiled code asks where parts of a tensor begin, and had two graphs of one kind
    split = {
        name: [[y.to(dtype) for y in x.unbind(1)] for x in pair]
        for name, pair in adapters.items()
        if name != HEAD
    }
    count = max((len(a) for a, _ in split.values()), default=0)
    last = [
        Adapters(**{name: Pair(a[index], b[index]) for name, (a, b) in split.items()})
        for index in range(count)
    ]
    return [*[None] * (length - count), *last]


class AdapterSet:
    """The adapters of `rows` rows: a [rows, layers, r, in] and b [rows, layers, out, r] by name.

    A fresh set adds nothing: b is 0. a is uniform within 1 / sqrt(in), the same for all rows, so
    that a document's scores do not depend on the row that it happens to take. float32 leaves.
    Rows come first, and fewer rows are the first of them: they stay where they are in memory.
    """

    def __init__(
        self, shapes: Shapes, *, rank: int, alpha: float, rows: int, seed: int, device: torch.device
    ) -> None:
        self.scale = alpha / rank
        generator = torch.Generator().manual_seed(seed)
        # leaves are views of the whole sets, whose addresses CUDA graphs know
        self._fresh: dict[str, Tensor] = {}  # of one row
        self._whole_a: dict[str, Tensor] = {}
        self._whole_b: dict[str, Tensor] = {}
        for name, (layers, out, width) in shapes.items():
            # uniform in [-1, 1] / sqrt(in), as the rows of a linear layer begin
            drawn = 2 * torch.rand((1, layers, rank, width), generator=generator) - 1
            self._fresh[name] = (drawn / width**0.5).to(device)
            self._whole_a[name] = self._fresh[name].repeat(rows, 1, 1, 1)
            self._whole_b[name] = torch.zeros((rows, layers, out, rank), device=device)
        self.keep(rows)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.a.values())))

    def pairs(self) -> dict[str, Pair]:
        """Return what Pass.adapters takes; gradients flow through it."""
        return {name: Pair(self.a[name], self.scale * self.b[name]) for name in self.a}

    def parameters(self) -> list[Tensor]:
        """Return the leaves that an optimizer steps, all of a before all of b."""
        return [*self.a.values(), *self.b.values()]

    def keep(self, rows: int) -> None:
        """Let the first `rows` rows be all; the leaves are new tensors over the same memory."""
        self.a, self.b = (
            {name: tensor[:rows].detach().requires_grad_() for name, tensor in whole.items()}
            for whole in (self._whole_a, self._whole_b)
        )

    def renew(self, a: Mapping[str, Tensor] | None = None) -> None:
        """Make all rows fresh again, or with the first matrices `a` of another set (pg#1767)."""
        for name, whole in self._whole_a.items():
            # written in place, for the same reason
            whole.copy_((a or self._fresh)[name])
            self._whole_b[name].zero_()
        self.keep(len(whole))
