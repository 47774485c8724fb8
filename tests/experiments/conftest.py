"""Tokens for the laboratory's plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tokens(tokens_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tokens, of a vocabulary that tokenizers may have; the project's folder."""
    monkeypatch.chdir(ROOT)
    manifest = tokens_folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"vocab_size": 300}))
    return tokens_folder
