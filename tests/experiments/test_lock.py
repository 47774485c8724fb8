"""Which metrics are a run's own, by lock files as DVC writes them."""

from __future__ import annotations

import pytest
import yaml

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lock import foreign_stages, read_lock

PARAMS = {"train.seed": 1, "train.adam_eps": 1e-08, "quantize.bits": 6, "eval.orders": [1e-05]}
LOCK = """\
schema: '2.0'
stages:
  eval_ttt:
    cmd:
    - python -m paramgolf.cli check
    - python stages/eval_ttt.py
    deps:
    - path: artifacts/package/model.bin
      hash: md5
      md5: cc
      size: 57543
    - path: artifacts/code/eval_ttt.sha256
      hash: md5
      md5: '12'
      size: 65
    params:
      params.yaml:
        eval:
          orders:
          - 1e-05
    outs:
    - path: artifacts/metrics/eval_ttt.json
      hash: md5
      md5: dd
      size: 552
  train:
    cmd: python stages/train.py
    deps:
    - path: artifacts/code/train.sha256
      hash: md5
      md5: '11'
      size: 65
    params:
      params.yaml:
        train:
          adam_eps: 1e-08
          seed: 1
    outs:
    - path: artifacts/train
      hash: md5
      md5: aa.dir
      size: 9
      nfiles: 3
  package:
    cmd: python stages/package.py
    deps:
    - path: artifacts/train
      hash: md5
      md5: aa.dir
      size: 9
      nfiles: 3
    params:
      params.yaml:
        quantize:
          bits: 6
    outs:
    - path: artifacts/package/model.bin
      hash: md5
      md5: cc
      size: 57543
"""


def foreign(lock: str = LOCK, **changes: object) -> dict[str, str]:
    params = {**PARAMS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return foreign_stages(read_lock(lock.encode(), "dvc.lock"), params)


def test_a_whole_run_is_all_its_own():
    assert foreign() == {}
    assert foreign_stages(read_lock(b"schema: '2.0'\n", "dvc.lock"), PARAMS) == {}


def test_other_parameters_make_a_stage_foreign_and_all_behind_it():
    assert foreign(quantize__bits=5) == {
        "package": "another quantize.bits",
        "eval_ttt": "another quantize.bits",
    }
    assert foreign(train__seed=2, eval__orders=[1]) == {
        "train": "another train.seed",
        "package": "another train.seed",
        "eval_ttt": "another eval.orders, another train.seed",
    }


def test_a_reason_of_a_stage_and_of_what_it_read_is_told_once():
    lock = LOCK.replace("        eval:\n", "        train:\n          seed: 1\n        eval:\n", 1)
    found = foreign(lock, train__seed=2, quantize__bits=5)
    assert found["eval_ttt"] == "another train.seed, another quantize.bits"


def test_a_stage_that_read_another_output_is_foreign():
    """As after `dvc exp run -S quantize.bits=5 package`: the lock has the new package's hash."""
    before, output = LOCK.rsplit("md5: cc", 1)
    lock = f"{before}md5: ee{output}"
    assert foreign(lock) == {"eval_ttt": "another artifacts/package/model.bin"}


def test_stages_that_depend_on_one_another_are_refused():
    content = yaml.safe_load(LOCK)
    content["stages"]["train"]["deps"] = [{"path": "artifacts/package/model.bin"}]
    with pytest.raises(ParamGolfError, match="depend on one another in a circle"):
        read_lock(yaml.safe_dump(content).encode(), "dvc.lock")
