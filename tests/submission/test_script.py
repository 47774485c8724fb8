"""What is read out of a packed script, without running it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from paramgolf.codec.code import embedded_files, module_name, pack_code
from paramgolf.errors import ParamGolfError
from paramgolf.submission.script import Script, one_code, read_script, requirements


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train_gpt.py"
    path.write_bytes(pack_code({"train": {"seed": 7}, "model": {}}, rans=True).content)
    return path


def test_parameters_and_modules_come_back(packed):
    script = read_script(packed)
    assert script.params == {"train": {"seed": 7}, "model": {}}
    modules = {name for name, source in script.sources.items() if source}
    assert modules == {module_name(path) for path in embedded_files()}


def test_requirements_are_what_the_modules_import(packed):
    lines = requirements(read_script(packed))
    names = {line.partition("==")[0].lower() for line in lines}
    assert names - {"triton"} == {"brotli", "numpy", "pyyaml", "safetensors", "torch", "tqdm"}
    assert all(re.fullmatch(r"\S+==[0-9.]+(rc\d+)?", line) for line in lines)  # no +cpu


@pytest.mark.parametrize(
    "content", [b"print('hello')\n", b"PACKED = 'x'\n", b"PACKED = ", b"PACKED = 3\n"]
)
def test_another_script_is_refused(content, tmp_path):
    path = tmp_path / "train_gpt.py"
    path.write_bytes(content)
    with pytest.raises(ParamGolfError, match="not a packed script"):
        read_script(path)


def test_the_seed_alone_may_differ():
    first = Script({"train": {"seed": 1, "steps": 5}, "model": {}}, {"a": "x = 1"})
    other_seed = dataclasses.replace(first, params={"train": {"seed": 2, "steps": 5}, "model": {}})
    other_steps = dataclasses.replace(first, params={"train": {"seed": 1, "steps": 6}, "model": {}})
    other_code = dataclasses.replace(first, sources={"a": "x = 2"})
    assert one_code([first, other_seed])
    assert not one_code([first, other_steps])
    assert not one_code([first, other_seed, other_code])
