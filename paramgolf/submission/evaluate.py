"""A submission scored twice: by the project's own evaluator, and from inside its folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.stages import Place
from paramgolf.files import read_json
from paramgolf.gpu_slots import take_gpus
from paramgolf.packing.script import PackedScript, read_script
from paramgolf.params import PARAMS_PATH, load_params, read_yaml
from paramgolf.runtime_config import RuntimeConfig

COMMANDS = {"eval_sliding": "eval", "eval_ttt": "eval_ttt"}
TOLERANCE = 1e-3  # bits per byte; devices differ by less, the record's margin is 2e-3


def evaluator_of(params: Mapping[str, Any]) -> str:
    """Return the stage whose score is handed in: that which adapts, unless it is told not to."""
    return "eval_sliding" if params["eval_ttt"]["mode"] == "none" else "eval_ttt"


def command(params: Mapping[str, Any], stage: str, script: PackedScript) -> list[str]:
    """Return the words after `python train_gpt.py`: options where they are not its defaults.

    Programs that were packed before these were the recipe's need some.
    """
    name = COMMANDS[stage]
    return [name, *_options(params[stage], script.params[name])]


def _options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return --key=value for each option whose value is not the default; json is YAML too."""
    return [
        f"--{key.replace('_', '-')}={json.dumps(values[key])}"
        for key, default in defaults.items()
        if values[key] != default
    ]


def effective(params: Mapping[str, Any], stage: str, script: PackedScript) -> dict[str, Any]:
    """Return with what the shipped program trains, and scores by `command`, by section.

    Network and training are what is frozen into it; the evaluation is that with the options.
    """
    frozen = script.params
    scoring = {**frozen[COMMANDS[stage]], **params[stage]}
    return {"model": frozen["model"], "train": frozen["train"], stage: scoring}


def score_in_folder(
    folder: Path, tokens: Path, words: Sequence[str], *, root: Path
) -> dict[str, Any]:
    """Run train_gpt.py in `folder` on `tokens`, on this machine's devices; return its metrics.

    Python's -I keeps the project's modules out of its sight: it has what the folder has.
    """
    runtime = read_yaml(root / PARAMS_PATH)["runtime"]
    defaults = read_script(folder / "train_gpt.py").params["runtime"]
    take_gpus(load_params(RuntimeConfig, "runtime", root / PARAMS_PATH))
    result = tokens.parent / "metrics.json"
    files = ["--data", str(tokens), "--json", str(result)]
    line = [sys.executable, "-I", "train_gpt.py", *words, *files, *_options(runtime, defaults)]
    done = subprocess.run(line, cwd=folder, stdout=subprocess.DEVNULL)
    _check_exit(done, "train_gpt.py failed in the folder", shlex.join(line))
    return read_json(result)


def score_in_project(
    model: Path, tokens: Path, params: Mapping[str, Any], stage: str, *, scratch: Path, root: Path
) -> dict[str, Any]:
    """Run an evaluator's stage of the project in `root` on a model.bin; return its metrics.

    It runs with a run's parameters on this machine's devices, in a project of its own, the new
    folder `scratch`: nothing is resumed there, and nothing of the submission runs, whose model is
    data. It takes its GPUs itself, so this process must not hold any.
    """
    place, runtime = Place(scratch), read_yaml(root / PARAMS_PATH)["runtime"]
    place.prepare({**params, "runtime": runtime}, tokens, {})
    package = scratch / "artifacts/package"
    package.mkdir(parents=True)
    shutil.copyfile(model, package / "model.bin")
    script = (root / "stages" / f"{stage}.py").resolve()
    environment = {**os.environ, "DVC_ROOT": str(scratch)}
    done = subprocess.run([sys.executable, str(script)], cwd=scratch, env=environment)
    _check_exit(done, f"{stage} cannot score the model", model)
    return place.metrics(stage)


def _check_exit(done: subprocess.CompletedProcess[bytes], what: str, where: object) -> None:
    if done.returncode:
        found = f"exit code {done.returncode}; what it said is above"
        raise ParamGolfError(what, where=where, found=found)


def compare_scores(scored: Mapping[str, Any], recorded: Mapping[str, Any], stage: str) -> None:
    """Raise ParamGolfError unless what was scored is what a run recorded."""
    for key, tolerance in (("tokens_scored", 0), ("bytes_scored", 0), ("val_bpb", TOLERANCE)):
        expected = recorded[f"{stage}.{key}"]
        if not abs(scored[key] - expected) <= tolerance:  # nan is no score
            raise ParamGolfError(
                "the model does not score what was recorded",
                where=f"{stage}.{key}",
                expected=expected if tolerance == 0 else f"{expected} ± {tolerance}",
                found=scored[key],
                fix="score it on the kind of machine that made it; then `dvc repro` and again",
            )
