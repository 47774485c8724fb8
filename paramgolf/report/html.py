"""The pages' templates: HTML and CSS files beside this module, rendered by Jinja."""

from __future__ import annotations

import re

import jinja2
from markupsafe import Markup, escape

from paramgolf.recipes import as_text
from paramgolf.report.byte_map import color_of
from paramgolf.report.pictures import signed


def template(name: str) -> jinja2.Template:
    """Return one of the templates in paramgolf/report/templates, such as run.html."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.PackageLoader("paramgolf.report"),
    )
    environment.filters |= {"code": _code, "commas": _commas, "line": color_of}
    environment.filters |= {"signed": signed, "text": as_text}
    return environment.get_template(name)


def _code(text: str) -> Markup:
    """Return a text as HTML, with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _commas(number: float | None) -> str:
    """Return a number as 1,234,567, or a dash where there is none."""
    return "–" if number is None else f"{number:,}"
