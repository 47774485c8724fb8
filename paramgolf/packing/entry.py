"""What train_gpt.py runs: score the packed model, or train it anew, with no project around it.

Its options stand in for params.yaml. The parameters of the network and of training, and the ways of
the evaluations, were frozen in when the artifact was packed; the other parameters of the
evaluations are options, so that another window or stride is another command and not another
artifact.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.errors import ParamGolfError, exit_on_error
from paramgolf.files import write_json
from paramgolf.model.config import ModelConfig
from paramgolf.runtime import Runtime, launch, processes
from paramgolf.runtime_config import ProcessConfig
from paramgolf.schema import parse
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import ScoredText, score_adaptive, score_sliding
from paramgolf.training.config import TrainConfig
from paramgolf.training.run import train

Config = TypeVar("Config")
SCORERS: dict[str, tuple[type, Callable[..., ScoredText]]] = {
    "eval": (SlidingConfig, score_sliding),
    "eval_ttt": (TttConfig, score_adaptive),
}
HELP = {
    "eval": "score model.bin by a sliding window",
    "eval_ttt": "score model.bin while it learns from what is scored",
    "train": f"train on {TOKENS_PATH} into artifacts/train",
}


def main(params: dict[str, Any]) -> None:
    """Run the command on the command line; `params` are those of packing.code.frozen_params."""
    options = parser(params).parse_args()
    with exit_on_error():
        try:
            _run(options, params)
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("paramgolf."):
                raise
            raise ParamGolfError(
                "this program was packed without the code for that",
                found=f"no module {error.name}",
                fix="pack it with a recipe that needs it",
            ) from None
        except OSError as error:  # a full disk, missing rights: program.py does more, and is large
            raise ParamGolfError(str(error)) from None


def _run(options: argparse.Namespace, params: dict[str, Any]) -> None:
    machine = section(ProcessConfig, params["runtime"], options, "runtime")
    launch(machine)
    with processes(machine) as runtime:
        if options.command == "train":
            model = parse(ModelConfig, params["model"], "model")
            train(model, parse(TrainConfig, params["train"], "train"), runtime)
        else:
            _score(options, params[options.command], runtime)


def _score(options: argparse.Namespace, defaults: dict[str, Any], runtime: Runtime) -> None:
    kind, score = SCORERS[options.command]
    config: Any = section(kind, defaults, options, options.command)
    evaluation = score(options.model, options.data, config, runtime)
    if runtime.is_main:
        print(json.dumps(evaluation.metrics, indent=1, sort_keys=True))
        if options.json:
            write_json(options.json, evaluation.metrics)


def parser(params: dict[str, Any]) -> argparse.ArgumentParser:
    """Return the parser of the command line, whose options have their defaults from `params`."""
    program = argparse.ArgumentParser(prog="train_gpt.py")
    commands = program.add_subparsers(dest="command", required=True)
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        if name in SCORERS:
            beside = Path(sys.argv[0]).parent / "model.bin"
            command.add_argument("--model", type=Path, default=beside)
            command.add_argument("--data", type=Path, default=TOKENS_PATH, help="folder of tokens")
            command.add_argument("--json", type=Path, help="file to write the metrics to")
            _add_options(command, params[name])
        _add_options(command, params["runtime"])
    return program


def _add_options(command: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        if name != "mode":  # the code of other modes is not here
            flag = f"--{name.replace('_', '-')}"
            command.add_argument(flag, type=_value, default=default, help=f"{default}")


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"not a YAML value: {text[:60]!r}") from None


def section(
    kind: type[Config], defaults: dict[str, Any], options: argparse.Namespace, name: str
) -> Config:
    """Return the parameters `defaults` with what the command line says instead."""
    chosen = {key: getattr(options, key, default) for key, default in defaults.items()}
    return parse(kind, chosen, name)
