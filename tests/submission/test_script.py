"""What is read out of a packed script, without running it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from package_case import frozen
from recipe_case import recipe

from paramgolf.packing.code import pack_code, program
from paramgolf.packing.script import PackedScript, read_script
from paramgolf.submission.script import one_code, requirements

FROZEN = frozen(recipe("sample"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train_gpt.py"
    path.write_bytes(pack_code(FROZEN, rans=True).content)
    return path


def test_parameters_and_modules_come_back(packed):
    script = read_script(packed)
    assert script.params == json.loads(json.dumps(FROZEN))
    modules = {name for name, source in script.sources.items() if source}
    assert modules == {*program(FROZEN, rans=True)}


def test_runs_of_two_seeds_have_one_code(packed, tmp_path):
    other = tmp_path / "train_gpt.py"
    seeded = {**FROZEN, "train": {**FROZEN["train"], "seed": 7}}
    other.write_bytes(pack_code(seeded, rans=True).content)
    assert other.read_bytes() != packed.read_bytes()
    assert one_code([read_script(packed), read_script(other)])


def test_requirements_are_what_the_modules_import(packed):
    lines = requirements(read_script(packed))
    names = {line.partition("==")[0].lower() for line in lines}
    assert names - {"triton"} == {"brotli", "numpy", "pyyaml", "safetensors", "torch", "tqdm"}
    assert all(re.fullmatch(r"\S+==[0-9.]+(rc\d+)?", line) for line in lines)  # no +cpu


def test_the_seed_alone_may_differ():
    first = PackedScript({"train": {"seed": 1, "steps": 5}, "model": {}}, {"a": "x = 1"})
    other_seed = dataclasses.replace(first, params={"train": {"seed": 2, "steps": 5}, "model": {}})
    other_steps = dataclasses.replace(first, params={"train": {"seed": 1, "steps": 6}, "model": {}})
    other_code = dataclasses.replace(first, sources={"a": "x = 2"})
    assert one_code([first, other_seed])
    assert not one_code([first, other_steps])
    assert not one_code([first, other_seed, other_code])
