"""Steps by which every weight's error costs the loss the same: precision under one byte budget."""

from __future__ import annotations

import math

from torch import Tensor

SUFFIX = ".sensitivity"  # of the tensors that calibrate adds to the Hessians
MOST_CHANGE = 16.0
LEAST_COST = 1e-30


def balanced_scales(
    scales: dict[str, Tensor], costs: dict[str, Tensor], sizes: dict[str, int], share: float
) -> dict[str, Tensor]:
    """Return scales under which every weight's error costs the loss the same, float32.

    Bytes fall by a bit a weight with each doubling of its step, so at equal bytes the loss is least
    where all weights cost the same: steps go with 1 / sqrt(cost), `costs` [N, R] being those of an
    error of 1 in each of the `sizes` weights of a row. All steps share one factor, by which the
    bytes stay what they are under `scales` [N, R]. `share` 0..1 goes part of the way, in
    logarithms. No step leaves 1 / MOST_CHANGE to MOST_CHANGE times what it was.
    """
    logs = {name: scale.double().log2() for name, scale in scales.items()}
    wanted = {name: -0.5 * costs[name].double().clamp_min(LEAST_COST).log2() for name in scales}
    weights = sum(sizes[name] * logs[name].numel() for name in scales)
    surplus = sum(sizes[name] * float((logs[name] - wanted[name]).sum()) for name in scales)
    most = math.log2(MOST_CHANGE)
    return {
        name: (log + (share * (wanted[name] + surplus / weights - log)).clamp(-most, most))
        .exp2()
        .float()
        for name, log in logs.items()
    }
