"""Auto-fit: the finest clips whose real artifact, code included, ends just below a limit.

One number is searched, by which all clips are multiplied: bytes fall by nearly an eighth of the
weights each time it doubles, whatever was trained. By that the first step is found. The steps that
follow lie on a line through real bytes on either side of the limit.
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

SLACK_BYTES = 4000  # good enough: so near below the limit
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

    The code counts as `fit_code_bytes`: what it holds is no concern of quantize, which would run
    again at every edit of an evaluator.
    """
    memo: Memo = {}
    code = Part("code", "code", config.fit_code_bytes, config.fit_code_bytes, None, {})

    def measure(solution: Solution) -> list[Part]:
        described = {**trained.config, "quantize": {"bits": stored_bits(*solution)}}
        return [*encode(solution[0], described, config.fit_codec, memo)[1], code]

    return measure


def fit(config: QuantizeConfig, solve: Solve, measure: Measure) -> tuple[Solution, dict[str, Any]]:
    """Return the finest solution found whose artifact fits, and the record of the search.

    Ends within SLACK_BYTES below `fit_bytes`, or where the clips reach the search's end; says so
    when neither came about. Raises where even the coarsest clips do not fit.
    """
    assert config.fit_bytes is not None
    trials: list[Trial] = []
    best: tuple[int, float, Solution] | None = None
    doublings, solution = 0.0, solve(config)
    for _ in range(MAX_TRIALS):
        parts = measure(solution)
        total = sum(part.bytes for part in parts)
        trials.append(Trial(2**doublings, total))
        say(f"quantize: clips x {2**doublings:.5f}: {total:,} bytes; limit {config.fit_bytes:,}")
        if total <= config.fit_bytes and (best is None or total > best[0]):
            best = total, doublings, solution
        if config.fit_bytes - SLACK_BYTES <= total <= config.fit_bytes:
            break
        if total > config.fit_bytes and doublings >= MOST_DOUBLINGS:
            _refuse(total - config.fit_bytes, parts)
        if total <= config.fit_bytes and doublings <= LEAST_DOUBLINGS:
            say("quantize: the finest clips of the search leave bytes unused")
            break
        doublings = _next_doublings(trials, config.fit_bytes - SLACK_BYTES // 2, solution[0])
        solution = solve(config.scaled(doublings))
    if best is None:
        _refuse(min(trial.bytes_total for trial in trials) - config.fit_bytes, parts)
    total, doublings, solution = best
    record = {
        "limit_bytes": config.fit_bytes,
        "multiplier": 2**doublings,
        "bytes_total": total,
        "trials": [asdict(trial) for trial in trials],
    }
    return solution, record


def _next_doublings(trials: list[Trial], target: int, tensors: Tensors) -> float:
    """Return where the line through two trials around `target` bytes reaches it.

    They are the nearest on either side, or the last two. Where there are no two that differ, the
    line is that of weights which lose BITS_PER_DOUBLING.
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
