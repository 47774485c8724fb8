"""What train_gpt.py runs: score the packed model, or train it anew, with no project around it.

Its options stand in for params.yaml. The recipe's parameters were frozen in when the artifact was
packed; those of the evaluations, the modes excepted, are also options.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from paramgolf.clock import pass_on_start_time
from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.errors import ParamGolfError, exit_on_error
from paramgolf.files import write_json
from paramgolf.model.config import ModelConfig
from paramgolf.process import SIGNALLED, is_rank
from paramgolf.runtime import Runtime, processes, resolve_device
from paramgolf.runtime_config import ProcessConfig
from paramgolf.schema import parse
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import ScoredText, score_adaptive, score_sliding
from paramgolf.scoring.session import Session
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
    "source": "unpack the code into a folder",  # the loader does that: see packing/code.py
}


def main(params: dict[str, Any]) -> None:
    """Run the command on the command line; `params` are those of packing.code.frozen_params."""
    program = parser(params)
    options = program.parse_args()
    if options.command == "source":  # with a folder for which the loader has no use
        program.error(f"no folder: {options.folder}")
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


def launch(config: ProcessConfig) -> None:
    """Start this program once per process with torchrun, unless torchrun started it already.

    With one process this returns at once and the program goes on. Otherwise it waits for the
    processes and exits with the code of the one that failed first; they are ended with this one.
    """
    if is_rank():
        return
    gpus = torch.cuda.device_count() if resolve_device(config) == "cuda" else 1
    processes = config.processes or gpus
    if processes == 1:
        return
    pass_on_start_time()
    raise SystemExit(_torchrun([f"--nproc-per-node={processes}", *sys.argv]))


def _torchrun(words: list[str]) -> int:
    """Run torchrun in this process, which has loaded torch already; return the exit code.

    Its own traceback and table are left out: processes that were not killed have said why they end.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.disable()
    try:
        main(["--standalone", *words])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        print(f"paramgolf: process {rank} was ended by {failure.signal_name()}", file=sys.stderr)
        return SIGNALLED - failure.exitcode
    except SignalException as error:
        return SIGNALLED + int(error.sigval)
    return 0


def _score(options: argparse.Namespace, defaults: dict[str, Any], runtime: Runtime) -> None:
    kind, score = SCORERS[options.command]
    config: Any = section(kind, defaults, options, options.command)
    evaluation = score(options.model, options.data, config, Session(runtime))
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
        if name == "source":
            command.add_argument("folder")
        else:
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
    """Return the parameters `defaults` with what the command line says instead.

    Of a part that has keys of its own it may name a few.
    """
    chosen = {key: getattr(options, key, default) for key, default in defaults.items()}
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(chosen[key], dict):
            chosen[key] = default | chosen[key]
    return parse(kind, chosen, name)
