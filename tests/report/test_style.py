"""Colours of the pages, light and dark: text and lines stand out from what is behind them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from paramgolf.report.pictures import SHADES, STRONG, WEAK

STYLE = files("paramgolf.report").joinpath("templates/style.css").read_text(encoding="utf-8")
TEXT, GRAPHIC = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11
Color = tuple[float, float, float]


def palettes() -> dict[str, dict[str, Color]]:
    """Return the colours of both schemes by name."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    found = []
    for block in blocks:
        hexes = re.findall(r"--([\w-]+): #([0-9a-f]{6});", block)
        found.append({name: _rgb(*(int(h[i : i + 2], 16) for i in (0, 2, 4))) for name, h in hexes})
    return dict(zip(("light", "dark"), found, strict=True))


def _rgb(*values: int) -> Color:
    red, green, blue = (value / 255 for value in values)
    return red, green, blue


def mix(one: Color, other: Color, share: float) -> Color:
    """Return CSS's color-mix in srgb, `share` of the first."""
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(one, other, strict=True))
    return red, green, blue


def contrast(one: Color, other: Color) -> float:
    """Return the ratio of luminances, 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out(scheme):
    colors = palettes()[scheme]
    for name in ("ink", "muted", "l0", "good", "bad"):
        assert contrast(colors[name], colors["paper"]) >= TEXT, name
    for name in ("ink", "muted"):
        assert contrast(colors[name], colors["track"]) >= TEXT, name
    for line in (f"l{i}" for i in range(8)):
        assert contrast(colors[line], colors["paper"]) >= GRAPHIC, line


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_on_colours_can_be_read(scheme):
    """Tiles of the map, and the darkest cell of a grid of errors."""
    colors = palettes()[scheme]
    for line in (f"l{i}" for i in range(8)):
        for share in (WEAK, *STRONG.values()):
            behind = mix(colors[line], colors["paper"], share)
            assert contrast(colors["ink"], behind) >= TEXT, (line, share)
    assert contrast(colors["ink"], mix(colors["heat"], colors["paper"], SHADES / 100)) >= TEXT


def test_contrast_is_that_of_the_standard():
    assert contrast((0, 0, 0), (1, 1, 1)) == 21
    assert contrast(_rgb(119, 119, 119), (1, 1, 1)) == pytest.approx(4.48, abs=0.01)
