"""Check that quantizing cost what it should, by running the network on calibration texts.

The Hessians predict what errors do to outputs; here the same is measured on some of the texts that
they are means over. A matrix with a larger error than it should have is reported with the likeliest
cause. So is a network that diverges as a whole (pg#1818 shipped one that went from 1.10 to 3.46
bits per byte).

A text of a rare kind has large errors in any sound matrix, since GPTQ puts errors where few inputs
are. So a matrix is at fault only where texts with half of its output's energy each lose MOST_TIMES
what was foreseen for all. By Markov's inequality no more than 1 / MOST_TIMES of the energy can lie
in such texts where the mean is right.
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

TEXTS = 16  # that are tried
MOST_TIMES = 3.0  # the share of error that the Hessian predicts
SMALL = 0.001  # of an output's energy: less is no fault, whatever was foreseen
MOST_AT_ENDS = 0.01  # of a matrix's integers that may lie at the ends of their range
MOST_SHARE = 0.25  # of an output's energy that a matrix's error may take
MOST_DIVERGENCE = 0.1  # nats per token: several times what published settings cost

Reports = list[dict[str, Any]]


def add_health(
    trained: Trained,
    tensors: dict[str, Tensor],
    reports: Reports,
    texts_NT: Tensor,
    runtime: Runtime,
) -> float:
    """Add `checked_error` and `fault` to each matrix's report; return the divergence.

    checked_error is the share of its output's energy that quantizing takes on TEXTS of the texts,
    int64 [N, T]; fault says what is wrong with the matrix, or is None. Faults are said, too. The
    divergence is that of the quantized network's tokens from the trained one's (Kullback-Leibler),
    nats each.
    """
    state, runtime = dequantized(tensors), replace(runtime, compile=False)
    network = trained_network(trained, runtime)
    quantized = trained_network(replace(trained, state=state), runtime)
    tried = Tried(trained, state, {report["name"] for report in reports}, runtime.device)
    # spread over all, which come in the order of the training tokens
    chosen = torch.linspace(0, len(texts_NT) - 1, min(len(texts_NT), TEXTS)).long()
    divergences = []
    for text_BT in texts_NT[chosen].to(runtime.device).split(1):
        tried.begin_text()
        right = log_probabilities(network, text_BT, tried.tap)
        divergences.append(divergence(right, log_probabilities(quantized, text_BT)).item())
    for report in reports:
        name, layer = report["name"], report["layer"]
        lost, whole = torch.stack(tried.energies[name])[:, :, layer].double().unbind(1)
        report["checked_error"] = _share(lost, whole)
        beyond = lost > MOST_TIMES * report["output_error"] * whole
        surprising = _share(whole[beyond], whole) > 0.5 and report["checked_error"] > SMALL
        used = int((tried.largest[name][layer] > 0).sum())
        at_ends = _share_at_ends(tensors, report)
        report["fault"] = _fault(report, used, at_ends, surprising=surprising)
        if report["fault"]:
            say(f"quantize: {name}, layer {layer}: {report['fault']}")
    diverging = sum(divergences) / len(divergences)
    if diverging > MOST_DIVERGENCE:
        say(f"quantize: tokens diverge by {diverging:.3f} nats each from the trained network's")
    return diverging


class Tried:
    """What matrices and their errors make of the inputs that passes show, by parameter.

    Attributes:
        energies: of each text the sum of the squares of the outputs of errors and of matrices,
            [2, layers].
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
        self.energies: dict[str, list[Tensor]] = {name: [] for name in names}
        self.largest = {name: torch.zeros_like(pair[0, :, 0]) for name, pair in self._pairs.items()}

    def begin_text(self) -> None:
        """Count what follows as another text."""
        for name, pair in self._pairs.items():
            self.energies[name].append(pair.new_zeros(pair.shape[:2]))

    def tap(self, family: str, index: int, x: Tensor) -> None:
        """Add a matrix product's input (model.network.Pass)."""
        rows = x.flatten(0, -2).float()
        for name in self._names[family]:
            outputs = rows @ self._pairs[name][:, index].transpose(1, 2)
            self.energies[name][-1][:, index] += outputs.square().sum((1, 2))
            largest = self.largest[name][index]
            torch.maximum(largest, rows.abs().amax(0), out=largest)


def _share(part: Tensor, whole: Tensor) -> float:
    """Return the share of the sum of `whole` that the sum of `part` is; 0 of nothing."""
    total = whole.sum().item()
    return part.sum().item() / total if total else 0.0


def _share_at_ends(tensors: dict[str, Tensor], report: dict[str, Any]) -> float:
    """Return the share of a matrix's integers that are the largest of their grid."""
    name, layer = report["name"], report["layer"]
    integers = stacked(tensors[f"{name}.integers"])[layer]
    limit = torch.tensor(float(largest_integer(report["bits"])))
    if f"{name}.finer" in tensors:
        factor = finer_factor(tensors[f"{name}.finer"], integers.shape[1])
        limit = reached(limit, factor[layer])
    return float((integers.abs() >= limit).float().mean())


def _fault(report: dict[str, Any], used: int, at_ends: float, *, surprising: bool) -> str | None:
    """Return what a matrix costs and the likeliest cause, or None where that is what it should."""
    found, foreseen = report["checked_error"], report["output_error"]
    if not surprising and found <= MOST_SHARE:
        return None
    inputs, dead = report["shape"][1], report["dead_columns"]
    if used > inputs - dead:
        cause = f"{dead} of {inputs} inputs are dead in its Hessian, {inputs - used} in the texts"
    elif at_ends > MOST_AT_ENDS:
        cause = f"{at_ends:.1%} of its integers lie at the ends of their grid; raise its clip"
    elif surprising:
        cause = "its Hessian is of another order, or of other inputs"
    else:
        cause = "its steps are too coarse; give it more bits, or a smaller clip"
    return f"quantizing takes {found:.1%} of its output, {foreseen:.1%} was foreseen: {cause}"
