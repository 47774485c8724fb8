"""Check a whole parameter file: unknown keys, types, impossible combinations, all faults at once.

It prints nothing when all is well. Every stage of dvc.yaml begins with it, and names itself, so
that a result is never kept under the hash of other code. Before a training on several GPUs the
estimate must find nothing against the run (verify.guard_training).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from paramgolf.errors import ParamGolfError
from paramgolf.nvidia_smi import gpus
from paramgolf.params import PARAMS_PATH, read_yaml
from paramgolf.recipes import Params, check
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.stage_code import check_hash

EXAMPLE = """example:
  paramgolf check
  paramgolf check /tmp/other.yaml
  paramgolf check --stage train"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=PARAMS_PATH,
        help="a parameter file; default: %(default)s",
    )
    parser.add_argument("--stage", help="also check that artifacts/code knows this stage's code")


def run(options: argparse.Namespace) -> int:
    """Raise ParamGolfError where the file is at fault, or the stage's hash is of other code."""
    params = check(read_yaml(options.path), where=options.path)
    if options.stage:
        check_hash(options.stage)
    if options.stage == "train" and params.verify.guard_training:
        check_estimate(params)
    return 0


def check_estimate(params: Params) -> None:
    """Raise ParamGolfError where the run will use several GPUs and the estimate is against it."""
    names = gpus_of_run(params.runtime)
    if len(names) < 2:
        return
    # here: every stage begins with this command, and is not to wait for it
    from paramgolf.data.manifests import read_tokens_manifest
    from paramgolf.data.token_set import TOKENS_PATH
    from paramgolf.estimate.guard import objections

    found = list(objections(params, read_tokens_manifest(TOKENS_PATH), names))
    if found:
        raise ParamGolfError(
            f"by its estimate this run will not do on {len(names)} x {names[0]}",
            found="; ".join(found),
            fix="change the parameters, or set verify.guard_training to false to train anyway",
        )


def gpus_of_run(runtime: RuntimeConfig) -> list[str]:
    """Return the names of the GPUs that a stage would use: those visible, or fewer."""
    if runtime.device == "cpu":
        return []
    names = [gpu.name for gpu in gpus()]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = names[: len([name for name in visible.split(",") if name.strip()])]
    return names[: runtime.processes or len(names)]
