"""What a stage makes of the machine: left-over variables, a compiler that is not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from recipe_case import recipe

from paramgolf import stage_runtime
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_json
from paramgolf.packing.entry import launch
from paramgolf.params import read_yaml
from paramgolf.runtime import processes
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.stage_runtime import launch_stage, refuse_left_overs, without_compiler

ROOT = Path(__file__).parents[1]
TORCHRUN = "TORCHELASTIC_RUN_ID"


def machine(**changes: object) -> RuntimeConfig:
    return dataclasses.replace(recipe("base").runtime, **changes)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of a group of processes, whoever runs the tests."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", TORCHRUN):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("left", [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"LOCAL_RANK": "1"}])
def test_variables_left_over_from_another_group_are_refused(left, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParamGolfError, match="torchrun did not start this one") as caught:
        refuse_left_overs()
    assert f"unset {' '.join(left)}" in str(caught.value)
    monkeypatch.setenv(TORCHRUN, "a run")
    refuse_left_overs()


def test_train_gpt_takes_no_left_over_variable_for_a_group(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    config = machine(device="cpu", processes=1)
    launch(config)
    with processes(config) as runtime:
        assert (runtime.rank, runtime.world) == (0, 1)


@pytest.mark.parametrize(("alone", "wanted"), [(True, []), (False, [3])])
def test_a_stage_may_go_alone_whatever_training_takes(alone, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = read_yaml(ROOT / "recipes/base.yaml")
    content["runtime"] |= {"device": "cpu", "processes": 3}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    write_json(Path("artifacts/metrics/quantize.json"), {})
    started = []
    monkeypatch.setattr(stage_runtime, "launch", started.append)
    launch_stage("quantize", alone=alone)
    assert started == wanted


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_runtime, "visible_gpus", lambda: ["0"])


def test_without_a_compiler_a_gpu_runs_plain_operations_and_says_so(no_programs, one_gpu, capsys):
    found = without_compiler(machine())
    assert (found.compile, found.kernels) == ("off", "reference")
    assert "no compiler (gcc or clang): going on with plain" in capsys.readouterr().err


@pytest.mark.parametrize("key", [{"compile": "on"}, {"kernels": "fused"}])
def test_what_was_asked_for_by_name_is_not_left_out(key, no_programs, one_gpu):
    with pytest.raises(ParamGolfError, match="needs a compiler: gcc or clang") as caught:
        without_compiler(machine(**key))
    assert f"runtime.{'.'.join(key)} is" in str(caught.value)


def test_a_cpu_needs_a_compiler_only_where_it_is_told_to_compile(no_programs, capsys):
    assert without_compiler(machine(device="cpu")).compile in ("auto", "off")
    assert capsys.readouterr().err == ""
    with pytest.raises(ParamGolfError, match=r"compile is on, which needs a compiler: g\+\+"):
        without_compiler(machine(device="cpu", compile="on"))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_compiler_that_is_there_changes_nothing(by_name, no_programs, one_gpu, monkeypatch):
    program = no_programs / ("my-cc" if by_name else "gcc")
    program.touch(mode=0o755)
    if by_name:
        monkeypatch.setenv("CC", "my-cc -O2")
    assert without_compiler(machine()) == machine()


def test_a_compiler_that_is_named_but_absent_is_none(no_programs, one_gpu, monkeypatch, capsys):
    (no_programs / "gcc").touch(mode=0o755)
    monkeypatch.setenv("CC", "my-cc")
    assert without_compiler(machine()).compile == "off"
    assert "my-cc" in capsys.readouterr().err
