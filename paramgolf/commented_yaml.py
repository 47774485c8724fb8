"""YAML written with the comments of a reference file, in the form that DVC itself writes.

The dumper is the one DVC uses for `dvc exp run -S`, so that such a change touches one line: lists
in block style, null as an empty value.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

Comments = dict[tuple[str, ...], list[str]]
KEY = re.compile(r"((?:  )*)(\w+):")


def key_comments(text: str) -> Comments:
    """Return the comment lines directly above each key; a blank line parts a comment from a key.

    Keys are paths from the root of `text`, a YAML mapping indented by two spaces.
    """
    comments: Comments = {}
    path: list[str] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        if match := KEY.match(line):
            path[len(match[1]) // 2 :] = [match[2]]
            comments[tuple(path)] = above
        above = []
    return comments


def dump_sections(content: Mapping[str, Any], comments: Comments, header: str) -> str:
    """Return `content` as YAML under `header`, its sections parted by blank lines."""
    parts = [f"# {header}\n"]
    for name, section in content.items():
        text = io.StringIO()
        dumper().dump(_commented({name: section}, comments, ()), text)
        parts.append(text.getvalue())
    return "\n".join(parts)


def dumper() -> YAML:
    """Return DVC's dumper, save that it breaks no long line and keeps the quotes it read."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.preserve_quotes = True
    yaml.width = 2**16
    return yaml


def _commented(
    content: Mapping[str, Any], comments: Comments, path: tuple[str, ...]
) -> CommentedMap:
    result = CommentedMap()
    for key, value in content.items():
        here = (*path, key)
        result[key] = _commented(value, comments, here) if isinstance(value, Mapping) else value
        if lines := comments.get(here):
            above = "\n".join(lines)
            result.yaml_set_comment_before_after_key(key, before=above, indent=2 * len(path))
    return result
