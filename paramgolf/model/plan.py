"""What happens at each place of a layer order: which weights, which skip, which options."""

from __future__ import annotations

from dataclasses import dataclass

from paramgolf.model.config import ModelConfig, Order


@dataclass(frozen=True, slots=True)
class Step:
    """One place of an order.

    `layer` is the row of the attention matrices, `mlp_row` of the MLP matrices, `slot` of the
    scales and gains. `push` keeps this step's output for the decoder; `skip_row` says that a kept
    output enters before the step, weighted by that row. `value_row` is the row of the value
    embedding's scale. `parallel` means that the layer is in the parallel part. `window` is how many
    positions its attention sees, None: all.
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


def plan(config: ModelConfig, order: Order) -> tuple[Step, ...]:
    """Return the steps of `order`.

    The first half of the order (rounded down) is the encoder: it pushes. Decoder step j pops the
    newest kept output while rows of skip weights last. With virtual scalars (#1204) the place in
    the order, not the layer, owns scales, gains and the value embedding.
    """
    encoder = len(order) // 2
    skips = 0 if config.skips == "none" else min(encoder, config.skip_count)
    seen: set[int] = set()
    repeats, steps = 0, []
    for place, layer in enumerate(order):
        slot = place if config.virtual_scalars else layer
        mlp_row = layer
        if layer in seen and config.untied_repeats:
            mlp_row, repeats = config.layers + repeats, repeats + 1
        seen.add(layer)
        values = config.value_embedding_layers
        decoder_step = place - encoder
        steps.append(
            Step(
                layer=layer,
                mlp_row=mlp_row,
                slot=slot,
                push=place < encoder,
                skip_row=decoder_step if 0 <= decoder_step < skips else None,
                attention=config.first_attention or layer > 0,
                xsa=place >= len(order) - config.xsa_layers,
                value_row=values.index(slot) if slot in values else None,
                parallel=config.parallel != "none" and layer >= config.parallel_start,
                window=config.window if layer in config.window_layers else None,
            )
        )
    return tuple(steps)


def repeated_layers(config: ModelConfig) -> tuple[int, ...]:
    """Return, for each MLP row after the layers' own, the layer that it is copied from."""
    longest = max(config.orders, key=len)
    steps = plan(config, longest)
    return tuple(step.layer for step in steps if step.mlp_row >= config.layers)
