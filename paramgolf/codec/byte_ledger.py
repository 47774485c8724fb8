"""The byte ledger: which part of the artifact every byte belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes that were measured: a compressed stream, a header, a file.

    `kind` is integers, scales, float16, header or code; `raw_bytes` is the size before compression.
    `shares` attributes the bytes to what was compressed together, by raw size, and adds up to them.
    """

    name: str
    kind: str
    bytes: int
    raw_bytes: int
    codec: str | None
    shares: dict[str, int]


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
