"""Processes of the tests: forks of one server that has loaded torch, which saves each a second."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from unittest import mock

import torch.multiprocessing

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
