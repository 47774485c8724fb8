"""Functions that change no value, and whose gradients take fewer passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class FanOut(torch.autograd.Function):
    """A tensor, once for each of its readers, so that their gradients are added in one pass.

    Autograd would add them one by one, each time through memory: x0 of pg#1493 has 17 readers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, add: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """Return x `count` times; `add` sums gradients."""
        ctx.add = add
        ctx.set_materialize_grads(False)
        # not views: compiled code would ask what they are views of
        return tuple(x.detach() for _ in range(count))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None, None]:
        """Return the sum of the gradients that there are."""
        return ctx.add([g for g in gradients if g is not None]), None, None


def distinct(x: Tensor) -> Tensor:
    """Return x as another tensor object over the same memory.

    A compiled block that is given one object as two of its arguments would have one more graph.
    """
    (other,) = FanOut.apply(x, 1, lambda gradients: gradients[0])  # type: ignore[no-untyped-call]
    assert isinstance(other, Tensor)
    return other


class FirstChannels(torch.autograd.Function):
    """x and its first channels, whose gradient is added to x's in its place.

    Autograd would widen it to all channels and add that: two more passes over memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        """Return x [..., d] and its first `count` channels."""
        return x.view_as(x), x[..., :count].contiguous()

    @staticmethod
    def backward(ctx: Any, d_x: Tensor, d_first: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Return the sum of both gradients; compiled code writes the first channels alone."""
        count = d_first.shape[-1]
        at = [None] * (d_x.dim() - 1) + [torch.arange(count, device=d_x.device)]
        return torch.ops.aten.index_put.default(d_x, at, d_x[..., :count] + d_first), None
