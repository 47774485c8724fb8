"""The command that scores a submission from inside its folder, and what it must print."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json
from paramgolf.gpu_slots import take_gpus
from paramgolf.params import PARAMS_PATH, load_params, read_yaml
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.submission.script import PackedScript, read_script

COMMANDS = {"eval_sliding": "eval", "eval_ttt": "eval_ttt"}
TOLERANCE = (
    1e-3  # bits a byte; the devices' arithmetic differs by less, the record's margin is 2e-3
)


def evaluator_of(params: Mapping[str, Any]) -> str:
    """Return the stage whose score is handed in: that which adapts, unless it is told not to."""
    return "eval_sliding" if params["eval_ttt"]["mode"] == "none" else "eval_ttt"


def command(params: Mapping[str, Any], stage: str, script: PackedScript) -> list[str]:
    """Return the words after `python train_gpt.py`: options where they are not its defaults."""
    name = COMMANDS[stage]
    return [name, *_options(params[stage], script.params[name])]


def _options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return --key=value for each value that is not the default; json is YAML too."""
    return [
        f"--{key.replace('_', '-')}={json.dumps(value)}"
        for key, value in values.items()
        if value != defaults[key]
    ]


def score(folder: Path, tokens: Path, words: Sequence[str], *, root: Path) -> dict[str, Any]:
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
    if done.returncode:
        found = f"exit code {done.returncode}; what it said is above"
        raise ParamGolfError(
            "train_gpt.py failed in the folder", where=shlex.join(line), found=found
        )
    metrics: dict[str, Any] = read_json(result)
    return metrics


def compare_scores(found: Mapping[str, Any], recorded: Mapping[str, Any], stage: str) -> None:
    """Raise ParamGolfError unless a folder's score is the recorded one."""
    for key, tolerance in (("tokens_scored", 0), ("bytes_scored", 0), ("val_bpb", TOLERANCE)):
        expected = recorded[f"{stage}.{key}"]
        if not abs(found[key] - expected) <= tolerance:  # nan is no score
            raise ParamGolfError(
                "the folder does not score what was recorded",
                where=f"{stage}.{key}",
                expected=expected if tolerance == 0 else f"{expected} ± {tolerance}",
                found=found[key],
                fix="score it on the kind of machine that made it; then `dvc repro` and again",
            )
