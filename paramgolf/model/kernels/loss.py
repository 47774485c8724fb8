"""The head's loss from logits that are read once; see paramgolf.model.head.

The logits are overwritten by each token's gradient while they are in registers, so backward is two
matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.head import Head, head_nll
from paramgolf.model.kernels.launch import launch, operator

WIDEST = 65_536  # vocabulary that one program holds in its registers


@triton.jit
def _capped(z, above, below, per_nat: tl.constexpr):
    """Return cap * tanh(z / cap) and the tanh; caps and result in powers of two."""
    cap = tl.where(z > 0, above, below)
    power = tl.exp2(
        z * tl.where(z > 0, 2 * per_nat * per_nat / above, 2 * per_nat * per_nat / below)
    )
    bent = 1.0 - 2.0 / (power + 1.0)
    return cap * bent, bent


@triton.jit
def _losses(
    logits, targets, caps, nll, vocab,
    WIDE: tl.constexpr, EXACT: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Write a token's negative log-likelihood, and its logits' gradient over them.

    In powers of two, as the hardware has them.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDE)
    here = logits + row * vocab
    live = column < (WIDE if EXACT else vocab)
    per_nat = 1.4426950408889634
    above, below = tl.load(caps) * per_nat, tl.load(caps + 1) * per_nat
    top = tl.maximum(above, below)  # no logit is greater: no need to look for the greatest
    target = tl.load(targets + row).to(tl.int32)
    chosen, _ = _capped(tl.load(here + target).to(tl.float32), above, below, per_nat)
    z = tl.load(here + column, mask=live, other=0.0).to(tl.float32)
    capped, bent = _capped(z, above, below, per_nat)
    weights = tl.exp2(capped - top)
    if not EXACT:
        weights = tl.where(live, weights, 0.0)
    total = tl.sum(weights, 0)
    tl.store(nll + row, (tl.log2(total) + top - chosen) / per_nat)
    if GRADIENT:
        gradient = weights * (1.0 / total) - tl.where(column == target, 1.0, 0.0)
        tl.store(here + column, gradient * (1.0 - bent * bent), mask=live)


@operator("nll")
def _nll(
    hidden: Tensor, embedding: Tensor, caps: Tensor, targets: Tensor, gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, embedding)
    rows, _ = hidden.shape  # len would fix what may be a symbol
    nll = hidden.new_empty(rows, dtype=torch.float32)
    wide = triton.next_power_of_2(len(embedding))
    launch(
        _losses, (rows,),
        logits, targets, caps, nll, len(embedding),
        WIDE=wide, EXACT=wide == len(embedding), GRADIENT=gradient,
        num_warps=min(16, max(4, wide // 512)),
    )  # fmt: skip
    return nll, logits if gradient else logits.new_empty(0)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    hidden, embedding, *_ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, embedding, output[1])


def _differentiate(ctx, d_nll, _):  # type: ignore[no-untyped-def]
    hidden, embedding, gradients = ctx.saved_tensors
    weight = d_nll[:, None]
    d_hidden = (gradients @ embedding) * weight
    d_embedding = gradients.T @ (hidden * weight).to(hidden.dtype)
    return d_hidden.to(hidden.dtype), d_embedding, None, None, None


_nll.register_autograd(_differentiate, setup_context=_save)


def nll(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """As head_nll, which serves where an adapter or learning caps need its gradients."""
    learning_caps = head.sides is not None and head.sides.requires_grad
    if head.adapter is not None or learning_caps or len(head.embedding) > WIDEST:
        return head_nll(hidden, targets, head)
    caps = head.sides
    if caps is None:
        caps = torch.full((2,), head.softcap, dtype=torch.float32, device=hidden.device)
    flat = hidden.reshape(-1, hidden.shape[-1])
    losses = _nll(flat, head.embedding, caps, targets.flatten(), torch.is_grad_enabled())[0]
    return losses.view(targets.shape)  # type: ignore[no-any-return]
