"""Templates of the pages, with the macros and the style sheet at hand."""

from __future__ import annotations

import re

import jinja2
from markupsafe import Markup, escape

from paramgolf.report.macros import MACROS
from paramgolf.report.style import STYLE


def template(page: str) -> jinja2.Template:
    """Return a page's template, with the macros and the style sheet at hand."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.DictLoader({"macros": MACROS}),
    )
    environment.filters["code"] = _code
    return environment.from_string(page, globals={"style": Markup(STYLE)})


def _code(text: str) -> Markup:
    """Return a text as HTML, what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
