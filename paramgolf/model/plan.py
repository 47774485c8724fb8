"""What each entry of a layer order does: which weights it uses, which skip, which options.

An order may name a layer more than once (recurrence). Its entries are called virtual layers; the
layers whose matrices they use are physical ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from paramgolf.model.config import ModelConfig, Order


@dataclass(frozen=True, slots=True)
class VirtualLayer:
    """One entry of a layer order, and the rows of the stacked parameters that it uses.

    Attributes:
        layer: the physical layer, which is the row of the attention matrices.
        mlp_row: the row of the MLP matrices, another one where repeats are untied.
        slot: the row of the scales and gains.
        push: its output is kept as a skip for the decoder.
        skip_row: the row of the skip weights, where a kept output is added before the layer.
        attention: it has an attention sublayer.
        xsa: its attention is exclusive (operations.exclusive_self_attention).
        value_row: the row of the value embedding's scale, where that embedding is added.
        parallel: it lies in the part of the network that runs in a parallel form.
        window: how many positions its attention sees, None: all.
    """

    layer: int
    mlp_row: int
    slot: int
    push: bool
    skip_row: int | None
    attention: bool
    xsa: bool
    value_row: int | None
    parallel: bool
    window: int | None


def plan(config: ModelConfig, order: Order) -> tuple[VirtualLayer, ...]:
    """Return the virtual layers of `order`.

    The first half of the order (rounded down) is the encoder, whose outputs are pushed on a stack.
    Decoder layer j pops the newest of them while there are rows of skip weights. With virtual
    scalars (pg#1204) scales, gains and the value embedding go by the position in the order instead
    of the physical layer.
    """
    encoder = len(order) // 2
    skips = 0 if config.skips == "none" else min(encoder, config.skip_count)
    seen: set[int] = set()
    repeats, virtual_layers = 0, []
    for position, layer in enumerate(order):
        slot = position if config.virtual_scalars else layer
        mlp_row = layer
        if layer in seen and config.untied_repeats:
            mlp_row, repeats = config.layers + repeats, repeats + 1
        seen.add(layer)
        values = config.value_embedding_layers
        decoder_position = position - encoder
        virtual_layers.append(
            VirtualLayer(
                layer=layer,
                mlp_row=mlp_row,
                slot=slot,
                push=position < encoder,
                skip_row=decoder_position if 0 <= decoder_position < skips else None,
                attention=config.first_attention or layer > 0,
                xsa=position >= len(order) - config.xsa_layers,
                value_row=values.index(slot) if slot in values else None,
                parallel=config.parallel != "none" and layer >= config.parallel_start,
                window=config.window if layer in config.window_layers else None,
            )
        )
    return tuple(virtual_layers)


def repeated_layers(config: ModelConfig) -> tuple[int, ...]:
    """Return, for each MLP row after the layers' own, the layer that it is copied from."""
    longest = max(config.orders, key=len)
    return tuple(
        virtual.layer for virtual in plan(config, longest) if virtual.mlp_row >= config.layers
    )
