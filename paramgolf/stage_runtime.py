"""The processes of a stage: as `runtime` of params.yaml asks, as far as this machine can.

Apart from paramgolf.runtime, because train_gpt.py does without it, and because a process that only
starts others need not load torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paramgolf.energy import EnergyMeter
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json, write_json
from paramgolf.gpu_slots import take_gpus, visible_gpus
from paramgolf.launch import launch
from paramgolf.metrics import METRICS
from paramgolf.mirror import mirrored
from paramgolf.params import load_params
from paramgolf.process import is_rank
from paramgolf.program import exit_on_fault
from paramgolf.progress import say
from paramgolf.runtime_config import RuntimeConfig

if TYPE_CHECKING:
    from paramgolf.runtime import Runtime

# the variable that names it, and the programs that are looked for without: Triton's, and those of
# PyTorch's compiler on a CPU
C_COMPILER = ("CC", "gcc", "clang")
CXX_COMPILER = ("CXX", "g++", "clang++")
JOULES_PER_WH = 3600.0
GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def launch_stage(stage: str, *, alone: bool = False) -> None:
    """Take GPUs and start a process on each, which go on from here; one goes on by itself.

    A script calls this before it loads torch. With `alone` it is one process, whatever
    runtime.processes says. The process that has started others ends here, with them.
    """
    refuse_left_overs()
    if is_rank():
        return
    machine = load_params(RuntimeConfig, "runtime")
    if alone:
        machine = dataclasses.replace(machine, processes=1)
    count = len(take_gpus(machine)) or machine.processes or 1
    if count > 1:
        with exit_on_fault(), mirrored(stage), metered(stage, machine):
            launch(count)


@contextlib.contextmanager
def stage_processes(stage: str) -> Iterator[Runtime]:
    """Join the processes of a stage for the length of the block.

    What one process writes meanwhile goes to the mirror too, and its metrics tell its energy; of
    several, that is left to their launcher.
    """
    from paramgolf.runtime import processes  # loads torch

    machine = without_compiler(load_params(RuntimeConfig, "runtime"))
    with mirrored(stage), metered(stage, machine), processes(machine) as runtime:
        yield runtime


@contextlib.contextmanager
def metered(stage: str, machine: RuntimeConfig) -> Iterator[None]:
    """Add to the metrics of a stage what its GPUs use in the block: `energy_wh`, null without one.

    The GPUs are those that were taken for it. Processes of a group leave it to their launcher,
    which ends the block by SystemExit.
    """
    if is_rank():
        yield
        return
    devices = [] if machine.device == "cpu" else visible_gpus()
    meter = EnergyMeter()
    before = meter.joules(devices)
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise
        _add_energy(stage, before, meter.joules(devices))
        raise
    _add_energy(stage, before, meter.joules(devices))


def _add_energy(stage: str, before: float | None, after: float | None) -> None:
    path = METRICS / f"{stage}.json"
    used = None if before is None or after is None else (after - before) / JOULES_PER_WH
    write_json(path, {**read_json(path), "energy_wh": used})


def refuse_left_overs() -> None:
    """Raise ParamGolfError where the environment names a group of processes that is not there.

    One process would train where eight were meant to, or wait for others for ever.
    """
    left = [name for name in GROUP if name in os.environ]
    if left and not is_rank():
        raise ParamGolfError(
            "the environment is that of a process of torchrun, but torchrun did not start this one",
            found=", ".join(f"{name}={os.environ[name]}" for name in left),
            fix=f"`unset {' '.join(left)}`; several hosts need torchrun (docs/cluster.md)",
        )


def without_compiler(config: RuntimeConfig) -> RuntimeConfig:
    """Return what can run here: without a compiler nothing is compiled, unless it was asked for."""
    on_gpu = config.device != "cpu" and visible_gpus() != []
    asked = [
        f"runtime.{name} is {value}"
        for name, value in (("compile", config.compile), ("kernels", config.kernels))
        if value in ("on", "fused")
    ]
    variable, *programs = C_COMPILER if on_gpu else CXX_COMPILER
    wanted = [os.environ[variable]] if variable in os.environ else programs
    if any(shutil.which(program.split()[0]) for program in wanted if program.strip()):
        return config
    needed = " or ".join(wanted)
    if asked:
        fix = f"apt-get install gcc g++, or name one in {variable}, or set these keys to auto"
        raise ParamGolfError(f"{' and '.join(asked)}, which needs a compiler: {needed}", fix=fix)
    wasted = on_gpu and (config.compile, config.kernels) != ("off", "reference")
    if wasted and os.environ.get("RANK", "0") == "0":
        say(f"there is no compiler ({needed}): going on with plain operations, which are slower")
    return dataclasses.replace(config, compile="off", kernels="reference")
