"""Mutants of shards, manifests, tokenizers, safetensors, text and parameters.

benchmarks/fuzz.py tries thousands; here are some of them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNTS = {"shards": 200, "manifests": 200, "tokenizers": 200, "safetensors": 200, "text": 200}


@pytest.fixture(scope="module")
def files():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("fuzz_files")


@pytest.mark.parametrize("kind", [*COUNTS, "params"])
def test_mutants_are_read_or_refused_in_one_message(files, kind):
    """Any other error would be raised here."""
    assert {files.read(kind, example) for example in files.sound(kind)} == {"read"}
    count = COUNTS.get(kind, 30)
    found = [files.read(kind, files.mutant(kind, number)) for number in range(count)]
    assert found.count("refused") > count // 2
    assert set(found) <= {"refused", "read"}
