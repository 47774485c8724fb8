"""The byte ledger: which part of the artifact every byte belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from paramgolf.schema import Foreign, Natural

Kind = Literal["integers", "scales", "float16", "header", "code"]


@dataclass(frozen=True, slots=True)
class Part(Foreign):
    """Bytes that were measured: a compressed stream, a header, a file.

    `raw_bytes` is the size before compression. `shares` attributes the bytes to what was compressed
    together, by raw size, and adds up to them.
    """

    name: str
    kind: Kind
    bytes: Natural
    raw_bytes: Natural
    codec: str | None
    shares: dict[str, Natural]


def apportion(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Divide `total` in proportion to `sizes` into whole numbers that add up to it exactly.

    Each cumulated share is rounded down, so no share is off by more than one. Sizes that are all 0
    leave everything to the last.
    """
    whole, done, given = sum(sizes.values()), 0, 0
    shares = {}
    for name, size in sizes.items():
        done += size
        upto = total * done // whole if whole else 0
        shares[name] = upto - given
        given = upto
    if shares:
        shares[name] += total - given
    return shares
