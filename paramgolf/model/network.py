"""The network: stacked parameters, and one forward pass for training, calibration and evaluation.

Shapes: B rows, T tokens, d width, H query heads, K key and value heads, D channels per head, V
vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from paramgolf.data.special_tokens import BOS
from paramgolf.model.adapters import layer_adapters
from paramgolf.model.attention import BOUNDS_MULTIPLE, Segments, find_segments, rotary_table
from paramgolf.model.backend import Backend, backend_for
from paramgolf.model.block import (
    Context,
    Kind,
    Lanes,
    Pair,
    Positions,
    Weights,
    adapter_outputs,
    at,
    block,
    mix_and_norm,
    project_heads,
)
from paramgolf.model.config import ModelConfig, Order
from paramgolf.model.embedding import embed, smear_and_norm, value_embedding
from paramgolf.model.gradients import FanOut, distinct
from paramgolf.model.head import Allowed, Head, Mask, Second, head_input, head_logits
from paramgolf.model.init import initial_parameters
from paramgolf.model.plan import VirtualLayer, plan, repeated_layers
from paramgolf.model.rows import Rows
from paramgolf.model.shapes import FROZEN, MATRICES, MLP, PROJECTIONS, shapes
from paramgolf.runtime import Runtime

NO_TOKEN = -1
Tensors = dict[str, Tensor]


class Midway(NamedTuple):
    """A pass that has run the first `steps` layers of its order: all that the others read.

    x0 [B, T, d] are the normalized embeddings, `skips` the outputs of layers that none has popped
    yet, the newest last, `values` [B, T, kv] the value embedding, `first_values` [B, T, K, D] those
    of layer 0; None where the network has none. In the compute dtype.
    """

    steps: int
    x0: Tensor
    lanes: Lanes
    skips: tuple[Lanes, ...] = ()
    values: Tensor | None = None
    first_values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """Options of one forward pass.

    Attributes:
        order: the layer order.
        tap: is shown (family, row, x), the input of each matrix product: qkv, o, up, down, and
            embedding (the head's). Nothing is compiled then.
        document_tokens: attention stays inside a document, and sees at most so many tokens of it.
        adapters: low-rank additions by name (the fields of Adapters, and head): rows first, then
            virtual layers; if these are fewer than the order has, they are its last ones.
        window: a position attends to no more than so many, itself among them.
        segments: those of `document_tokens` or `window`, where they were found beforehand.
        midway: what the first layers made of the tokens; None: they run.
        second: what the loss of training wants predicted beside the targets.
    """

    order: Order
    tap: Callable[[str, int, Tensor], None] | None = None
    document_tokens: int | None = None
    adapters: Mapping[str, Pair] | None = None
    window: int | None = None
    segments: Segments | None = None
    midway: Midway | None = None
    second: Second | None = None


class Network(nn.Module):
    """A decoder-only transformer with a tied, softcapped head.

    Parameters are float32 and stacked over layers (paramgolf.model.shapes names them); a pass casts
    them once to the dtype of `backend`. `seed` None leaves them empty, to be loaded; `device`
    computes the first values.
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
        self.backend = Backend()
        self._mask: Mask | None = None
        self._frozen: Tensors | None = None
        if seed is None:
            values = {n: torch.empty(shape) for n, shape in shapes(config, vocab_size).items()}
        else:
            values = initial_parameters(config, vocab_size, seed, device or torch.device("cpu"))
        for name, tensor in values.items():
            self.register_parameter(name, nn.Parameter(tensor))
        # frozen parameters never learn, whoever switches gradients on and off
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> Network:
        """Let autograd record what is done to the parameters, or not; never to frozen ones."""
        for name, p in self.named_parameters():
            p.requires_grad_(requires_grad and name not in FROZEN)
        return self

    def with_backend(self, backend: Backend) -> Network:
        """Return a network that computes by `backend`, with the same parameters (not copies)."""
        # shallow: both networks hold one dictionary of parameters
        other = copy.copy(self)
        other.backend, other._frozen = backend, None
        return other

    def on(self, runtime: Runtime) -> Network:
        """Move the parameters to this process's device; return a network that computes there."""
        self.to(runtime.device)
        return self.with_backend(backend_for(runtime, self.config))

    def with_mask(self, mask: Mask) -> Network:
        """Return a network that gives no probability to what `mask` forbids; same parameters.

        The mask is moved to the device of the parameters.
        """
        other, device = self.with_backend(self.backend), self.get_parameter("embedding").device
        other._mask = mask._replace(words=mask.words.to(device), marks=mask.marks.to(device))
        return other

    def untie_repeats(self) -> None:
        """Copy each repeated layer's MLP into the repeat's rows as recurrence begins (pg#1204)."""
        with torch.no_grad():
            for name in MLP:
                matrices = self.get_parameter(name)
                for i, layer in enumerate(repeated_layers(self.config)):
                    # they begin as copies and learn apart from then on
                    matrices[self.config.layers + i].copy_(matrices[layer])

    def nll(
        self, tokens_BT: Tensor, targets_BT: Tensor, options: Pass, *, part: Positions | None = None
    ) -> Tensor:
        """Return the negative log-likelihood of each target, nats, float32 [B, T].

        `part` restricts the head, and what the last layer does after attention, to some positions:
        targets and result are then theirs alone.
        """
        lanes, head = self.final_lanes(tokens_BT, options, part)
        head = head._replace(second=options.second)
        return self.backend.nll(lanes, targets_BT, head, self.backend.operations.nll)

    def logits(self, tokens_BT: Tensor, options: Pass, *, part: Positions | None = None) -> Tensor:
        """Return softcapped logits, float32 [B, T, V], of the positions `part` or of all."""
        lanes, head = self.final_lanes(tokens_BT, options, part)
        return head_logits(head_input(lanes, head), head)

    def final_lanes(
        self, tokens_BT: Tensor, options: Pass, part: Positions | None
    ) -> tuple[Lanes, Head]:
        """Return the last layer's lanes [B, T, d] at the positions `part`, and the head's weights.

        Every pass goes through here: what comes after reads lanes and head alone.
        """
        tensors = self._cast()
        wanted = _indices(part, tokens_BT)
        lanes = self._run(tokens_BT, tensors, options, len(options.order), wanted).lanes
        adapter = None
        if options.adapters is not None and "head" in options.adapters:
            # the head runs once: of its dimension of virtual layers there is one
            adapter = Pair(*(x.to(self.backend.dtype)[:, 0] for x in options.adapters["head"]))
        # the caps stay in float32, as the logits are
        sides = self.get_parameter("softcaps") if self.config.asymmetric_softcap else None
        share = tensors.get("lane_merge")
        allowed = None
        if self._mask is not None:
            allowed = Allowed(self._mask.words, at(self._mask.states(tokens_BT), part))
        head = Head(tensors["embedding"], self.config.softcap, sides, adapter, share, allowed)
        if options.tap is not None:
            options.tap("embedding", 0, head_input(lanes, head))
        return lanes, head

    def midway(self, tokens_BT: Tensor, order: Order, steps: int) -> Midway:
        """Return what the first `steps` layers of `order` make of tokens, for Pass.midway."""
        return self._run(tokens_BT, self._cast(), Pass(order), steps)

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
        # cast once for many passes: a cast reads and writes all parameters
        if self._frozen is not None:
            return self._frozen
        parameters: Tensors = dict(self.named_parameters())
        if self.backend.mix_heads is not None:
            parameters |= self.backend.mix_heads(parameters)
        # of the float32 weights, as the quantizer will see them
        if self.backend.fake_quant is not None:
            rounded = (n for n in (*MATRICES, *PROJECTIONS) if n in parameters)
            parameters |= {n: self.backend.fake_quant(n, parameters[n]) for n in rounded}
        tensors = {name: p.to(self.backend.dtype) for name, p in parameters.items()}
        # one matrix product for three
        tensors["qkv"] = torch.cat([tensors.pop("q"), tensors.pop("k"), tensors.pop("v")], dim=1)
        return tensors

    def _embedded(self, tokens_BT: Tensor, tensors: Tensors, options: Pass) -> Midway:
        """Return the state of a pass before its first layer."""
        smear = self.backend.smear if options.tap is None else smear_and_norm
        bos = BOS if self.config.bos_mask else NO_TOKEN
        # x0 lives through the whole pass: every block may mix it into its lanes
        x0 = embed(tokens_BT, tensors, self.config, bos=bos, smear=smear)
        values = value_embedding(tokens_BT, tensors, self.config)
        return Midway(0, x0, (x0,), values=values)

    def _run(
        self,
        tokens_BT: Tensor,
        tensors: Tensors,
        options: Pass,
        stop: int,
        part: Tensor | None = None,
    ) -> Midway:
        """Run the layers of the order, from the first or the pass's `midway` to `stop`, exclusive.

        What the order's last layer does after attention is done at `part` alone.
        """
        state = options.midway or self._embedded(tokens_BT, tensors, options)
        shared = self._shared_context(state, tokens_BT, options)
        # a tap is not called by compiled code
        run = self.backend.block if options.tap is None else block
        rows, span = Rows(tensors, self.config), slice(state.steps, stop)
        virtual_layers = plan(self.config, options.order)
        adapters = layer_adapters(options.adapters, len(options.order), self.backend.dtype)
        # a copy for each reader, whose gradients are then summed at once
        copies = FanOut.apply(state.x0, stop - state.steps, self.backend.add)  # type: ignore[no-untyped-call]
        steps = zip(virtual_layers[span], adapters[span], copies, strict=True)
        lanes, skips = state.lanes, list(state.skips)
        for virtual, adapter, x0_copy in steps:
            weights, kind = rows.of(virtual), self._kind(virtual)
            context = self._layer_context(virtual, shared, state.values, tensors, options)
            context = context._replace(x0=x0_copy, adapters=adapter)
            # of the newest visit of layer 0, where an order repeats it
            if self.config.value_residual and virtual.layer == 0:
                shared = shared._replace(first_values=_values(lanes, weights, context, kind))
            if virtual.skip_row is not None and skips:
                context = context._replace(skip=skips.pop())
            if virtual is virtual_layers[-1]:
                context = context._replace(part=part)
            before, lanes = lanes, run(lanes, weights, context, kind)
            if virtual.repeat_row is not None:  # x + s (B(x) - x), s by channel (pg#1392)
                step = tensors["repeat_step"][virtual.repeat_row]
                before = tuple(at(x, context.part) for x in before)
                lanes = tuple(x.lerp(y, step) for x, y in zip(before, lanes, strict=True))
            if virtual.push:
                skips.append(tuple(map(distinct, lanes)))
        return Midway(stop, state.x0, lanes, tuple(skips), state.values, shared.first_values)

    def _shared_context(self, state: Midway, tokens_BT: Tensor, options: Pass) -> Context:
        config, x0 = self.config, state.x0
        longest, length = options.document_tokens, x0.shape[1]
        # no position attends further back than its row, its document or its window
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
        return Context(x0, cos, sin, first_values=state.first_values, segments=segments)

    def _layer_context(
        self,
        virtual: VirtualLayer,
        shared: Context,
        values: Tensor | None,
        tensors: Tensors,
        options: Pass,
    ) -> Context:
        context = shared
        segments = shared.segments or Segments(None, shared.x0.shape[1])
        # a window as long as its row is none, and attention without one is faster
        if virtual.window is not None and virtual.window < segments.longest:
            context = context._replace(segments=segments.within(virtual.window))
        if virtual.value_row is not None:
            assert values is not None
            # one table for all layers, at a strength of its own in each
            scale = tensors["value_layer_scale"][virtual.value_row]
            context = context._replace(value_embedding=scale * values)
        if options.tap is not None:
            context = context._replace(tap=_bind(options.tap, virtual))
        return context

    def _kind(self, virtual: VirtualLayer) -> Kind:
        config, backend = self.config, self.backend
        xsa = config.xsa_form if virtual.xsa else "none"
        return Kind(
            config.heads,
            config.kv_heads,
            virtual.kv_copies if backend.copy_keys else 1,
            attention=virtual.attention,
            xsa=xsa,
            parallel=config.parallel if virtual.parallel else "none",
            head_gate=config.head_gate,
            head_gate_scale=config.head_gate_scale,
            mlp_slope=config.mlp_slope,
            attend=backend.attend_to_others if xsa == "own_term" else backend.attend,
            operations=backend.operations,
        )


def _values(lanes: Lanes, weights: Weights, context: Context, kind: Kind) -> Tensor:
    """Return the raw values of layer 0 [B, T, K, D], which later layers mix into theirs."""
    # the tap sees this product when the block itself runs it
    plain = context._replace(first_values=None, tap=None)
    _, n = mix_and_norm(lanes[0], weights, plain, kind)
    adapted = adapter_outputs(n, weights, plain.adapters)
    return project_heads(n, weights, plain, kind, adapted)[2]


def _indices(part: Positions | None, tokens_BT: Tensor) -> Tensor | None:
    """Return positions as int64 [k], one type for compiled code; None for all."""
    if not isinstance(part, slice):
        return part
    length = tokens_BT.shape[1]
    span = part.indices(length)
    return None if span == (0, length, 1) else torch.arange(*span, device=tokens_BT.device)


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


def _bind(
    tap: Callable[[str, int, Tensor], None], virtual: VirtualLayer
) -> Callable[[str, Tensor], None]:
    attention, mlp = virtual.layer, virtual.mlp_row
    return lambda name, x: tap(name, attention if name in ("qkv", "o") else mlp, x)
