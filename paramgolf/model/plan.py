"""What each entry of a layer order does: which weights it uses, which skip, which options.

An order may name a layer more than once (recurrence). Its entries are called virtual layers; the
layers whose matrices they use are physical ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from paramgolf.model.config import ModelConfig, Order


@dataclass(frozen=True, slots=True)
class VirtualLayer:
    """One entry of a layer order, and the rows of the stacked parameters that it uses.

    Attributes:
        layer: the physical layer, which is the row of the attention matrices.
        mlp_row: the row of the MLP matrices, another one where repeats are untied.
        repeat_row: the row of the step of a repeated run, None: it takes the whole step.
        slot: the row of the scales and gains.
        push: its output is kept as a skip for the decoder.
        skip_row: the row of the skip weights, where a kept output is added before the layer.
        attention: it has an attention sublayer.
        xsa: its attention is exclusive (operations.exclusive_self_attention).
        value_row: the row of the value embedding's scale, where that embedding is added.
        kv_copies: how often attention can be given each key and value head, one a query head; once
            where more is added to the values, which is of their own heads.
        parallel: it lies in the part of the network that runs in a parallel form.
        window: how many positions its attention sees, None: all.
    """

    layer: int
    mlp_row: int
    repeat_row: int | None
    slot: int
    push: bool
    skip_row: int | None
    attention: bool
    xsa: bool
    value_row: int | None
    kv_copies: int
    parallel: bool
    window: int | None


def plan(config: ModelConfig, order: Order) -> tuple[VirtualLayer, ...]:
    """Return the virtual layers of `order`.

    The first half of the order (rounded down) is the encoder, whose outputs are pushed on a stack.
    Decoder layer j pops the newest of them while there are rows of skip weights. Where repeats take
    no part in skips (pg#1392, pg#1499) both halves are of the first runs. With virtual scalars
    (pg#1204) scales, gains and the value embedding go by the position in the order instead of the
    physical layer; so does XSA, by that in the longest order, in all phases of training.
    """
    # a U-Net in depth: the last encoder output meets the first decoder layer
    encoder = len(config.encoder(order))
    skips = 0 if config.skips == "none" else min(encoder, config.skip_count)
    lanes = config.parallel not in ("none", "single")
    values = config.value_embedding_layers
    virtual_layers: list[VirtualLayer] = []
    for position, layer in enumerate(order):
        slot = position if config.virtual_scalars else layer
        parallel = config.parallel != "none" and layer >= config.parallel_start
        seen = set(order[:position])
        again, repeats = layer in seen, position - len(seen)
        takes_part = config.repeat_skips or not again
        # of the runs that take part, those before this one; the decoder's first pops row 0
        row = (position if config.repeat_skips else len(seen)) - encoder
        # skips may end where the lanes part (pg#1296)
        parted = lanes and any(earlier.parallel for earlier in virtual_layers)
        dropped = parted and not config.lane_skips
        value_row = values.index(slot) if slot in values else None
        apart = value_row is None and not config.value_residual
        virtual_layers.append(
            VirtualLayer(
                layer=layer,
                mlp_row=config.layers + repeats if again and config.untied_repeats else layer,
                repeat_row=repeats if again and config.repeat_step is not None else None,
                slot=slot,
                push=takes_part and row < 0,
                skip_row=row if takes_part and 0 <= row < skips and not dropped else None,
                attention=config.first_attention or layer > 0,
                # not by the position in this order: a layer is exclusive in all phases or in none
                xsa=slot >= config.slots - config.xsa_layers,
                value_row=value_row,
                kv_copies=config.heads // config.kv_heads if apart else 1,
                parallel=parallel,
                window=config.window if layer in config.window_layers else None,
            )
        )
    return tuple(virtual_layers)


def rows_by_phase(config: ModelConfig) -> dict[str, tuple[tuple[slice, int], ...]]:
    """Return, for stacked parameters that virtual layers own rows of, which rows are used when.

    Rows come with the phase of training that is the first to use them; those that none uses are
    left out. Phase 0 runs each layer once, and later ones add rows at the end.
    """
    first: dict[str, dict[int, int]] = {}
    for phase, order in enumerate(config.orders):
        for virtual in plan(config, order):
            owned = {"up": virtual.mlp_row, "down": virtual.mlp_row}
            owned |= {"mlp_scale": virtual.slot, "resid_mix": virtual.slot}
            if virtual.attention:
                owned |= {"attn_scale": virtual.slot, "q_gain": virtual.slot}
            for name, row in owned.items():
                first.setdefault(name, {}).setdefault(row, phase)
    found = {}
    for name, phases in first.items():
        runs = itertools.groupby(sorted(phases), phases.__getitem__)
        bounds = [(phase, [*rows]) for phase, rows in runs]
        found[name] = tuple((slice(rows[0], rows[-1] + 1), phase) for phase, rows in bounds)
    return found


def repeated_layers(config: ModelConfig) -> tuple[int, ...]:
    """Return, for each MLP row after the layers' own, the layer that it is copied from."""
    longest = max(config.orders, key=len)
    return tuple(
        virtual.layer for virtual in plan(config, longest) if virtual.mlp_row >= config.layers
    )
