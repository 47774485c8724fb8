"""Processes of the tests: forks of one server that has loaded torch, which saves each a second."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

import torch
import torch.multiprocessing

from paramgolf.process import GROUP_VARIABLE
from paramgolf.runtime import Runtime, processes
from paramgolf.runtime_config import ProcessConfig

CPU = ProcessConfig(
    device="cpu",
    processes=1,
    attention="auto",
    kernels="auto",
    compile="off",
    deterministic=False,
)
ALONE = Runtime(0, 1, torch.device("cpu"))  # the ordinary case: one process
PRELOADED = ("paramgolf.quant.calibrate", "paramgolf.scoring.evaluation", "paramgolf.training.run")


@functools.cache
def server() -> ForkServerContext:
    """Start the server, with the modules that processes begin from; there is one a test process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def run_ranks(work: Callable[..., None], *arguments: object, world: int = 2) -> None:
    """Run work(rank, *arguments) in `world` processes; raise what one of them raised."""
    server()
    torch.multiprocessing.start_processes(work, arguments, world, start_method="forkserver")


@contextlib.contextmanager
def joined(rank: int, folder: str | Path) -> Iterator[Runtime]:
    """Be one of two processes, as our launcher starts them, that find each other in `folder`."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ[GROUP_VARIABLE] = str(folder)
    with processes(CPU) as runtime:
        yield runtime


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():  # or the test's time runs out
        time.sleep(0.02)


def written(path: Path) -> bool:
    return path.is_file() and path.read_text() != ""


def runs(pid: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
