"""The network: stacked parameters, and one forward pass for training, calibration and evaluation.

Shapes: B rows, T tokens, d width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paramgolf.model.attention import (
    BOUNDS_MULTIPLE,
    Attend,
    Segments,
    attend_sdpa,
    find_segments,
    rotary_table,
)
from paramgolf.model.block import (
    Adapters,
    Context,
    Kind,
    Pair,
    State,
    Weights,
    additions,
    block,
    heads_of,
    mix_in,
)
from paramgolf.model.config import ModelConfig, Order
from paramgolf.model.embedding import blended, embed, value_embedding
from paramgolf.model.head import Head, head_input, head_logits, lanes_nll
from paramgolf.model.init import initial_parameters
from paramgolf.model.operations import Operations
from paramgolf.model.plan import Step, plan, repeated_layers
from paramgolf.model.reference import REFERENCE
from paramgolf.model.shapes import MATRICES, shapes

BOS = 1  # of every published tokenizer
DOCUMENTS = "L['c'].segments.bounds,L['c'].segments.longest"  # as compiled code names them
GRAPHS = 64  # of the block: kinds, times batch shapes, times training or not
Tensors = dict[str, Tensor]
Part = slice | Tensor  # of a row: places next to one another, or any, int64 [k]


@dataclass(frozen=True, slots=True)
class Pass:
    """Options of one forward pass.

    `order` is the layer order. `tap(family, row, x)` is shown the input of each matrix product:
    qkv, o, up, down, and embedding (the head's). A tap turns compilation off. With
    `document_tokens` attention stays inside a document, and sees at most that many tokens of it.
    `adapters` are low-rank additions by name (Adapters' fields, and head), rows first, then places
    of the order. With `window` a position attends to no more than so many, its own among them.
    `segments` are those of `document_tokens` or `window`, where they were found beforehand.
    """

    order: Order
    tap: Callable[[str, int, Tensor], None] | None = None
    document_tokens: int | None = None
    adapters: Mapping[str, Pair] | None = None
    window: int | None = None
    segments: Segments | None = None


class FanOut(torch.autograd.Function):
    """A tensor, once for each of its readers, so that their gradients are added in one pass.

    Autograd would add them one by one, each time through memory: #1493's x0 has 17 readers.
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


def same_again(x: Tensor) -> Tensor:
    """Return x as another tensor: a block that got one tensor twice would be one more graph."""
    return FanOut.apply(x, 1, lambda gradients: gradients[0])[0]


def add_all(tensors: list[Tensor]) -> Tensor:
    """Return the sum of `tensors` in their dtype, added up in float32."""
    return sum((x.float() for x in tensors[1:]), tensors[0].float()).to(tensors[0].dtype)


class Network(nn.Module):
    """A decoder-only transformer with a tied, softcapped head.

    Parameters are float32 and stacked over layers (paramgolf.model.shapes names them); a pass casts
    them once to `compute_dtype`. `seed` None leaves them empty, to be loaded; `device` computes
    the first values.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        seed: int | None = None,
        *,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.compute_dtype = torch.float32
        self.attend: Attend = attend_sdpa
        self.operations: Operations = REFERENCE
        self.requantise: Callable[[Tensor], Tensor] | None = None  # late QAT: seen by the matrices
        self._frozen: Tensors | None = None
        self._block: Callable[..., State] = block
        self._blend: Callable[..., Tensor] = blended
        self._nll: Callable[..., Tensor] = lanes_nll
        self._add: Callable[[list[Tensor]], Tensor] = add_all
        if seed is None:
            values = {n: torch.empty(shape) for n, shape in shapes(config, vocab_size).items()}
        else:
            values = initial_parameters(config, vocab_size, seed, device or torch.device("cpu"))
        for name, tensor in values.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def compile_blocks(self) -> None:
        """Compile block and head; a kind of block costs one graph, however many its layers."""
        torch._dynamo.config.recompile_limit = GRAPHS
        # FlashAttention-3 is one; without this every start traces and lowers its blocks anew
        torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
        # of a block's sizes: batches of longer documents need no graphs of their own
        torch.compiler.config.dynamic_sources = DOCUMENTS
        self._block = torch.compile(block, dynamic=False)
        self._nll = torch.compile(lanes_nll, dynamic=False)
        if self.config.smear in ("token", "channel"):  # without, one operation is left
            self._blend = torch.compile(blended, dynamic=False)
        self._add = torch.compile(add_all, dynamic=False)

    def untie_repeats(self) -> None:
        """Copy each repeated layer's MLP into the repeat's rows as recurrence begins (#1204)."""
        with torch.no_grad():
            for name in ("up", "down"):
                matrices = self.get_parameter(name)
                for i, layer in enumerate(repeated_layers(self.config)):
                    matrices[self.config.layers + i].copy_(matrices[layer])

    def nll(
        self, tokens_BT: Tensor, targets_BT: Tensor, options: Pass, *, part: Part | None = None
    ) -> Tensor:
        """Return the negative log-likelihood of each target, nats, float32 [B, T].

        `part` restricts the head to some positions: targets and result are then theirs alone.
        """
        lanes, head = self._before_head(tokens_BT, options, part)
        return self._nll(lanes, targets_BT, head, self.operations.nll)

    def logits(self, tokens_BT: Tensor, options: Pass, *, part: Part | None = None) -> Tensor:
        """Return softcapped logits, float32 [B, T, V], of the positions `part` or of all."""
        lanes, head = self._before_head(tokens_BT, options, part)
        return head_logits(head_input(lanes, head), head)

    def _before_head(
        self, tokens_BT: Tensor, options: Pass, part: Part | None
    ) -> tuple[State, Head]:
        """Return the last step's lanes [B, T, d], and the head's weights."""
        tensors = self._cast()
        lanes = self._lanes(tokens_BT, tensors, options)
        if isinstance(part, slice):
            lanes = tuple(x[:, part] for x in lanes)
        elif part is not None:
            lanes = tuple(x.index_select(1, part) for x in lanes)
        adapter = None
        if options.adapters is not None and "head" in options.adapters:
            adapter = Pair(*(x.to(self.compute_dtype)[:, 0] for x in options.adapters["head"]))
        sides = self.get_parameter("softcaps") if self.config.asymmetric_softcap else None
        share = tensors.get("lane_merge")
        head = Head(tensors["embedding"], self.config.softcap, sides, adapter, share)
        if options.tap is not None:
            options.tap("embedding", 0, head_input(lanes, head))
        return lanes, head

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Cast the weights once for all passes of the block; they must stay as they are in it."""
        with torch.no_grad():
            self._frozen = self._cast()
        try:
            yield
        finally:
            self._frozen = None

    def _cast(self) -> Tensors:
        if self._frozen is not None:
            return self._frozen
        parameters: Tensors = dict(self.named_parameters())
        if self.requantise is not None:
            parameters |= {name: self.requantise(parameters[name]) for name in MATRICES}
        tensors = {name: p.to(self.compute_dtype) for name, p in parameters.items()}
        tensors["qkv"] = torch.cat([tensors.pop("q"), tensors.pop("k"), tensors.pop("v")], dim=1)
        return tensors

    def _lanes(self, tokens_BT: Tensor, tensors: Tensors, options: Pass) -> State:
        """Return the output of the last step, one lane or two [B, T, d]."""
        run, blend = self._block, self._blend
        if options.tap is not None:
            run, blend = block, blended
        x0 = embed(tokens_BT, tensors, self.config, bos=BOS, blend=blend)
        shared = self._shared_context(x0, tokens_BT, options)
        extra = value_embedding(tokens_BT, tensors, self.config)
        rows = _Rows(tensors, self.config)
        adapters = self._cast_adapters(options.adapters, len(options.order))
        state: State = (x0,)
        kept: list[State] = []
        copies = FanOut.apply(x0, len(options.order), self._add)
        steps = plan(self.config, options.order)
        for step, adapter, copy in zip(steps, adapters, copies, strict=True):
            weights = rows.of(step)
            context = self._step_context(step, shared, extra, tensors, options)
            context = context._replace(x0=copy, adapters=adapter)
            if self.config.value_residual and step.layer == 0:
                shared = shared._replace(first_values=self._first_values(state, weights, context))
            if step.skip_row is not None and kept:
                context = context._replace(entering=kept.pop())
            state = run(state, weights, context, self._kind(step))
            if step.push:
                kept.append(tuple(map(same_again, state)))
        return state

    def _shared_context(self, x0: Tensor, tokens_BT: Tensor, options: Pass) -> Context:
        config = self.config
        longest, length = options.document_tokens, x0.shape[1]
        sight = [n for n in (length, longest, options.window) if n is not None]
        cos, sin = rotary_table(
            length,
            config.rope_dims,
            config.rope_base,
            trained_length=config.rope_trained_length,
            reach=min(sight),
            device=x0.device,
        )
        segments = options.segments or segments_of(tokens_BT, options)
        return Context(x0, cos, sin, segments=segments)

    def _step_context(
        self, step: Step, shared: Context, extra: Tensor | None, tensors: Tensors, options: Pass
    ) -> Context:
        context = shared
        segments = shared.segments or Segments(None, shared.x0.shape[1])
        # a window as long as its row is none, and attention without one is faster
        if step.window is not None and step.window < segments.longest:
            context = context._replace(segments=segments.within(step.window))
        if step.value_row is not None:
            assert extra is not None
            context = context._replace(
                value_extra=tensors["value_layer_scale"][step.value_row] * extra
            )
        if options.tap is not None:
            context = context._replace(tap=_bind(options.tap, step))
        return context

    def _cast_adapters(
        self, adapters: Mapping[str, Pair] | None, places: int
    ) -> Sequence[Adapters | None]:
        """Return the adapters of each place of the order, in the compute dtype."""
        if adapters is None:
            return [None] * places
        split = {
            name: [x.to(self.compute_dtype).unbind(1) for x in pair]
            for name, pair in adapters.items()
            if name != "head"
        }
        return [
            Adapters(**{name: Pair(a[place], b[place]) for name, (a, b) in split.items()})
            for place in range(places)
        ]

    def _first_values(self, state: State, weights: Weights, context: Context) -> Tensor:
        """Return the raw values of layer 0 [B, T, K, D], which later layers add to theirs."""
        plain = context._replace(first_values=None, tap=None)
        _, n = mix_in(state[0], weights, plain, self._kind_base())
        added = additions(n, weights, plain.adapters)
        return heads_of(n, weights, plain, self._kind_base(), added)[2]

    def _kind_base(self) -> Kind:
        c = self.config
        return Kind(
            c.heads,
            c.kv_heads,
            attention=True,
            xsa=False,
            parallel="none",
            head_gate=c.head_gate,
            head_gate_scale=c.head_gate_scale,
            mlp_slope=c.mlp_slope,
            attend=self.attend,
            operations=self.operations,
        )

    def _kind(self, step: Step) -> Kind:
        parallel = self.config.parallel if step.parallel else "none"
        return self._kind_base()._replace(attention=step.attention, xsa=step.xsa, parallel=parallel)


def segments_of(
    tokens_BT: Tensor, options: Pass, *, multiple: int = BOUNDS_MULTIPLE
) -> Segments | None:
    """Return the parts that attention does not cross by `options`, None where it crosses all."""
    longest = options.document_tokens
    if longest is None:
        rows = Segments(None, tokens_BT.shape[1], options.window)
        return None if options.window is None else rows
    segments = find_segments(tokens_BT, BOS, longest, multiple=multiple)
    return segments._replace(window=options.window)


def _bind(tap: Callable[[str, int, Tensor], None], step: Step) -> Callable[[str, Tensor], None]:
    rows = {"qkv": step.layer, "o": step.layer, "up": step.mlp_row, "down": step.mlp_row}
    return lambda name, x: tap(name, rows[name], x)


class _Rows:
    """The stacked tensors, taken apart once a pass: unbind's backward is one stack."""

    def __init__(self, tensors: Tensors, config: ModelConfig) -> None:
        self._rows: dict[str, Any] = {
            name: tensor.unbind(0)
            for name, tensor in tensors.items()
            if name in Weights._fields and name != "norm_scale"
        }
        self._first_parallel = config.parallel_start
        slots = torch.arange(1, len(tensors["attn_scale"]) + 1, device=tensors["qkv"].device)
        scale = slots.float().rsqrt() if config.layer_scale else torch.ones_like(slots).float()
        self._rows["norm_scale"] = scale.unbind(0)

    def of(self, step: Step) -> Weights:
        """Return the weights of a step."""
        rows = {
            **dict.fromkeys(("qkv", "o"), step.layer),
            **dict.fromkeys(("up", "down"), step.mlp_row),
            **dict.fromkeys(
                ("attn_scale", "mlp_scale", "resid_mix", "q_gain", "norm_scale"), step.slot
            ),
            **dict.fromkeys(("head_gate", "value_mix"), step.layer),
        }
        if step.parallel:
            parallel_row = step.layer - self._first_parallel
            rows |= dict.fromkeys(("lane_keep", "lane_write"), step.layer)
            rows |= dict.fromkeys(("lane_route", "mlp_mix"), parallel_row)
        if step.skip_row is not None:
            rows |= dict.fromkeys(("skip_weight", "skip_gate"), step.skip_row)
        return Weights(
            **{name: self._rows[name][row] for name, row in rows.items() if name in self._rows}
        )
