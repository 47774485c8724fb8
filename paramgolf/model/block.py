"""One block of the network as functions of (state, x0, this step's weights).

Training, calibration, evaluation and adaptation all call `block`; weights are inputs, so one
compiled graph serves every layer of a kind, and recurrence needs no second one. `u` is a lane
after it is mixed with x0. Sources: spec numbers of the records beside each parallel form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.attention import Attend, Segments
from paramgolf.model.operations import Operations, activate

Tap = Callable[[str, Tensor], None]


State = tuple[Tensor, ...]  # one lane [B, T, d], or two: attention's and the MLP's


class Kind(NamedTuple):
    """What is fixed when a block is compiled."""

    heads: int
    kv_heads: int
    attention: bool
    xsa: bool
    parallel: str  # a ModelConfig.parallel, or "none" before the parallel part
    head_gate: str
    head_gate_scale: float
    mlp_slope: float
    attend: Attend
    operations: Operations


class Weights(NamedTuple):
    """One step's weights, in the compute dtype; scalars are 0-dimensional."""

    qkv: Tensor  # [d + 2 kv, d]
    o: Tensor  # [d, d]
    up: Tensor  # [m, d]
    down: Tensor  # [d, m]
    attn_scale: Tensor  # [d]
    mlp_scale: Tensor  # [d]
    resid_mix: Tensor  # [2, d]
    q_gain: Tensor  # [h]
    norm_scale: Tensor  # scalar: 1 / sqrt(slot + 1)
    head_gate: Tensor | None = None  # [h, c]
    value_mix: Tensor | None = None  # scalar
    lane_keep: Tensor | None = None  # [2]
    lane_write: Tensor | None = None  # [2, 2]: sublayer, lane
    lane_route: Tensor | None = None  # [4]
    mlp_mix: Tensor | None = None  # [2, d]
    skip_weight: Tensor | None = None  # [d]
    skip_gate: Tensor | None = None  # [d]


class Pair(NamedTuple):
    """A low-rank addition to a projection, for each row of the batch or (B = 1) for all.

    A step's is a [B, r, in] and b [B, out, r], that of all places a [B, places, r, in] and so on.
    """

    a: Tensor
    b: Tensor


class Adapters(NamedTuple):
    """The adapters of one step (LoRA, #1530); o and mlp read the sublayer's input."""

    q: Pair | None = None
    k: Pair | None = None
    v: Pair | None = None
    o: Pair | None = None
    mlp: Pair | None = None


class Context(NamedTuple):
    """What every step of a forward pass shares, and the values that only some steps add."""

    x0: Tensor  # [B, T, d]
    cos: Tensor  # [T, rope_dims / 2]
    sin: Tensor
    value_extra: Tensor | None = None  # [B, T, kv]: value embedding, scaled for this step
    first_values: Tensor | None = None  # [B, T, K, D]: layer 0's, for value residuals
    segments: Segments | None = None  # parts that attention does not cross
    tap: Tap | None = None
    adapters: Adapters | None = None
    entering: State | None = None  # an encoder output, for the decoder step that pops it


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


def additions(n: Tensor, w: Weights, adapters: Adapters | None) -> dict[str, Tensor]:
    """Return what the adapters q, k, v and o make of attention's input n [B, T, d], by name."""
    if adapters is None:
        return {}
    pairs = {name: pair for name in "qkvo" if (pair := getattr(adapters, name)) is not None}
    if adapters.o is not None:  # scaled as the projection's rows are
        pairs["o"] = Pair(adapters.o.a, w.attn_scale[:, None] * adapters.o.b)
    return dict(zip(pairs, low_rank(n, *pairs.values()), strict=True)) if pairs else {}


def heads_of(
    n: Tensor, w: Weights, c: Context, kind: Kind, added: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project a normalised input [B, T, d] to q [B, T, H, D], k and v [B, T, K, D], v twice.

    q and k are normalised and rotated; `added` is in, and a value embedding is in v.
    """
    qkv = linear(n, w.qkv, "qkv", c.tap)
    if added:
        kv = (len(w.qkv) - n.shape[-1]) // 2
        parts = zip("qkv", qkv.split([n.shape[-1], kv, kv], dim=-1), strict=True)
        qkv = torch.cat([y + added[name] if name in added else y for name, y in parts], dim=-1)
    q, k, v, own = kind.operations.split_heads(qkv, w.q_gain, c.cos, c.sin, kind.kv_heads)
    if c.value_extra is not None:
        v = own = v + c.value_extra.view(v.shape)
    return q, k, v, own


def attention(n: Tensor, w: Weights, c: Context, kind: Kind) -> Tensor:
    """Return the attention sublayer's output [B, T, d] for a normalised, scaled input [B, T, d].

    The output's scale is a factor of the projection's rows: a weight is cheaper to scale.
    """
    gate = None
    # named, not unlike "none": a packed program without gates then leaves them out (codec/shake.py)
    if kind.head_gate in ("doubled", "dense", "sparse"):
        n, gate = head_gates(n, w, kind)
    added = additions(n, w, c.adapters)
    q, k, v, own = heads_of(n, w, c, kind, added)
    if c.first_values is not None:
        assert w.value_mix is not None
        v = own = v + torch.sigmoid(w.value_mix) * c.first_values
    y = kind.attend(q, k, v, c.segments)
    if kind.xsa or gate is not None:
        y = kind.operations.finish_heads(y, own, gate, exclude=kind.xsa)
    y = linear(y.flatten(2), w.attn_scale[:, None] * w.o, "o", c.tap)
    return y + added["o"] if "o" in added else y


class FirstChannels(torch.autograd.Function):
    """x and its first channels, whose gradient is added to x's in its place.

    Autograd would widen it to all channels and add that: two more passes over memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return x [..., d] and its first `count` channels."""
        return x.view_as(x), x[..., :count].contiguous()

    @staticmethod
    def backward(ctx: Any, d_x: Tensor, d_first: Tensor) -> tuple[Tensor, None]:
        """Return the sum of both gradients; compiled code writes the first channels alone."""
        count = d_first.shape[-1]
        at = [None] * (d_x.dim() - 1) + [torch.arange(count, device=d_x.device)]
        return torch.ops.aten.index_put.default(d_x, at, d_x[..., :count] + d_first), None


def head_gates(n: Tensor, w: Weights, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return the sublayer's input [B, T, d], and of its first channels a gate a head [B, T, H]."""
    assert w.head_gate is not None
    n, first = FirstChannels.apply(n, w.head_gate.shape[-1])
    z = F.linear(first, w.head_gate)
    match kind.head_gate:
        case "doubled":  # #1667: starts at 1
            return n, 2 * torch.sigmoid(z)
        case "dense":  # #1736
            return n, torch.sigmoid(z)
    return n, torch.sigmoid(kind.head_gate_scale * z)  # sparse, #1787


def enter(state: State, w: Weights, c: Context, kind: Kind) -> State:
    """Let the encoder output enter: into both lanes where both read it, else into the first.

    Additive: x + w s (#1019). Gated: s(g) x + (1 - s(g)) w s, with the logistic s(g) (#1204).
    """
    if c.entering is None:
        return state
    assert w.skip_weight is not None
    lanes = list(state)
    for index in range(len(state) if kind.parallel in ("routed", "mixed") else 1):
        entering = w.skip_weight * c.entering[min(index, len(c.entering) - 1)]
        if w.skip_gate is not None:
            lanes[index] = torch.lerp(entering, lanes[index], torch.sigmoid(w.skip_gate))
        else:
            lanes[index] = lanes[index] + entering
    return tuple(lanes)


def mixing(x: Tensor, w: Weights, c: Context) -> tuple[State, Tensor]:
    """Return x, x0 and a skip that enters x as in `enter`, and the coefficients of their sum u.

    All is linear in each channel, so it is one weighted sum of up to three lanes.
    """
    own, first = w.resid_mix.float()
    lanes: State = (x, c.x0)
    coefficients = [own, first]
    if c.entering is not None:
        assert w.skip_weight is not None
        lanes, skip = (*lanes, c.entering[0]), own * w.skip_weight.float()
        if w.skip_gate is not None:
            share = torch.sigmoid(w.skip_gate.float())
            coefficients[0], skip = own * share, skip * (1 - share)
        coefficients.append(skip)
    return lanes, torch.stack(coefficients)


def mix_in(x: Tensor, w: Weights, c: Context, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return u and its scaled norm."""
    return kind.operations.mix_norm(*mixing(x, w, c), w.norm_scale)


def feed(
    lanes: State,
    coefficients: Tensor | None,
    w: Weights,
    c: Context,
    kind: Kind,
    *,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Return the MLP sublayer's output [B, T, d], and the scaled norm n of a sum of lanes.

    The output is down(LeakyReLU(up n)^2), rows of down scaled; with `residual` the sum is added.
    """
    down = w.mlp_scale[:, None] * w.down
    mixed = lanes, coefficients, w.norm_scale
    if c.tap is None:
        y, n = kind.operations.mlp(*mixed, w.up, down, kind.mlp_slope, residual=residual)
    else:
        total, n = kind.operations.mix_norm(*mixed, keep=residual)
        hidden = activate(linear(n, w.up, "up", c.tap), kind.mlp_slope)
        y = linear(hidden, down, "down", c.tap)
        y = total + y if residual else y
    if c.adapters is not None and c.adapters.mlp is not None:
        a, b = c.adapters.mlp
        y = y + low_rank(n, Pair(a, w.mlp_scale[:, None] * b))[0]
    return y, n


def block(state: State, w: Weights, c: Context, kind: Kind) -> State:
    """Run one step: a skip enters, lanes are mixed, both sublayers run."""
    if kind.parallel in ("merge", "routed", "mixed", "lanes"):
        return _two_lanes(state, w, c, kind)
    return (_one_lane(state[0], w, c, kind),)


def _two_lanes(state: State, w: Weights, c: Context, kind: Kind) -> State:
    """Let a skip enter, split the lane where two begin, run both sublayers."""
    state = enter(state, w, c, kind)
    if len(state) == 1:
        state = (state[0], state[0])

    def read(x: Tensor, weights: Tensor | None) -> tuple[State, Tensor | None]:
        return ((x,), None) if weights is None else ((x, c.x0), weights.float())

    def attend(x: Tensor, weights: Tensor | None) -> Tensor:
        n = kind.operations.mix_norm(*read(x, weights), w.norm_scale, keep=False)[1]
        return attention(n, w, c, kind)

    def fed(x: Tensor, weights: Tensor | None) -> Tensor:
        return feed(*read(x, weights), w, c, kind, residual=False)[0]

    match kind.parallel:
        case "merge":
            u, n = kind.operations.mix_norm(*read(state[0], w.resid_mix), w.norm_scale)
            after, _ = feed((state[1],), None, w, c, kind, residual=True)
            return u + attention(n, w, c, kind), after
        case "routed":
            return _routed(state, w, attend, fed)
    return _simultaneous(state, w, attend, fed)


Sublayer = Callable[[Tensor, Tensor | None], Tensor]


def _one_lane(x: Tensor, w: Weights, c: Context, kind: Kind) -> Tensor:
    """Run MLP after attention, or both on one input (#1412)."""
    if kind.parallel == "single" or not kind.attention:
        fed, n = feed(*mixing(x, w, c), w, c, kind, residual=True)
        return fed + attention(n, w, c, kind) if kind.attention else fed
    u, n = mix_in(x, w, c, kind)
    return feed((u, attention(n, w, c, kind)), None, w, c, kind, residual=True)[0]


def _routed(state: State, w: Weights, attend: Sublayer, fed: Sublayer) -> State:
    """Run two lanes with learned writes; the MLP sees what attention wrote (#1204)."""
    a, b = state
    assert w.lane_keep is not None
    assert w.lane_write is not None
    written = attend(a, w.resid_mix)
    a = w.lane_keep[0] * a + w.lane_write[0, 0] * written
    b = w.lane_keep[0] * b + w.lane_write[0, 1] * written
    written = fed(b, w.resid_mix)
    a = w.lane_keep[1] * a + w.lane_write[1, 0] * written
    return a, w.lane_keep[1] * b + w.lane_write[1, 1] * written


def _simultaneous(state: State, w: Weights, attend: Sublayer, fed: Sublayer) -> State:
    """Run two lanes whose sublayers both read the old lanes: mixed (#1289) or lanes (#1529)."""
    a, b = state
    from_attention = attend(a, w.resid_mix)
    if w.mlp_mix is not None:
        assert w.lane_route is not None
        from_mlp, r = fed(b, w.mlp_mix), w.lane_route
        return (
            a + r[0] * from_attention + r[2] * from_mlp,
            b + r[1] * from_attention + r[3] * from_mlp,
        )
    assert w.lane_keep is not None
    assert w.lane_write is not None
    from_mlp = fed(b, None)
    first, second = (
        w.lane_keep[lane] * state[lane]
        + w.lane_write[0, lane] * from_attention
        + w.lane_write[1, lane] * from_mlp
        for lane in (0, 1)
    )
    return first, second
