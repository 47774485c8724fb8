"""Auto-fit: the finest clips whose real artifact, code included, ends just below a limit.

One number is searched, by which all clips are multiplied: bytes fall by about an eighth of the
weights each time it doubles, whatever was trained. A solve costs seconds and a real compression a
minute, so the first step is found on the order-0 entropy of the integers, corrected by the ratio of
real bytes to it. That ratio drifts with the clips; the steps that follow lie on a line through real
bytes on either side of the limit.
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
from paramgolf.quant.report import entropy_bits, stored_bits
from paramgolf.quant.trained import Trained

SLACK_BYTES = 4000  # good enough: so near below the limit
MAX_COMPRESSIONS, MAX_SOLVES = 8, 6
NAMED = 5

Tensors = dict[str, Tensor]
Solution = tuple[Tensors, list[dict[str, Any]]]  # what quantize.assemble returns
Solve = Callable[[QuantizeConfig], Solution]
Measure = Callable[[Solution], list[Part]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A point of the search; bytes_total is None where nothing was compressed."""

    multiplier: float
    entropy_bytes: float
    bytes_total: int | None


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
    for _ in range(MAX_COMPRESSIONS):
        parts = measure(solution)
        total, entropy = sum(part.bytes for part in parts), entropy_bytes(solution[0])
        trials.append(Trial(2**doublings, entropy, total))
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
        target = config.fit_bytes - SLACK_BYTES // 2
        found = _on_line(trials, target)
        if found is not None:
            doublings, solution = found, solve(config.scaled(found))
            continue
        # the fixed bytes (code, header) go into the offset, not into the ratio
        fixed = sum(part.bytes for part in parts if part.kind in ("code", "header"))
        wanted = (target - fixed) / ((total - fixed) / entropy)
        doublings, solution = _approach(config, solve, (doublings, solution), wanted, trials)
    if best is None:
        _refuse(min(t.bytes_total or 0 for t in trials if t.bytes_total) - config.fit_bytes, parts)
    total, doublings, solution = best
    record = {
        "limit_bytes": config.fit_bytes,
        "multiplier": 2**doublings,
        "bytes_total": total,
        "trials": [asdict(trial) for trial in trials],
    }
    return solution, record


def _on_line(trials: list[Trial], target: int) -> float | None:
    """Return where the line through the real bytes of two trials around `target` reaches it.

    They are the nearest on either side, or the last two; None where there are no two that differ.
    """
    measured = [(math.log2(t.multiplier), t.bytes_total) for t in trials if t.bytes_total]
    above = [m for m in measured if m[1] > target]
    below = [m for m in measured if m[1] <= target]
    pair = measured[-2:]
    if above and below:
        pair = [max(below, key=lambda m: m[1]), min(above, key=lambda m: m[1])]
    if len(pair) < 2 or pair[0][1] == pair[1][1]:
        return None
    (start, first), (end, second) = pair
    doublings = start + (target - first) * (end - start) / (second - first)
    return _in_range(doublings)


def _in_range(doublings: float) -> float:
    return min(max(doublings, LEAST_DOUBLINGS), MOST_DOUBLINGS)


def entropy_bytes(tensors: Tensors) -> float:
    """Return the size of all tensors: integers by their order-0 entropy, float16 as they are."""
    total = 0.0
    for name, tensor in tensors.items():
        coded = name.endswith(".integers")
        total += tensor.numel() * (entropy_bits(tensor) / 8 if coded else tensor.element_size())
    return total


def _approach(
    config: QuantizeConfig,
    solve: Solve,
    start: tuple[float, Solution],
    target: float,
    trials: list[Trial],
) -> tuple[float, Solution]:
    """Return doublings whose entropy is near `target` bytes, and its solution: secant steps."""
    doublings, solution = start
    entropy = entropy_bytes(solution[0])
    weights = sum(t.numel() for name, t in solution[0].items() if name.endswith(".integers"))
    slope = -weights / 8
    for _ in range(MAX_SOLVES):
        before = doublings, entropy
        doublings = _in_range(doublings + (target - entropy) / slope)
        if doublings == before[0]:
            break
        solution = solve(config.scaled(doublings))
        entropy = entropy_bytes(solution[0])
        trials.append(Trial(2**doublings, entropy, None))
        if abs(entropy - target) <= SLACK_BYTES:  # the ratio is no better known
            break
        # at the ends the curve is flat: a secant there must not throw the next step far away
        slope = min((entropy - before[1]) / (doublings - before[0]), -weights / 64)
    return doublings, solution


def _refuse(missing: int, parts: list[Part]) -> NoReturn:
    largest = sorted(parts, key=lambda part: -part.bytes)[:NAMED]
    raise ParamGolfError(
        "no clips of the search make the artifact fit",
        where="quantize.fit_bytes",
        found=f"{missing:,} bytes too many; "
        + ", ".join(f"{part.name} {part.bytes:,}" for part in largest),
        fix="fewer bits, a smaller model, or a larger limit",
    )
