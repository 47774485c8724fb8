"""Pictures that matplotlib draws once: SVG inside the page, PNG beside it for `dvc plots`.

Colors are the style sheet's. A PNG has those of the light scheme; in an SVG each becomes its
CSS variable again, so that the picture follows the reader's scheme as the page does.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

LINES = 8  # --l0 to --l7 of the style sheet; more lines are dashed
WIDTH = 10.0  # inches, of every picture
POINTS = 72  # an inch: SVG's unit here
TITLE = re.compile(r'<g id="tip: ([^"]*)">')


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, and the same in words, for those who cannot see it."""

    figure: Figure
    words: str

    def svg(self) -> Markup:
        """Return the drawing as an element for a page; the same drawing gives the same text."""
        text = io.StringIO()
        # letters stay letters; ids follow from the words, so that no two pictures share one
        with style.context({"svg.fonttype": "none", "svg.hashsalt": self.words}):
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        drawn = text.getvalue()
        body = drawn[drawn.index('<g id="figure_1">') :]
        body = TITLE.sub(r"<g><title>\1</title>", body)
        body = re.sub(r'<g id="[^"]*">', "<g>", body).replace("xlink:href", "href")
        body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
        for name, color in colors().items():
            body = body.replace(color, f"var(--{name})")
        width, height = (POINTS * inches for inches in self.figure.get_size_inches())
        return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" aria-hidden="true">{body}')

    def png(self) -> bytes:
        """Return the drawing as a file; the same drawing gives the same bytes."""
        image = io.BytesIO()
        self.figure.savefig(image, format="png", metadata={"Software": None})
        return image.getvalue()


def picture(draw: Callable[[Figure], None], words: str, *, height: float = 4.5) -> Picture:
    """Return what `draw` makes of an empty figure of `height` inches in the page's style."""
    with style.context(_style(colors())):
        figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
        draw(figure)
    return Picture(figure, words)


def tip(text: str) -> str:
    """Return the gid by which an artist shows `text` where the reader points at it."""
    return f"tip: {text}"


@functools.cache
def colors() -> Mapping[str, str]:
    """Return the style sheet's colors of the light scheme by name, as #rrggbb."""
    sheet = files("paramgolf.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    light = sheet[: sheet.index("@media")]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", light))


def line_style(number: int) -> dict[str, Any]:
    """Return color and dashes of a run's line."""
    return {
        "color": colors()[f"l{number % LINES}"],
        "linestyle": "--" if number >= LINES else "-",
    }


def line_class(number: int) -> str:
    """Return the class of a run's line in the style sheet."""
    return f"l{number % LINES}" + (" dash" if number >= LINES else "")


def _style(color: Mapping[str, str]) -> dict[str, Any]:
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": color["rule"],
        "axes.grid": True,
        "axes.labelcolor": color["muted"],
        "axes.prop_cycle": cycler(color=[color[f"l{i}"] for i in range(LINES)]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "figure.facecolor": color["paper"],
        "axes.facecolor": color["paper"],
        "font.size": 9,
        "grid.color": color["rule"],
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "text.color": color["ink"],
        "xtick.color": color["muted"],
        "ytick.color": color["muted"],
    }
