"""Which matrices will get more bits, before calibration: the traces expected of the Hessians.

The input of q, k, v and up is an RMSNorm times a known scale, so the traces of their Hessians are
known: the width times the scale squared, summed over the passes. Those of o and down depend on
what is learned; their order of size follows the same scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from paramgolf.model.config import ModelConfig
from paramgolf.model.plan import plan
from paramgolf.model.shapes import MATRICES, MLP, shapes
from paramgolf.quant.allocation import Bits, layer_bits
from paramgolf.quant.config import QuantizeConfig

# traces of o and down as shares of q's and up's of the same layer: 0.3 to 0.8, and 0.2 to 2.7, in
# the trained sample; how far they may be off in another network
LEARNED = {"o": 0.5, "down": 1.0}
DOUBT = 4.0


def expected_bits(
    model: ModelConfig, quantize: QuantizeConfig, learned: dict[str, float] = LEARNED
) -> Bits:
    """Return the bits that each block matrix is expected to get, by parameter and layer.

    `learned` is the trace of o and of down as a share of that of q and of up. Matrices that no pass
    reads are left out: quantize makes zeros of them, which cost nothing.
    """
    traces = expected_traces(model, learned)
    bits = layer_bits(traces, model, quantize)
    return {
        name: tuple(width for width, trace in zip(bits[name], of_layers, strict=True) if trace)
        for name, of_layers in traces.items()
    }


def other_allocations(model: ModelConfig, quantize: QuantizeConfig) -> Iterator[Bits]:
    """Yield what the traces of o and down lead to where they are DOUBT times more or less."""
    for doubts in itertools.product((1 / DOUBT, 1.0, DOUBT), repeat=len(LEARNED)):
        shares = (share * doubt for share, doubt in zip(LEARNED.values(), doubts, strict=True))
        yield expected_bits(model, quantize, dict(zip(LEARNED, shares, strict=True)))


def expected_traces(model: ModelConfig, learned: dict[str, float]) -> dict[str, list[float]]:
    """Return the expected trace of each block matrix's Hessian, by parameter and layer."""
    rows = {name: shape[0] for name, shape in shapes(model, vocab_size=1).items()}
    traces = {name: [0.0] * rows[name] for name in MATRICES}
    for virtual in plan(model, model.orders[-1]):
        trace = model.width / (virtual.slot + 1) if model.layer_scale else float(model.width)
        for name in MATRICES:
            row = virtual.mlp_row if name in MLP else virtual.layer
            if virtual.attention or name in MLP:
                traces[name][row] += learned.get(name, 1.0) * trace
    return traces
