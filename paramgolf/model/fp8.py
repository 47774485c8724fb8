"""The MLP with its products in FP8, for training passes; see operations.mlp.

Weights, inputs and activations are rounded to e4m3 (3 bits of mantissa), gradients to e5m2 (2 bits,
but 30 powers of two); the sums are float32's. A short tensor x8 stands for x = unit * x8. Rounding
is relative, so a unit need only keep entries inside the range of their type; what is beyond becomes
the largest number. All units are known before the entries are: nothing is measured, kept between
steps, saved or agreed on by processes, and a resumed run rounds as one that was not cut off.
    weights   the largest entry is the largest of e4m3's. A pass shortens each matrix as it meets
              it: that costs less than a hundredth of what FP8 saves, and a copy that is
              kept from step to step would have to follow all that moves weights
    n         is normalized: no entry exceeds sqrt(d), even where all others are 0
    a         z_j = n . up_j, so a_j <= z_j^2 <= |n|^2 |up_j|^2, at most d s^2 max_j |up_j|^2 with
              n's scale s. A usual entry is d times less: e4m3 has 6 powers of two below that
    dy, dz    of a mean over the tokens of a batch: of the order of one token's gradient divided by
              their number, so the unit is a constant divided by it, `GRADIENT_UNIT`

With l the slope, and products of short tensors:
    z = n8 up8^T,   a = z^2 where z > 0, l^2 z^2 elsewhere,   y = a8 down8^T
    da = dy8 down8,   dz = da a'(z),   a'(z) = 2 s where z > 0, -2 l s elsewhere, s = sqrt(a8)
    dn = dz8 up8,   d up = dz8^T n8,   d down = dy8^T a8
up and down get the gradients of their short copies, as if nothing had been rounded.

Here is the plain form, which rounds and multiplies in float32. It runs anywhere, slower than the
MLP that is not short; kernels/mlp_fp8.py is for Hopper, whose tensor cores multiply FP8.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paramgolf.model import operations
from paramgolf.model.backend import Backend
from paramgolf.model.operations import Mix

E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4: 448.0, E5: 57344.0}
TINY = 1e-12  # the least unit: matrices begin as zeros
# Of a gradient, times the tokens of a batch. On the sample that makes the root mean square of dy
# 0.3 to 12 and of dz 0.04 to 0.7, in the middle of what e5m2 reaches, 2^-16 to 2^15.8.
GRADIENT_UNIT = 2.0**-8
ALIGNED = 16  # sizes of FP8 products on a GPU are multiples of this; others are made plainly


class Short(NamedTuple):
    """A matrix in e4m3, also transposed, and the float32 scalar that its entries count in."""

    whole: Tensor
    turned: Tensor
    unit: Tensor


def rounded(x: Tensor, dtype: torch.dtype, unit: Tensor | float) -> Tensor:
    """Return x / unit in an FP8 type, what is beyond its range as the largest number."""
    # torch's own conversion has made such entries infinite, NaN, or the largest, by version
    return (x.float() / unit).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def shortened(weight: Tensor) -> Short:
    """Return a matrix in e4m3."""
    weight = weight.detach()
    unit = weight.abs().amax().float().clamp_min(TINY) / LARGEST[E4]
    short = rounded(weight, E4, unit)
    return Short(short, rounded(weight.T, E4, unit).contiguous(), unit)


def input_unit(width: int) -> float:
    """Return the unit of a normalized input."""
    return float(width**0.5) / LARGEST[E4]


def activation_unit(up: Tensor, scale: Tensor) -> Tensor:
    """Return the unit of a for `up` [m, d] and inputs of root mean square `scale`."""
    largest = up.detach().float().square().sum(1).amax()
    return (up.shape[1] * scale.float().square() * largest).clamp_min(TINY) / LARGEST[E4]


class _Products(torch.autograd.Function):
    """y = down8 a8 of a = LeakyReLU(up8 n8)^2, plainly."""

    @staticmethod
    def forward(
        ctx: Any, n: Tensor, up: Tensor, down: Tensor, a_unit: Tensor, slope: float, unit: float
    ) -> Tensor:
        """Return y [..., d] of n [..., d]; `unit` is that of the gradients."""
        ctx.slope, ctx.unit, n_unit = slope, unit, input_unit(n.shape[-1])
        up8, _, up_unit = shortened(up)
        down8, _, down_unit = shortened(down)
        n8 = rounded(n.flatten(0, -2), E4, n_unit)
        z = n8.float() @ up8.float().T * (n_unit * up_unit)
        a8 = rounded(operations.activate(z, slope), E4, a_unit)
        ctx.save_for_backward(n8, up8, down8, a8, z > 0, up_unit, down_unit, a_unit)
        y = a8.float() @ down8.float().T * (a_unit * down_unit)
        return y.to(n.dtype).view(n.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of n, up and down."""
        n8, up8, down8, a8, positive, up_unit, down_unit, a_unit = ctx.saved_tensors
        dy8, unit = rounded(dy.flatten(0, -2), E5, ctx.unit).float(), ctx.unit
        da = dy8 @ down8.float() * (unit * down_unit)
        slopes = torch.where(positive, 2.0, -2.0 * ctx.slope) * (a8.float() * a_unit).sqrt()
        dz8 = rounded(da * slopes, E5, unit).float()
        d_n = dz8 @ up8.float() * (unit * up_unit)
        d_up = dz8.T @ n8.float() * (unit * input_unit(n8.shape[-1]))
        d_down = dy8.T @ a8.float() * (unit * a_unit)
        d_n, d_up, d_down = (x.to(dy.dtype) for x in (d_n, d_up, d_down))
        return d_n.view(dy.shape), d_up, d_down, None, None, None


def mlp(
    mix: Mix, up: Tensor, down: Tensor, slope: float, *, residual: bool, gradient_unit: float
) -> tuple[Tensor, Tensor]:
    """As operations.mlp, with products of short tensors."""
    u, n = operations.mix_norm(mix, keep=residual)
    a_unit = activation_unit(up, mix.scale)
    y: Tensor = _Products.apply(n, up, down, a_unit, slope, gradient_unit)  # type: ignore[no-untyped-call]
    return u + y if residual else y, n


def with_short_mlp(backend: Backend, batch_tokens: int) -> Backend:
    """Return a backend for training passes whose loss is a mean over `batch_tokens`.

    Where the backend has fused kernels, the MLP's are those for FP8.
    """
    short = backend.operations._replace(mlp=_mlp_for(batch_tokens, has_kernels(backend)))
    return dataclasses.replace(backend, operations=short)


def has_kernels(backend: Backend) -> bool:
    """Tell whether a backend multiplies FP8 faster than what it computes in otherwise."""
    return backend.operations.mlp is not operations.mlp


@functools.cache  # compiled blocks tell functions apart by their identity
def _mlp_for(batch_tokens: int, fused: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    gradient_unit = GRADIENT_UNIT / batch_tokens
    if not fused:
        return functools.partial(mlp, gradient_unit=gradient_unit)
    from paramgolf.model.kernels import mlp_fp8  # where there is Triton

    def short_mlp(mix: Mix, up: Tensor, *others: Any, residual: bool) -> tuple[Tensor, Tensor]:
        x = mix.terms[0]
        sizes = x.numel() // x.shape[-1], *up.shape
        function = mlp if any(size % ALIGNED for size in sizes) else mlp_fp8.mlp
        return function(mix, up, *others, residual=residual, gradient_unit=gradient_unit)

    return short_mlp
