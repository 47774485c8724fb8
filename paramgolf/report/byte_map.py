"""Every byte of the artifact by family, tensor and kind, and where it lies in a treemap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import squarify

from paramgolf.codec.byte_ledger import Part
from paramgolf.model.shapes import MATRICES, MLP, PROJECTIONS, TABLES

FAMILIES = ("MLP", "attention", "embedding", "tables", "vectors", "header", "code")
OTHER = "model"  # all of model.bin, where no ledger of its bytes is at hand
Area = tuple[float, float, float, float]  # left, top, width, height
ASPECT = 2.2  # the treemap's width over its height


@dataclass(frozen=True, slots=True)
class Leaf:
    """Bytes of one kind (integers, scales, float16, codes, header, code) of a tensor or module."""

    family: str
    tensor: str
    kind: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the treemap, whose height is 100, and the leaf that it stands for."""

    leaf: Leaf
    left: float
    top: float
    width: float
    height: float


def leaves(parts: Iterable[Part]) -> list[Leaf]:
    """Return the artifact's bytes in the order of FAMILIES, the largest first in each.

    They add up to both files, where `parts` do. Bytes of tensors that were compressed together are
    shared out by their size before. Code is told apart by the folder of its modules.
    """
    sizes: Counter[tuple[str, str, str]] = Counter()
    for part in parts:
        for name, size in part.shares.items():
            sizes[_labels(name, part.kind)] += size
    made = [Leaf(*labels, size) for labels, size in sizes.items()]
    return sorted(made, key=lambda leaf: (FAMILIES.index(leaf.family), -leaf.bytes))


def _labels(name: str, kind: str) -> tuple[str, str, str]:
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


def color_of(family: str) -> str:
    """Return the name of a family's color in the style sheet, which is also its class there."""
    return f"l{[*FAMILIES, OTHER].index(family)}"


def by_family(leaves: Iterable[Leaf]) -> dict[str, int]:
    """Return the bytes of each family that has any, in the order of FAMILIES."""
    sums = dict.fromkeys(FAMILIES, 0)
    for leaf in leaves:
        sums[leaf.family] += leaf.bytes
    return {family: size for family, size in sums.items() if size}


def tiles(leaves: Sequence[Leaf]) -> list[Tile]:
    """Lay out the families, and the leaves of each inside it; areas are in proportion to bytes."""
    families = by_family(leaves)
    areas = _areas([*families.values()], (0.0, 0.0, 100.0 * ASPECT, 100.0))
    made = []
    for family, area in zip(families, areas, strict=True):
        own = [leaf for leaf in leaves if leaf.family == family and leaf.bytes]
        places = _areas([leaf.bytes for leaf in own], area)
        made += [Tile(leaf, *place) for leaf, place in zip(own, places, strict=True)]
    return made


def _areas(sizes: Sequence[float], area: Area) -> list[Area]:
    """Divide an area in proportion to sizes, into rectangles that are nearly squares."""
    left, top, width, height = area
    scaled = squarify.normalize_sizes(sizes, width, height)
    rectangles = squarify.squarify(scaled, left, top, width, height)
    return [(each["x"], each["y"], each["dx"], each["dy"]) for each in rectangles]
