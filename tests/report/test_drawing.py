"""Drawings: one text for one drawing, in the page's colors; thinning keeps the mean."""

from __future__ import annotations

import math
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from paramgolf.report.drawing import Picture, colors, picture, tip
from paramgolf.report.pictures import thin

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))


def drawn(words: str = "Two dots.") -> Picture:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([1], [2], "o", gid=tip("<b>: step 1"))
        axes.plot([2], [3], "o", color=colors()["bad"])

    return picture(draw, words)


def test_the_same_drawing_gives_the_same_bytes():
    assert drawn().svg() == drawn().svg()
    assert drawn().png() == drawn().png()
    assert drawn().png().startswith(b"\x89PNG")


def test_every_color_of_an_svg_follows_the_readers_scheme():
    svg = drawn().svg()
    assert {"var(--l0)", "var(--rule)"} < {*re.findall(r"var\([^)]*\)", svg)}
    assert re.findall(r"#[0-9a-f]{6}\b(?!\d)", re.sub(r'(?:href="|url\()#\w+', "", svg)) == []


def test_what_a_dot_says_is_escaped():
    assert "<title>&lt;b&gt;: step 1</title>" in drawn().svg()


def test_two_pictures_share_no_id():
    one, other = (
        {*re.findall(r'id="([^"]+)"', drawn(words).svg())} for words in ("One.", "Another.")
    )
    assert one
    assert not one & other


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=100), st.integers(1, 30))
def test_thinning_keeps_to_the_limit_and_within_the_range(points, limit):
    thinned = thin(points, limit)
    assert len(thinned) <= limit
    assert min(b for _, b in points) - 1e-6 <= min(b for _, b in thinned)
    assert max(b for _, b in thinned) <= max(b for _, b in points) + 1e-6


def test_few_points_are_kept_as_they_are():
    points = [(1.0, 2.0), (2.0, 3.0)]
    assert thin(points, 2) == points
    assert thin([*points, (3.0, 7.0)], 2) == [(1.5, 2.5), (3.0, 7.0)]
    assert math.isclose(thin([(0.0, 0.1)] * 10, 1)[0][1], 0.1)
