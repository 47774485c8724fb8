"""Check that quantizing cost what it should, by running the network on a calibration text.

The Hessians predict what errors do to outputs; here the same is measured on one text that calibrate
kept. A matrix with a larger error than it should have is reported with the likeliest cause. So is a
network that diverges as a whole (pg#1818 shipped one that went from 1.10 to 3.46 bits per byte).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paramgolf.codec.container import dequantized
from paramgolf.codec.dequantize import finer_factor
from paramgolf.progress import say
from paramgolf.quant.calibrate import trained_network
from paramgolf.quant.divergence import divergence, log_probabilities
from paramgolf.quant.grids import reached
from paramgolf.quant.row_grid import largest_integer
from paramgolf.quant.trained import FAMILIES, Trained, stacked
from paramgolf.runtime import Runtime

MOST_TIMES = 3.0  # the error that the Hessian predicts; a single text differs from all by less
SMALL = 0.001  # of an output's energy: less is no fault, whatever was foreseen
MOST_AT_ENDS = 0.01  # of a matrix's integers that may lie at the ends of their range
MOST_SHARE = 0.25  # of an output's energy that a matrix's error may take
MOST_DIVERGENCE = 0.1  # nats per token: several times what published settings cost

Reports = list[dict[str, Any]]


def add_health(
    trained: Trained,
    tensors: dict[str, Tensor],
    reports: Reports,
    text_T: Tensor,
    runtime: Runtime,
) -> float:
    """Add `checked_error` and `fault` to each matrix's report; return the divergence.

    checked_error is the share of its output's energy that quantizing takes on the text, int64 [T];
    fault says what is wrong with the matrix, or is None. Faults are said, too. The divergence is
    that of the quantized network's tokens from the trained one's (Kullback-Leibler), nats each.
    """
    state = dequantized(tensors)
    network = trained_network(trained, replace(runtime, compile=False))
    tried = Tried(trained, state, {report["name"] for report in reports}, runtime.device)
    text_BT = text_T.to(runtime.device).unsqueeze(0)
    right = log_probabilities(network, text_BT, tried.tap)
    for report in reports:
        name, layer = report["name"], report["layer"]
        lost, whole = tried.energies[name][:, layer].tolist()
        report["checked_error"] = lost / whole if whole else 0.0
        used = int((tried.largest[name][layer] > 0).sum())
        report["fault"] = _fault(report, used, _share_at_ends(tensors, report))
        if report["fault"]:
            say(f"quantize: {name}, layer {layer}: {report['fault']}")
    network.load_state_dict(state)
    diverging = divergence(right, log_probabilities(network, text_BT)).item()
    if diverging > MOST_DIVERGENCE:
        say(f"quantize: tokens diverge by {diverging:.3f} nats each from the trained network's")
    return diverging


class Tried:
    """What matrices and their errors make of the inputs that a pass shows, by parameter.

    Attributes:
        energies: the sum of the squares of the outputs of errors and of matrices, [2, layers].
        largest: the largest magnitude of each input, [layers, C].
    """

    def __init__(
        self, trained: Trained, state: dict[str, Tensor], names: set[str], device: torch.device
    ) -> None:
        self._names = {family: names.intersection(own) for family, own in FAMILIES.items()}
        self._pairs = {}
        for name in names:
            weight = stacked(trained.state[name])
            self._pairs[name] = torch.stack([weight - stacked(state[name]), weight]).to(device)
        self.energies = {name: pair.new_zeros(pair.shape[:2]) for name, pair in self._pairs.items()}
        self.largest = {name: torch.zeros_like(pair[0, :, 0]) for name, pair in self._pairs.items()}

    def tap(self, family: str, index: int, x: Tensor) -> None:
        """Add a matrix product's input (model.network.Pass)."""
        rows = x.flatten(0, -2).float()
        for name in self._names[family]:
            outputs = rows @ self._pairs[name][:, index].transpose(1, 2)
            self.energies[name][:, index] += outputs.square().sum((1, 2))
            largest = self.largest[name][index]
            torch.maximum(largest, rows.abs().amax(0), out=largest)


def _share_at_ends(tensors: dict[str, Tensor], report: dict[str, Any]) -> float:
    """Return the share of a matrix's integers that are the largest of their grid."""
    name, layer = report["name"], report["layer"]
    integers = stacked(tensors[f"{name}.integers"])[layer]
    limit = torch.tensor(float(largest_integer(report["bits"])))
    if f"{name}.finer" in tensors:
        factor = finer_factor(tensors[f"{name}.finer"], integers.shape[1])
        limit = reached(limit, factor[layer])
    return float((integers.abs() >= limit).float().mean())


def _fault(report: dict[str, Any], used: int, at_ends: float) -> str | None:
    """Return what a matrix costs and the likeliest cause, or None where that is what it should."""
    found, foreseen = report["checked_error"], report["output_error"]
    surprising = found > MOST_TIMES * foreseen and found > SMALL
    if not surprising and found <= MOST_SHARE:
        return None
    inputs, dead = report["shape"][1], report["dead_columns"]
    if used > inputs - dead:
        cause = f"{dead} of {inputs} inputs are dead in its Hessian, {inputs - used} in the text"
    elif at_ends > MOST_AT_ENDS:
        cause = f"{at_ends:.1%} of its integers lie at the ends of their grid; raise its clip"
    elif surprising:
        cause = "its Hessian is of another order, or of other inputs"
    else:
        cause = "its steps are too coarse; give it more bits, or a smaller clip"
    return f"quantizing takes {found:.1%} of its output, {foreseen:.1%} was foreseen: {cause}"
