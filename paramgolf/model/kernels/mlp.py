"""The MLP with LeakyReLU^2 inside its matrix products; see operations.mlp.

Forward, with n the normed input [rows, d], up [m, d], down [d, m] and l the slope:
    z = n up^T,   a = LeakyReLU(z)^2 = z^2 where z > 0, l^2 z^2 elsewhere,   y = a down^T
Backward, of the gradient dy:
    da = dy down,   dz = da * a'(z),   a'(z) = 2 z where z > 0, 2 l^2 z elsewhere
    dn = dz up,   d up = dz^T n,   d down = dy^T a

z -> a is applied before the product with `up` is written, and da -> dz before that with `down` is:
the hidden layer, four times as wide as the others, is written once each way. What backward keeps of
it is a alone, which d down needs in any case. z is not kept, as a tells all of it but its sign:
with s = sqrt(a), z = s or z = -s / l, so a'(z) = 2 s or -2 l s. The sign is put into the lowest bit
of a's mantissa, which doubles the largest error of its rounding to bfloat16, to 2^-7 of a.

kernels/hidden.py makes a and dz; other products are PyTorch's. The sum that the residual connection
adds is made here too, so that the product with `down` can add to it in place: a sum of two tensors
would be three passes over memory instead of one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.kernels import hidden
from paramgolf.model.kernels.launch import operator
from paramgolf.model.kernels.mix_norm import inputs_of, kept, mix_backward, mix_forward
from paramgolf.model.operations import Mix


@operator("mlp")
def _mlp(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    up: Tensor, down: Tensor, slope: float, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    total, n, inverses = mix_forward(x, y, z, coefficients, scale, residual)
    flat = n.view(-1, n.shape[-1])
    activated = flat.new_empty(flat.shape[0], len(up))  # not len: it may be a symbol
    hidden.run(flat, up, activated, activated, slope, backward=False)
    if residual:
        # u + a down^T, written over u
        total.view(flat.shape).addmm_(activated, down.T)
    else:
        total = F.linear(activated, down).view(n.shape)
    return total, n, activated, inverses


@operator("mlp_hidden_gradient")
def _hidden_gradient(dy: Tensor, down: Tensor, activated: Tensor, slope: float) -> Tensor:
    dz = torch.empty_like(activated)
    hidden.run(dy, down, activated, dz, slope, backward=True)
    return dz


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *mixed, up, down, ctx.slope, keep = inputs
    _, n, activated, inverses = output
    ctx.mark_non_differentiable(activated, inverses)
    ctx.set_materialize_grads(False)
    saved = kept(ctx, (*mixed, keep), n, inverses)
    ctx.save_for_backward(*saved, up, down, n, activated)


def _differentiate(ctx, d_out, d_n, *_):  # type: ignore[no-untyped-def]
    *mixed, up, down, n, activated = ctx.saved_tensors
    dy, flat = (t.reshape(-1, t.shape[-1]) for t in (d_out, n))
    dz = _hidden_gradient(dy, down, activated, ctx.slope)
    # dn, and below what the block makes of n besides: attention in the parallel forms
    through = (dz @ up).view(n.shape)
    if d_n is not None:
        through = through + d_n
    d_mixed = mix_backward(ctx, mixed, d_out, through)
    # in the order of _mlp's inputs: terms, coefficients, scale, up, down, slope, residual
    return *d_mixed, None, dz.T @ flat, dy.T @ activated, None, None


_mlp.register_autograd(_differentiate, setup_context=_save)


def mlp(
    mix: Mix, up: Tensor, down: Tensor, slope: float, *, residual: bool
) -> tuple[Tensor, Tensor]:
    """As operations.mlp, for bfloat16 and one to three terms."""
    y, n, *_ = _mlp(*inputs_of(mix), up, down, slope, residual)
    return y, n
