"""Checks that hold for every page: well-formed, and nothing fetched from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Checks that tags are closed in order, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        """A tag that closes itself."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def text_of(page: str) -> str:
    """Return the page's text in one line; a page that is not well-formed fails."""
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return " ".join(parser.text.split())


def outside_references(page: str) -> list[str]:
    """Return whatever in the page would be fetched, or run."""
    outside = r"(?:src|href)\s*=(?!\"#)|url\((?!#)|@import|<script|https?:"
    return re.findall(outside, page)
