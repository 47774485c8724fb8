"""Print docs/parameters.md from recipes/base.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

BASE = Path(__file__).parents[1] / "recipes/base.yaml"
HEAD = """# Parameters

Every key of `params.yaml`, with its value in `recipes/base.yaml`, which other recipes change where
they differ. A key without words of its own goes with those above it. `pg#1530` is pull request
1530 of openai/parameter-golf.

`python scripts/parameters.py > docs/parameters.md` makes this page from the comments of
`recipes/base.yaml`.
"""
TABLE = "\n| key | base | meaning |\n|---|---|---|"


def page(text: str) -> str:
    """Return the page as Markdown, a table for each section of `text`, which is base.yaml's."""
    lines, words = [HEAD.rstrip()], meanings(text)
    for section, content in yaml.safe_load(text).items():
        about = words.get(section, "")
        lines += [f"\n## {section}", *([f"\n{about}"] if about else []), TABLE]
        for key, value in leaves(content, section):
            shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
            meaning = words.get(key, "").replace("|", "\\|")
            lines.append(f"| `{key}` | `{shown}` | {meaning} |")
    return "\n".join(lines) + "\n"


def leaves(content: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each key that holds no mapping."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def meanings(text: str) -> dict[str, str]:
    """Return the comment that stands above each key, by dotted name."""
    found: dict[str, str] = {}
    comment: list[str] = []
    path: list[tuple[int, str]] = []  # the keys around a line, with their indentation
    for line in text.splitlines():
        words, indent = line.strip(), len(line) - len(line.lstrip())
        if words.startswith("#"):
            comment.append(words.lstrip("# "))
            continue
        if words and not words.startswith("- "):
            path = [*(one for one in path if one[0] < indent), (indent, words.partition(":")[0])]
            found[".".join(key for _, key in path)] = " ".join(comment)
        comment = []
    return found


if __name__ == "__main__":
    print(page(BASE.read_text(encoding="utf-8")), end="")
