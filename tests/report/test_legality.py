"""docs/legality.md: every rule of `verify` is there, and what is named as holding it exists."""

from __future__ import annotations

import re

from run_files import ROOT

from paramgolf.report.rules import RULES

TEXT = (ROOT / "docs/legality.md").read_text(encoding="utf-8")


def test_every_rule_is_explained_twice():
    for rule in RULES:
        assert len(re.findall(rf"^\| {rule}\b", TEXT, re.MULTILINE)) == 2, rule


def test_code_and_tests_that_are_named_exist():
    named = re.findall(r"`((?:paramgolf|tests)/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 25
    for path, function in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, (path, function)
