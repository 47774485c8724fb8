"""What an evaluation that was cut off goes on from: saved now and then, removed at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from paramgolf.checkpoint import Checkpoint
from paramgolf.runtime import Runtime

SECONDS = 30.0  # between saves, at least
SHARE = 0.02  # of the time goes into saving, at most

State = dict[str, Any]


class Resume:
    """The newest state of an evaluation, whose `key` tells parameters, data and model.

    What processes hold alike is the main one's file; what each holds alone (State may be empty) is
    in two files of its own by turns, so that one of them belongs to whatever the main process saved
    last. All processes must see the folder.
    """

    def __init__(self, stage: str, key: str, runtime: Runtime) -> None:
        self._runtime = runtime
        self._shared = Checkpoint(stage, key)
        self._own = [Checkpoint(stage, f"{key}-{runtime.rank}-{turn}") for turn in (0, 1)]
        self._saves = 0
        self._last, self._wait = time.monotonic(), SECONDS
        cpu = torch.device("cpu")
        self.state: State | None = self._shared.load(cpu)
        self.own: State = {}
        if self.state is not None:
            self._saves = self.state["saves"]
            if self.state["own"]:
                self.own = self._own[self._saves % 2].load(cpu) or {}

    def save(self, make: Callable[[], tuple[State, State]]) -> None:
        """Save what `make` returns, the common and the own state, if it is time; all call it."""
        due = time.monotonic() >= self._last + self._wait
        if not self._runtime.agree(float(due)):
            return
        begin = time.monotonic()
        shared, own = make()
        self._saves += 1
        if own:
            self._own[self._saves % 2].save(own)
        self._runtime.barrier()
        if self._runtime.is_main:
            self._shared.save({**shared, "saves": self._saves, "own": bool(own)})
        self._last = time.monotonic()
        self._wait = max(SECONDS, (self._last - begin) / SHARE)

    def remove(self) -> None:
        """Delete the files, after success."""
        self._runtime.barrier()
        for checkpoint in (self._shared, *self._own):
            checkpoint.remove()
