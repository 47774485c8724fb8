"""The head's loss from logits that are read once; see paramgolf.model.head.

Forward, for a token of target t, z = E h over the vocabulary, and a cap c (one for z > 0, one for
the rest):
    l_j = c tanh(z_j / c),   nll = log(sum_j exp(l_j)) - l_t
Backward needs no more than the same numbers, so that forward computes it too:
    G_j = d nll / d z_j = (exp(l_j) / sum_i exp(l_i) - [j = t]) (1 - tanh(z_j / c)^2)
z is overwritten by G while it is in registers. With the gradient w of each token's nll, backward is
two matrix products: dh = w (E^T G) and dE = sum over tokens of G (w h)^T. The logits of a batch are
its largest tensor, by far; caps and softmax as separate kernels would pass over it many times.

With a mask the sum leaves out the tokens that cannot come, which a row of bits tells for each
position, and their G_j is 0.

A second target t' of training, of weight w', reads the same logits, and G is that of both losses:
    G_j = ((1 + w') exp(l_j) / sum_i exp(l_i) - [j = t] - w' [j = t']) (1 - tanh(z_j / c)^2)

Exponentials are powers of two, as the hardware has them: with p = log2(e), caps and logits are in
units of 1 / p, and tanh(x) = 1 - 2 / (2^(2 p x) + 1), which is right where the power overflows too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.head import IMPOSSIBLE, Head, head_nll
from paramgolf.model.kernels.launch import launch, operator

WIDEST = 65_536  # vocabulary that one program holds in its registers
HIGHEST = 43  # cap of the logits for which the kernel's powers are numbers


@triton.jit
def _capped(z, above, below, per_nat: tl.constexpr):
    """Return p c tanh(z / c) and the tanh, with p = per_nat; `above` and `below` are p c."""
    # two caps make the head asymmetric (pg#1923); a symmetric one comes as twice the same
    cap = tl.where(z > 0, above, below)
    # 2 p^2 / (p c) z = 2 p z / c: the exponent of e^(2 z / c) in powers of two
    power = tl.exp2(
        z * tl.where(z > 0, 2 * per_nat * per_nat / above, 2 * per_nat * per_nat / below)
    )
    # tanh; a power that overflows gives 1, one that vanishes -1
    bent = 1.0 - 2.0 / (power + 1.0)
    return cap * bent, bent


@triton.jit
def _second(second, weight, bits, MASKED: tl.constexpr):
    """Return a token's second target and its weight, 0 where there is none or it cannot come."""
    target = tl.load(second).to(tl.int32)
    there = target >= 0
    if MASKED:
        there = ((tl.load(bits + (target >> 5), mask=there, other=0) >> (target & 31)) & 1) > 0
    return target, tl.where(there, tl.load(weight), 0.0)


@triton.jit
def _losses(
    logits, targets, caps, nll, words, states, seconds, weight, vocab, width,
    WIDE: tl.constexpr, EXACT: tl.constexpr, GRADIENT: tl.constexpr, MASKED: tl.constexpr,
    NEVER: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Write a token's nll, float32 [rows], and G over its logits [rows, vocab].

    targets int64 [rows]; caps float32 [2], of positive and other logits. WIDE is the next power of
    two from vocab, EXACT says that it is vocab. A program holds a whole row in registers, 16 of its
    elements per thread at the vocabulary of 8,192 (32 without gradients, which take registers), so
    that logits are read once and written once.
    If MASKED, NEVER is the logit of tokens that cannot come, by head.Allowed: words int32 [any,
    width], states int64 [rows]; else neither is read. If SECOND, a token has a second target, by
    head.Second: seconds int64 [rows], weight float32 [1]; else neither is read.
    """
    # 64 bits: rows times vocabulary may exceed 2^31
    row = tl.program_id(0).to(tl.int64)
    # as a tile of a word of the mask a row, so that a thread reads a word once for all its logits
    word, bit = tl.arange(0, WIDE // 32), tl.arange(0, 32)
    column = word[:, None] * 32 + bit[None, :]
    here = logits + row * vocab
    live = column < (WIDE if EXACT else vocab)
    z = tl.load(here + column, mask=live, other=0.0).to(tl.float32)
    per_nat = 1.4426950408889634
    above, below = tl.load(caps) * per_nat, tl.load(caps + 1) * per_nat
    # No logit is greater than its cap, so the cap serves where softmax subtracts the maximum: no
    # pass to look for it. Powers stay above 2^-126 for caps up to HIGHEST (2 * 43 * 1.44 = 124).
    top = tl.maximum(above, below)
    target = tl.load(targets + row).to(tl.int32)
    # l_t, read apart: to pick it out of the row would be a sum over the row
    chosen, _ = _capped(tl.load(here + target).to(tl.float32), above, below, per_nat)
    bits = words
    if MASKED:
        bits += tl.load(states + row) * width
        own = (tl.load(bits + (target >> 5)) >> (target & 31)) & 1
        chosen = tl.where(own > 0, chosen, NEVER * per_nat)
        target = tl.where(own > 0, target, -1)
    capped, bent = _capped(z, above, below, per_nat)
    powers = tl.exp2(capped - top)
    if MASKED:
        can = tl.load(bits + word, mask=word < width, other=0)[:, None] & (1 << bit)[None, :]
        powers = tl.where(can != 0, powers, 0.0)
    if not EXACT:  # beyond the vocabulary z reads 0, whose power is not 0
        powers = tl.where(live, powers, 0.0)
    total = tl.sum(powers)
    tl.store(nll + row, (tl.log2(total) + top - chosen) / per_nat)
    if GRADIENT:
        wanted = tl.where(column == target, 1.0, 0.0)
        weights = 1.0
        if SECOND:
            second, its_weight = _second(seconds + row, weight, bits, MASKED)
            wanted += tl.where(column == second, its_weight, 0.0)
            weights += its_weight
        # softmax - [j = t], then through the cap
        gradient = powers * (weights / total) - wanted
        tl.store(here + column, gradient * (1.0 - bent * bent), mask=live)


@operator("nll")
def _nll(
    hidden: Tensor,
    embedding: Tensor,
    caps: Tensor,
    targets: Tensor,
    words: Tensor | None,
    states: Tensor | None,
    seconds: Tensor | None,
    weight: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    # in the compute dtype, as head_logits has them
    logits = F.linear(hidden, embedding)
    rows, _ = hidden.shape  # len would fix what may be a symbol
    nll = hidden.new_empty(rows, dtype=torch.float32)
    wide = max(32, triton.next_power_of_2(len(embedding)))
    launch(
        _losses, (rows,),
        logits, targets, caps, nll, targets if words is None else words,
        targets if states is None else states, targets if seconds is None else seconds,
        caps if weight is None else weight, len(embedding), 0 if words is None else words.shape[1],
        WIDE=wide, EXACT=wide == len(embedding), GRADIENT=gradient,
        MASKED=words is not None, NEVER=IMPOSSIBLE, SECOND=seconds is not None,
        num_warps=min(16, max(4, wide // (512 if gradient else 1024))),
    )  # fmt: skip
    # an operator returns tensors; an empty one stands for none
    return nll, logits if gradient else logits.new_empty(0)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    hidden, embedding, *_ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, embedding, output[1])


def _differentiate(ctx, d_nll, _):  # type: ignore[no-untyped-def]
    hidden, embedding, gradients = ctx.saved_tensors
    # G is of a weight of 1: the chain rule's factor is a scalar per token
    weight = d_nll[:, None]
    d_hidden = (gradients @ embedding) * weight
    d_embedding = gradients.T @ (hidden * weight).to(hidden.dtype)
    return d_hidden.to(hidden.dtype), d_embedding, *[None] * 7


_nll.register_autograd(_differentiate, setup_context=_save)


def nll(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """As head_nll, which serves where an adapter or learning caps need its gradients.

    So it does for a vocabulary or a cap beyond the kernel's reach.
    """
    # what the kernel has no gradient for: an adapter's product, and caps that learn
    learning_caps = head.sides is not None and head.sides.requires_grad
    beyond = len(head.embedding) > WIDEST or head.softcap > HIGHEST
    if head.adapter is not None or learning_caps or beyond:
        return head_nll(hidden, targets, head)
    caps = head.sides
    if caps is None:
        # a tensor, not a number: it would be compiled into the kernel
        caps = torch.full((2,), head.softcap, dtype=torch.float32, device=hidden.device)
    flat = hidden.reshape(-1, hidden.shape[-1])
    words, states = (None, None) if head.allowed is None else head.allowed
    states = None if states is None else states.flatten()
    seconds, weight = (None, None) if head.second is None else head.second
    seconds = None if seconds is None else seconds.flatten()
    given = flat, head.embedding, caps, targets.flatten(), words, states, seconds, weight
    losses = _nll(*given, torch.is_grad_enabled())[0]
    return losses.view(targets.shape)  # type: ignore[no-any-return]
