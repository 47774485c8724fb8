"""Tokens for the laboratory's plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's folder is that of the test."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def tokens(tokens_folder: Path, in_the_project: None) -> Path:
    """A folder of tokens, of a vocabulary that tokenizers may have; the project's folder."""
    manifest = tokens_folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"vocab_size": 300}))
    return tokens_folder
