"""The treemap: areas are the bytes, nothing overlaps, and the frame is full."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.codec.byte_ledger import Part
from paramgolf.model.shapes import shapes
from paramgolf.report import byte_map
from paramgolf.report.byte_map import Leaf, family_of, leaves, tiles

SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(SIZES)
def test_tiles_have_the_areas_and_do_not_overlap(sizes):
    sizes.sort(reverse=True)
    found = tiles([Leaf("MLP", f"t{i}", "integers", size) for i, size in enumerate(sizes)])
    whole = 100 * byte_map.ASPECT * 100
    for size, tile in zip(sizes, found, strict=True):
        assert tile.width * tile.height == pytest.approx(whole * size / sum(sizes), rel=1e-6)
        assert tile.left >= -1e-6
        assert tile.top >= -1e-6
        assert tile.left + tile.width <= 100 * byte_map.ASPECT + 1e-6
        assert tile.top + tile.height <= 100 + 1e-6
    for one, other in itertools.combinations(found, 2):
        across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
        along = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
        assert across < 1e-6 or along < 1e-6


def test_tiles_fill_the_frame_and_keep_a_family_together():
    found = [
        Leaf("MLP", "up", "integers", 600),
        Leaf("MLP", "up", "scales", 0),
        Leaf("attention", "q", "integers", 300),
        Leaf("code", "model", "code", 100),
    ]
    made = tiles(found)
    assert [tile.leaf.tensor for tile in made] == ["up", "q", "model"]
    shares = [tile.width * tile.height / (100 * 100 * byte_map.ASPECT) for tile in made]
    assert shares == pytest.approx([0.6, 0.3, 0.1])


def test_shares_are_told_apart_by_family_tensor_and_kind():
    parts = [
        ("q", "integers", {"q.integers": 70}),
        ("codes", "integers", {"down.3.left": 5, "embedding.finer": 6, "down.4.left": 2}),
        ("scales", "scales", {"q.scales": 7, "down.3.left_scales": 1}),
        ("vectors", "float16", {"bigram_table": 9, "skip_gate": 4}),
        ("header", "header", {"header": 3}),
        ("code", "code", {"paramgolf.model.block": 10, "paramgolf.model.head": 2, "loader": 1}),
    ]
    made = [Part(n, k, sum(s.values()), 0, None, s) for n, k, s in parts]
    found = {(leaf.family, leaf.tensor, leaf.kind): leaf.bytes for leaf in leaves(made)}
    assert found == {
        ("MLP", "down", "codes"): 7,
        ("MLP", "down", "scales"): 1,
        ("attention", "q", "integers"): 70,
        ("attention", "q", "scales"): 7,
        ("embedding", "embedding", "codes"): 6,
        ("tables", "bigram_table", "float16"): 9,
        ("vectors", "skip_gate", "float16"): 4,
        ("header", "header", "header"): 3,
        ("code", "model", "code"): 12,
        ("code", "loader", "code"): 1,
    }


def test_every_parameter_has_a_family(tiny_model):
    model = tiny_model(value_embedding_layers=(1,), bigram_buckets=64, head_gate="dense")
    found = {name: family_of(name) for name in shapes(model, 1000)}
    assert set(found.values()) <= {*byte_map.FAMILIES}
    assert found["bigram_proj"] == found["value_table"] == "tables"
    assert found["k"] == "attention"
    assert found["head_gate"] == "vectors"
