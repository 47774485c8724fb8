"""Every byte of the artifact by family, tensor and kind, and the picture of it: a treemap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.metrics import need
from paramgolf.model.shapes import MATRICES, PROJECTIONS, TABLES
from paramgolf.report.inputs import PACKAGE

FAMILIES = ("MLP", "attention", "embedding", "tables", "vectors", "header", "code")
MLP = ("up", "down")
Area = tuple[float, float, float, float]  # left, top, width, height
ASPECT = 2.2  # width over height that the rectangles are made for


@dataclass(frozen=True, slots=True)
class Leaf:
    """Bytes of one kind (integers, scales, float16, codes, header, code) of a tensor or module."""

    family: str
    tensor: str
    kind: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the picture, in per cent of its frame, and the leaf that it stands for."""

    leaf: Leaf
    left: float
    top: float
    width: float
    height: float


def leaves(package: Mapping[str, Any]) -> list[Leaf]:
    """Return the artifact's bytes in the order of FAMILIES, the largest first in each.

    They add up to both files. `package` is package.json; bytes of tensors that were compressed
    together are shared out by their size before. Code is told apart by the folder of its modules.
    """
    found: dict[tuple[str, str, str], int] = {}
    for part in need(package, "parts", PACKAGE):
        for name, size in need(part, "shares", PACKAGE).items():
            place = _place(name, need(part, "kind", PACKAGE))
            found[place] = found.get(place, 0) + size
    made = [Leaf(*place, size) for place, size in found.items()]
    return sorted(made, key=lambda leaf: (FAMILIES.index(leaf.family), -leaf.bytes))


def _place(name: str, kind: str) -> tuple[str, str, str]:
    """Return family, tensor and kind of a share of package.json's ledger."""
    if kind == "header":
        return "header", name, kind
    if kind == "code":
        words = name.split(".")
        return "code", words[1] if len(words) > 2 else words[-1], kind
    tensor, _, form = name.partition(".")
    if form.rpartition(".")[2] in ("finer", "left", "right"):
        kind = "codes"
    return family_of(tensor), tensor, kind


def family_of(tensor: str) -> str:
    """Return the family of a parameter of the network."""
    if tensor in MATRICES:
        return "MLP" if tensor in MLP else "attention"
    if tensor == "embedding":
        return tensor
    return "tables" if tensor in (*TABLES, *PROJECTIONS) else "vectors"


def by_family(found: Iterable[Leaf]) -> dict[str, int]:
    """Return the bytes of each family that has any, in the order of FAMILIES."""
    sums = dict.fromkeys(FAMILIES, 0)
    for leaf in found:
        sums[leaf.family] += leaf.bytes
    return {family: size for family, size in sums.items() if size}


def tiles(found: Sequence[Leaf]) -> list[Tile]:
    """Lay out the families, and the leaves of each inside it; areas are in proportion to bytes."""
    families = by_family(found)
    frame = (0.0, 0.0, 100.0 * ASPECT, 100.0)
    made = []
    for family, area in zip(families, squarify([*families.values()], frame), strict=True):
        own = [leaf for leaf in found if leaf.family == family]
        sizes = [leaf.bytes for leaf in own if leaf.bytes]
        for leaf, (left, top, width, height) in zip(own, squarify(sizes, area), strict=False):
            made.append(Tile(leaf, left / ASPECT, top, width / ASPECT, height))
    return made


def squarify(sizes: Sequence[float], area: Area) -> list[Area]:
    """Divide an area in proportion to positive sizes, into rectangles that are nearly squares.

    Bruls, Huizing and van Wijk (2000): strips along the shorter side, each closed where one more
    rectangle would make its worst one longer. Sizes in falling order give the best result.
    """
    left, top, width, height = area
    whole, rest, made = sum(sizes), list(sizes), list[Area]()
    scale = width * height / whole if whole else 0.0
    while rest:
        upright = width >= height  # the strip stands at the left; else it lies on top
        side = height if upright else width
        count = 1
        while count < len(rest) and _worst(rest[: count + 1], side, scale) <= _worst(
            rest[:count], side, scale
        ):
            count += 1
        strip, rest = rest[:count], rest[count:]
        depth, at = sum(strip) * scale / side, 0.0
        for size in strip:
            length = size * scale / depth
            if upright:
                made.append((left, top + at, depth, length))
            else:
                made.append((left + at, top, length, depth))
            at += length
        if upright:
            left, width = left + depth, width - depth
        else:
            top, height = top + depth, height - depth
    return made


def _worst(strip: Sequence[float], side: float, scale: float) -> float:
    """Return the largest ratio of the sides of a strip's rectangles."""
    depth = sum(strip) * scale / side
    ratios = (size * scale / depth**2 for size in strip)
    return max(max(ratio, 1 / ratio) for ratio in ratios)
