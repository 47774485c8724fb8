"""The log that training writes, a JSON object a line, as others read it: strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.metrics import need

LOG = Path("artifacts/train/log.jsonl")
LARGEST = 1e30  # of any number, that it can be drawn
LOG_FIX = "train again: `dvc repro -f -s train`"


def of_event(
    records: Iterable[Mapping[str, Any]], event: str, keys: Sequence[str], where: object
) -> list[Mapping[str, Any]]:
    """Return those records of a log that tell of an event, in their order.

    Every record must name its event, and each of these have `keys`, which are numbers of at most
    LARGEST; else that is a ParamGolfError.
    """
    chosen = [one for one in records if need(one, "event", where, fix=LOG_FIX) == event]
    for record in chosen:
        for key in keys:
            value = need(record, key, where, fix=LOG_FIX)
            if type(value) not in (int, float) or abs(value) > LARGEST:
                expected = f"`{key}` a number in each `{event}`"
                raise ParamGolfError(
                    "a false training log", where=where, expected=expected, fix=LOG_FIX
                )
    return chosen
