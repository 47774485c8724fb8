"""What train_gpt.py runs: score the packed model, or train it anew, with no project around it.

Its options stand in for params.yaml. The parameters of the network and of training, and the ways of
the evaluations, were frozen in when the artifact was packed; the other parameters of the
evaluations are options, so that another window or stride is another command and not another
artifact.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.errors import exit_on_error
from paramgolf.files import write_json
from paramgolf.model.config import ModelConfig
from paramgolf.packing.entry_defaults import ADAPT, MIXTURE, RUNTIME, SLIDING, STRIDE
from paramgolf.runtime import Runtime, launch, processes
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.schema import parse
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import ScoredText, score_adaptive, score_sliding
from paramgolf.training.config import TrainConfig
from paramgolf.training.run import train

SCORERS: dict[str, tuple[type, Callable[..., ScoredText]]] = {
    "eval": (SlidingConfig, score_sliding),
    "eval_ttt": (TttConfig, score_adaptive),
}


def main(params: dict[str, Any]) -> None:
    """Run the command on the command line; `params` are those of codec.code.frozen_params."""
    options = _parser(params).parse_args()
    with exit_on_error():
        machine = _section(RuntimeConfig, options, "runtime")
        launch(machine)
        with processes(machine) as runtime:
            if options.command == "train":
                model = parse(ModelConfig, params["model"], "model")
                train(model, parse(TrainConfig, params["train"], "train"), runtime)
            else:
                _score(options, runtime)


def _score(options: argparse.Namespace, runtime: Runtime) -> None:
    kind, score = SCORERS[options.command]
    config: Any = _section(kind, options, options.command)
    evaluation = score(options.model, options.data, config, runtime)
    if runtime.is_main:
        print(json.dumps(evaluation.metrics, indent=1, sort_keys=True))
        if options.json:
            write_json(options.json, evaluation.metrics)


def _parser(params: dict[str, Any]) -> argparse.ArgumentParser:
    window = params["train"]["sequence_length"]
    parser = argparse.ArgumentParser(prog="train_gpt.py")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "eval": "score model.bin by a sliding window",
        "eval_ttt": "score model.bin while it learns from what is scored",
    }
    for name, defaults in (("eval", SLIDING), ("eval_ttt", ADAPT)):
        command = commands.add_parser(name, help=helps[name])
        command.add_argument("--model", type=Path, default=Path(sys.argv[0]).parent / "model.bin")
        command.add_argument("--data", type=Path, default=TOKENS_PATH, help="folder of tokens")
        command.add_argument("--json", type=Path, help="file to write the metrics to")
        chosen = {
            "mode": params[name]["mode"],
            "mixture": {"kind": params[name]["mixture"], **MIXTURE},
            "window": window,
        }
        stride = min(STRIDE, window)
        _add_options(command, {**chosen, **defaults, "stride": stride, **RUNTIME})
    trainer = commands.add_parser("train", help=f"train on {TOKENS_PATH} into artifacts/train")
    _add_options(trainer, RUNTIME)
    return parser


def _add_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=yaml.safe_load, default=default, help=f"{default}"
        )


def _section(kind: type, options: argparse.Namespace, name: str) -> Any:
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}
    return parse(kind, values, name)
