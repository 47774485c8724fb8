"""One block of the network as functions of (lanes, weights of this virtual layer, context).

Training, calibration, evaluation and adaptation all call `block`. Weights are inputs of it, so that
one compiled graph serves all layers of a kind, and recurrence needs no second one.

Shapes: B rows, T tokens, d width, H query heads, K key and value heads, D channels per head, kv =
K D, m hidden channels of the MLP, r rank of an adapter. A name's suffix gives its shape: x_BTd.
Names of the mathematics:
    x, a, b  a lane: a residual stream [B, T, d]. There is one, or in the parallel part two, of
             which a is the attention's and b the MLP's
    x0       the normalized embeddings [B, T, d], which every block may mix into its lanes
    s        a skip [B, T, d]: an encoder layer's output, added in the decoder
    u        a lane after its skip is added and x0 is mixed in: r0 x + r1 x0, with r = resid_mix
    n        the input of a sublayer: norm_scale * RMSNorm(u)
    w, c     the virtual layer's weights, and the context of the pass
All products of a lane with a vector of weights are per channel.

The forms of a block, with A the attention sublayer and F the MLP sublayer, each on the norm of its
argument and with its output's scale (attn_scale, mlp_scale) inside:
    none     u <- u + A(u);  x <- u + F(u)
    single   x <- u + A(u) + F(u)                                           (pg#1412, as in GPT-J)
    merge    a <- u + A(u), where u mixes a;  b <- b + F(b)                 (pg#1296, pg#1477)
    routed   y = A(mix(a));  a <- k0 a + w00 y;  b <- k0 b + w01 y;
             z = F(mix(b));  a <- k1 a + w10 z;  b <- k1 b + w11 z          (pg#1204)
    mixed    y = A(mix(a)),  z = F(mlp_mix(b));
             a <- a + r0 y + r2 z;  b <- b + r1 y + r3 z                    (pg#1289)
    lanes    y = A(mix(a)),  z = F(b);
             a <- k0 a + w00 y + w10 z;  b <- k1 b + w01 y + w11 z          (pg#1529)
with k = lane_keep, w = lane_write, r = lane_route. The lanes begin as two copies of x, in "lanes"
before its skip is added, else after it, and the head joins them (head.head_input). pg#N is pull
request N of github.com/openai/parameter-golf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.attention import Attend, Segments
from paramgolf.model.gradients import FirstChannels
from paramgolf.model.operations import Mix, Operations, activate

Tap = Callable[[str, Tensor], None]
Lanes = tuple[Tensor, ...]  # one residual stream [B, T, d], or two: attention's and the MLP's
Positions = slice | Tensor  # of a row: neighbors, or any, int64 [k]


class Kind(NamedTuple):
    """What is fixed when a block is compiled: blocks of one kind share a graph."""

    heads: int
    kv_heads: int
    kv_copies: int  # of each key and value head, which attention gets where it is to learn
    attention: bool
    xsa: str  # a ModelConfig.xsa_form, or "none"
    parallel: str  # a ModelConfig.parallel, or "none" before the parallel part
    head_gate: str
    head_gate_scale: float
    mlp_slope: float
    attend: Attend
    operations: Operations


class Weights(NamedTuple):
    """One virtual layer's weights, in the compute dtype; scalars are 0-dimensional."""

    qkv: Tensor  # [d + 2 kv, d]
    o: Tensor  # [d, d]
    up: Tensor  # [m, d]
    down: Tensor  # [d, m]
    attn_scale: Tensor  # [d]
    mlp_scale: Tensor  # [d]
    resid_mix: Tensor  # [2, d]: of the lane, of x0
    q_gain: Tensor  # [H]
    norm_scale: Tensor  # scalar: 1 / sqrt(slot + 1)
    head_gate: Tensor | None = None  # [H, channels that the gate reads]
    value_lambda: Tensor | None = None  # [2]: logits of the own values' share, of layer 0's
    hidden_gain: Tensor | None = None  # [m]
    xsa_strength: Tensor | None = None  # [H]: before its tanh
    lane_keep: Tensor | None = None  # [2]
    lane_write: Tensor | None = None  # [2, 2]: sublayer, lane
    lane_route: Tensor | None = None  # [4]: A to a, A to b, F to a, F to b
    mlp_mix: Tensor | None = None  # [2, d]: of lane b, of x0
    skip_weight: Tensor | None = None  # [d]
    skip_gate: Tensor | None = None  # [d]


class Pair(NamedTuple):
    """A low-rank addition b a to a projection, for each row of the batch or (B = 1) for all.

    A virtual layer's a is [B, r, in] and b [B, out, r]; those of a whole order have its length as
    their second dimension.
    """

    a: Tensor
    b: Tensor


class Adapters(NamedTuple):
    """The adapters of one virtual layer (LoRA, pg#1530); o and mlp read the sublayer's input."""

    q: Pair | None = None
    k: Pair | None = None
    v: Pair | None = None
    o: Pair | None = None
    mlp: Pair | None = None


class Context(NamedTuple):
    """What all virtual layers of a pass share, and the values that only some of them add."""

    x0: Tensor  # [B, T, d]
    cos: Tensor  # [T, rope_dims / 2]
    sin: Tensor
    value_embedding: Tensor | None = None  # [B, T, kv], scaled for this layer
    first_values: Tensor | None = None  # [B, T, K, D]: layer 0's, for value residuals
    segments: Segments | None = None  # parts that attention does not cross
    tap: Tap | None = None
    adapters: Adapters | None = None
    skip: Lanes | None = None  # an encoder layer's output, for the decoder layer that pops it
    part: Tensor | None = None  # int64 [k]: positions whose outputs alone are wanted; None: all


def at(x: Tensor, part: Positions | None) -> Tensor:
    """Return x [B, T, ...] at the positions `part`, or all of it."""
    if isinstance(part, Tensor):
        return x.index_select(1, part)  # one gather, whose gradient is one index_add
    return x if part is None else x[:, part]


def linear(x: Tensor, weight: Tensor, name: str, tap: Tap | None) -> Tensor:
    """Return x weight^T; a tap sees the input first."""
    if tap is not None:
        tap(name, x)
    return F.linear(x, weight)


def low_rank(x: Tensor, *pairs: Pair) -> list[Tensor]:
    """Return (x a^T) b^T [B, T, out] for each of `pairs`, each row by its own matrices.

    x [B, T, in] is read once for all.
    """

    def product(x: Tensor, matrices: Tensor) -> Tensor:
        # not matmul: what it might broadcast is slow to trace
        return F.linear(x, matrices[0]) if len(matrices) == 1 else x.bmm(matrices.mT)

    inner = product(x, torch.cat([pair.a for pair in pairs], dim=1))
    parts = inner.split([pair.a.shape[1] for pair in pairs], dim=-1)
    return [product(part, pair.b) for part, pair in zip(parts, pairs, strict=True)]


def adapter_outputs(n: Tensor, w: Weights, adapters: Adapters | None) -> dict[str, Tensor]:
    """Return what the adapters q, k, v and o make of attention's input n [B, T, d], by name."""
    if adapters is None:
        return {}
    pairs = {name: pair for name in "qkvo" if (pair := getattr(adapters, name)) is not None}
    if adapters.o is not None:  # scaled as the projection's rows are
        pairs["o"] = Pair(adapters.o.a, w.attn_scale[:, None] * adapters.o.b)
    return dict(zip(pairs, low_rank(n, *pairs.values()), strict=True)) if pairs else {}


def project_heads(
    n: Tensor, w: Weights, c: Context, kind: Kind, adapted: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project a sublayer's input n [B, T, d] to q, k, v and v_xsa, as operations.split_heads does.

    q and k are normalized and rotated; the adapters' outputs `adapted` are added first, and a value
    embedding is in both v: attention reads one, XSA the other.
    """
    qkv = linear(n, w.qkv, "qkv", c.tap)
    if adapted:
        kv = (len(w.qkv) - n.shape[-1]) // 2
        parts = zip("qkv", qkv.split([n.shape[-1], kv, kv], dim=-1), strict=True)
        qkv = torch.cat([y + adapted[name] if name in adapted else y for name, y in parts], dim=-1)
    copies = kind.kv_copies if torch.is_grad_enabled() else 1
    q, k, v, v_xsa = kind.operations.split_heads(qkv, w.q_gain, c.cos, c.sin, kind.kv_heads, copies)
    if c.value_embedding is not None:
        v = v_xsa = v + c.value_embedding.view(v.shape)
    return q, k, v, v_xsa


def attention_sublayer(n: Tensor, w: Weights, c: Context, kind: Kind) -> Tensor:
    """Return the attention sublayer's output [B, T, d] for its input n [B, T, d].

    With `part` the output is of its positions [B, k, d]; keys and values are of all.
    """
    gate = strength = None
    if kind.head_gate != "none":
        n, gates = head_gates(n, w, kind)
        gate = at(gates, c.part)
    adapted = adapter_outputs(n, w, c.adapters)
    q, k, v, v_xsa = project_heads(n, w, c, kind, adapted)
    if c.first_values is not None and w.value_lambda is not None:  # pg#1499
        own, first = torch.softmax(w.value_lambda, dim=0)
        v = v_xsa = own * v + first * c.first_values
    y, v_xsa = at(kind.attend(q, k, v, c.segments), c.part), at(v_xsa, c.part)
    if kind.xsa == "learned":
        assert w.xsa_strength is not None
        strength = torch.tanh(w.xsa_strength.float())
    xsa = kind.xsa in ("projection", "learned")
    if xsa or gate is not None:
        y = kind.operations.finish_heads(y, v_xsa, gate, xsa=xsa, strength=strength)
    # diag(s) (W y) = (diag(s) W) y: to scale d^2 weights is cheaper than B T d outputs
    y = linear(y.flatten(2), w.attn_scale[:, None] * w.o, "o", c.tap)
    return y + at(adapted["o"], c.part) if "o" in adapted else y


def head_gates(n: Tensor, w: Weights, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return the sublayer's input [B, T, d], and a gate per head [B, T, H] of its first channels.

    With s the logistic function: doubled 2 s(z), which starts at 1 (pg#1667); dense s(z) of all
    channels (pg#1736); sparse s(scale z) (pg#1787).
    """
    assert w.head_gate is not None
    n, first = FirstChannels.apply(n, w.head_gate.shape[-1])  # type: ignore[no-untyped-call]
    z = F.linear(first, w.head_gate)
    match kind.head_gate:
        case "doubled":
            return n, 2 * torch.sigmoid(z)
        case "dense":
            return n, torch.sigmoid(z)
    return n, torch.sigmoid(kind.head_gate_scale * z)


def add_skip(lanes: Lanes, w: Weights, c: Context, kind: Kind) -> Lanes:
    """Add the skip: to both lanes in the forms "routed" and "mixed", else to the first.

    Additive: x + w s (pg#1019). Gated: s(g) x + (1 - s(g)) w s, with the logistic s(g) (pg#1204).
    """
    if c.skip is None:
        return lanes
    assert w.skip_weight is not None
    summed = list(lanes)
    for index in range(len(lanes) if kind.parallel in ("routed", "mixed") else 1):
        skip = w.skip_weight * c.skip[min(index, len(c.skip) - 1)]
        if w.skip_gate is not None:
            summed[index] = torch.lerp(skip, summed[index], torch.sigmoid(w.skip_gate))
        else:
            summed[index] = summed[index] + skip
    return tuple(summed)


def mix_of(x: Tensor, w: Weights, c: Context) -> Mix:
    """Return the mix of a lane x, of x0 and of a skip s, whose sum is u.

    u = r0 add_skip(x, s) + r1 x0 is linear in each channel, so it is one weighted sum of up to
    three terms, which a kernel reads once: with a gate g its coefficients are r0 s(g), r1 and
    r0 (1 - s(g)) w.
    """
    of_x, of_x0 = w.resid_mix.float()
    terms: tuple[Tensor, ...] = (x, c.x0)
    coefficients = [of_x, of_x0]
    if c.skip is not None:
        assert w.skip_weight is not None
        terms, of_skip = (*terms, c.skip[0]), of_x * w.skip_weight.float()
        if w.skip_gate is not None:
            share = torch.sigmoid(w.skip_gate.float())
            coefficients[0], of_skip = of_x * share, of_skip * (1 - share)
        coefficients.append(of_skip)
    return Mix(terms, w.norm_scale, torch.stack(coefficients))


def mix_and_norm(x: Tensor, w: Weights, c: Context, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return u and its scaled norm n, both [B, T, d], of a lane x."""
    return kind.operations.mix_norm(mix_of(x, w, c))


def mlp_sublayer(
    mix: Mix, w: Weights, c: Context, kind: Kind, *, residual: bool
) -> tuple[Tensor, Tensor]:
    """Return the MLP sublayer's output [B, T, d], and its input, the norm n of the mix.

    The output is down(LeakyReLU(up n)^2), rows of down scaled, and its columns too where hidden
    channels have gains (pg#1499): weights are cheaper to scale. With `residual` the mix's sum u is
    added; u is made by this function since a kernel adds the product to it in its place.
    """
    down = w.mlp_scale[:, None] * w.down
    gained = down if w.hidden_gain is None else down * w.hidden_gain
    if c.tap is None:
        y, n = kind.operations.mlp(mix, w.up, gained, kind.mlp_slope, residual=residual)
    else:
        u, n = kind.operations.mix_norm(mix, keep=residual)
        hidden = activate(linear(n, w.up, "up", c.tap), kind.mlp_slope)
        if w.hidden_gain is not None:  # what down reads: its Hessian is of it
            hidden = hidden * w.hidden_gain
        y = linear(hidden, down, "down", c.tap)
        y = u + y if residual else y
    if c.adapters is not None and c.adapters.mlp is not None:
        a, b = c.adapters.mlp
        y = y + low_rank(n, Pair(a, w.mlp_scale[:, None] * b))[0]
    return y, n


def block(lanes: Lanes, w: Weights, c: Context, kind: Kind) -> Lanes:
    """Run one virtual layer in its form, as the module's docstring has it.

    With `part` all that comes after attention is done at its positions alone: lanes [B, k, d].
    """
    if kind.parallel in ("none", "single"):
        return (_one_lane(lanes[0], w, c, kind),)
    return _two_lanes(lanes, w, c, kind)


def _one_lane(x: Tensor, w: Weights, c: Context, kind: Kind) -> Tensor:
    if kind.parallel == "single" or not kind.attention:
        mix = mix_of(x, w, c)
        wanted = mix._replace(terms=tuple(at(term, c.part) for term in mix.terms))
        y, n = mlp_sublayer(wanted, w, c, kind, residual=True)
        if not kind.attention:
            return y
        if c.part is not None:  # keys and values are of all positions
            _, n = mix_and_norm(x, w, c, kind)
        return y + attention_sublayer(n, w, c, kind)
    u, n = mix_and_norm(x, w, c, kind)
    terms = at(u, c.part), attention_sublayer(n, w, c, kind)
    return mlp_sublayer(Mix(terms, w.norm_scale), w, c, kind, residual=True)[0]


def _two_lanes(lanes: Lanes, w: Weights, c: Context, kind: Kind) -> Lanes:
    form = kind.parallel
    if len(lanes) == 1 and form == "lanes":
        lanes = lanes * 2  # before the skip, which lane a alone takes
    lanes = add_skip(lanes, w, c, kind)
    if len(lanes) == 1:
        lanes = lanes * 2
    mix = Mix((lanes[0], c.x0), w.norm_scale, w.resid_mix.float())
    u, n = kind.operations.mix_norm(mix, keep=form == "merge")
    y = attention_sublayer(n, w, c, kind)
    a, b = (at(x, c.part) for x in lanes)
    if form == "merge":
        b, _ = mlp_sublayer(Mix((b,), w.norm_scale), w, c, kind, residual=True)
        return at(u, c.part) + y, b
    keep, write, route = w.lane_keep, w.lane_write, w.lane_route
    if form == "mixed":
        assert route is not None
        z = _mlp_of(b, w.mlp_mix, w, c, kind)
        return a + route[0] * y + route[2] * z, b + route[1] * y + route[3] * z
    assert keep is not None
    assert write is not None
    if form == "routed":  # the MLP sees what attention wrote
        a, b = keep[0] * a + write[0, 0] * y, keep[0] * b + write[0, 1] * y
        z = _mlp_of(b, w.resid_mix, w, c, kind)
        return keep[1] * a + write[1, 0] * z, keep[1] * b + write[1, 1] * z
    z = _mlp_of(b, None, w, c, kind)
    a, b = (keep[i] * x + write[0, i] * y + write[1, i] * z for i, x in enumerate((a, b)))
    return a, b


def _mlp_of(x: Tensor, weights: Tensor | None, w: Weights, c: Context, kind: Kind) -> Tensor:
    """Return the MLP sublayer's output of a lane, mixed with x0 by `weights` [2, d] if given."""
    mix = Mix((x,), w.norm_scale)
    if weights is not None:
        mix = Mix((x, at(c.x0, c.part)), w.norm_scale, weights.float())
    return mlp_sublayer(mix, w, c, kind, residual=False)[0]
