"""Auto-fit: find the finest clips with which the artifact, code included, fits its limit.

The search is for one number, by which all clips are multiplied. Each time it doubles, a weight
loses nearly a bit, whatever was trained: this gives the first step. Each later step interpolates
linearly between two measured sizes, if possible one on either side of the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from torch import Tensor

from paramgolf.codec.byte_ledger import Part
from paramgolf.codec.writer import Memo, encode
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say
from paramgolf.quant.config import LEAST_DOUBLINGS, MOST_DOUBLINGS, QuantizeConfig
from paramgolf.quant.report import stored_bits
from paramgolf.quant.trained import Trained

SLACK_BYTES = 4000  # the search ends when the artifact is at most this far below the limit
# bits that a weight loses each time clips double: 0.952 to 0.970 around the clips of recipe best
BITS_PER_DOUBLING = 0.956
MAX_TRIALS = 8
NAMED = 5

Tensors = dict[str, Tensor]
Solution = tuple[Tensors, list[dict[str, Any]]]  # what quantize.assemble returns
Solve = Callable[[QuantizeConfig], Solution]
Measure = Callable[[Solution], list[Part]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A point of the search."""

    multiplier: float
    bytes_total: int


def artifact_parts(trained: Trained, config: QuantizeConfig) -> Measure:
    """Return a function that packs a solution as package will and returns the artifact's parts.

    The code counts as `fit_code_bytes`. If its real size were read here, quantize would run again
    at every edit of an evaluator.
    """
    memo: Memo = {}
    code = Part("code", "code", config.fit_code_bytes, config.fit_code_bytes, None, {})

    def measure(solution: Solution) -> list[Part]:
        described = {**trained.config, "quantize": {"bits": stored_bits(*solution)}}
        return [*encode(solution[0], described, config.fit_codec, memo)[1], code]

    return measure


def fit(config: QuantizeConfig, solve: Solve, measure: Measure) -> tuple[Solution, dict[str, Any]]:
    """Return the finest solution found whose artifact fits, and the record of the search.

    The search ends within SLACK_BYTES below `fit_bytes`, at the finest clips, or after MAX_TRIALS.
    It is an error if even the coarsest clips do not fit, or no trial did.
    """
    limit = config.fit_bytes
    assert limit is not None
    trials: list[Trial] = []
    best: tuple[int, float, Solution] | None = None
    nearest: tuple[int, list[Part]] | None = None  # of those that do not fit
    doublings = 0.0
    for _ in range(MAX_TRIALS):
        solution = solve(config.scaled(doublings))
        parts = measure(solution)
        total = sum(part.bytes for part in parts)
        trials.append(Trial(2**doublings, total))
        say(f"quantize: clips x {2**doublings:.5f}: {total:,} bytes; limit {limit:,}")
        if total <= limit:
            if best is None or total > best[0]:
                best = total, doublings, solution
            if total >= limit - SLACK_BYTES:
                break
            if doublings <= LEAST_DOUBLINGS:
                say("quantize: the finest clips of the search leave bytes unused")
                break
        elif doublings >= MOST_DOUBLINGS:
            _refuse(total - limit, parts)
        elif nearest is None or total < nearest[0]:
            nearest = total, parts
        doublings = _next_doublings(trials, limit - SLACK_BYTES // 2, solution[0])
    if best is None:
        assert nearest is not None
        _refuse(nearest[0] - limit, nearest[1])
    total, doublings, solution = best
    record = {
        "limit_bytes": limit,
        "multiplier": 2**doublings,
        "bytes_total": total,
        "trials": [asdict(trial) for trial in trials],
    }
    return solution, record


def _next_doublings(trials: list[Trial], target: int, tensors: Tensors) -> float:
    """Return the doublings at which a line through two trials reaches `target` bytes.

    The two trials are the nearest on either side of it, or else the last two. If their sizes are
    equal, or there is only one, the slope is that of BITS_PER_DOUBLING per weight.
    """
    measured = [(math.log2(t.multiplier), t.bytes_total) for t in trials]
    above = [m for m in measured if m[1] > target]
    below = [m for m in measured if m[1] <= target]
    pair = measured[-2:]
    if above and below:
        pair = [max(below, key=lambda m: m[1]), min(above, key=lambda m: m[1])]
    (start, first), (end, second) = pair[0], pair[-1]
    if first != second:
        slope = (second - first) / (end - start)
    else:
        weights = sum(t.numel() for name, t in tensors.items() if name.endswith(".integers"))
        slope = -BITS_PER_DOUBLING * weights / 8
    return min(max(start + (target - first) / slope, LEAST_DOUBLINGS), MOST_DOUBLINGS)


def _refuse(missing: int, parts: list[Part]) -> NoReturn:
    largest = sorted(parts, key=lambda part: -part.bytes)[:NAMED]
    raise ParamGolfError(
        "no clips of the search make the artifact fit",
        where="quantize.fit_bytes",
        found=f"{missing:,} bytes too many; "
        + ", ".join(f"{part.name} {part.bytes:,}" for part in largest),
        fix="fewer bits, a smaller model, or a larger limit",
    )
