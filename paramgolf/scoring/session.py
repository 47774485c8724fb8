"""The course of an evaluation: its processes, its seconds, and how its scorer is driven."""

# ruff: noqa: ARG002 (a stage's session overrides what takes arguments and leaves them unread here)

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from paramgolf.clock import seconds_since_start
from paramgolf.progress import track
from paramgolf.runtime import Runtime, synchronize
from paramgolf.scoring.scorer import Scorer, ScoringBatch, with_segments


class Session:
    """What an evaluation runs in. A stage's also saves what is done, and probes some passes.

    Attributes:
        seconds: of each named part so far; a part may be entered many times.
        seconds_before: of a process that was cut off and that this one goes on from.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.seconds_before = 0.0

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the duration of the block to part `name`, the device's work included."""
        start = time.perf_counter()
        yield
        synchronize(self.runtime.device)  # launching is not doing
        self.seconds[name] += time.perf_counter() - start

    @property
    def total_seconds(self) -> float:
        """Seconds since the command started: imports, decompression and compilation are in."""
        return self.seconds_before + seconds_since_start()

    def run(
        self, scorer: Scorer, items: Sequence[Any], label: str | None = None, *, every: int = 1
    ) -> None:
        """Warm up, then let `scorer` run each of `items` that is not done yet.

        After each `every` items all processes stand at the same one. Without a label nothing is
        shown.
        """
        # before the text is read, so that compiling cannot learn from it
        with self.timed("compile"):
            if self.runtime.compile:
                warm_up(scorer, items)
        rest = range(self.begin(scorer, items), len(items))
        show = self.runtime.is_main and label is not None
        for index in track(rest, label or "", total=len(rest), show=show):
            scorer.run(items[index])
            if (index + 1) % every == 0:
                self.after(scorer, index + 1, len(items))

    def once(self, name: str, make: Callable[[], float]) -> float:
        """Return `make()`, or what it returned before the evaluation was cut off."""
        return make()

    def begin(self, scorer: Scorer, items: Sequence[Any]) -> int:
        """Give `scorer` the state in which it was cut off; return how many items are done."""
        return 0

    def after(self, scorer: Scorer, done: int, total: int) -> None:
        """Do what is due after `done` of `total` items; here nothing."""

    def probe(self, scorer: Scorer, batch: ScoringBatch) -> Callable[[Tensor], None] | None:
        """Look at a batch before it is scored; what is returned is then shown its scores."""
        return None

    @property
    def metrics(self) -> dict[str, Any]:
        """What it tells of itself: the seconds of each part, as `seconds_NAME`, and in all."""
        parts = {f"seconds_{name}": seconds for name, seconds in self.seconds.items()}
        return {**parts, "seconds": self.total_seconds}


def warm_up(scorer: Scorer, items: Sequence[Any]) -> None:
    """Compile what `items` will need, before any of the text is read.

    The passes run on random tokens and so learn nothing of the text. Weights, steps and ledger do
    not change, and gradients are cleared before the first step.
    """
    vocab_size = scorer.network.vocab_size
    generator = torch.Generator().manual_seed(0)
    for rows, length, part, options, learns in scorer.pass_shapes(items):
        tokens = torch.randint(vocab_size, (rows, length), generator=generator)
        options = with_segments(tokens, options, scorer.runtime.device)
        tokens = tokens.to(scorer.runtime.device)
        batch = ScoringBatch(tokens, tokens, torch.zeros_like(tokens[:, 0]), options, part)
        with torch.set_grad_enabled(learns):
            nats, _ = scorer.nats(batch)
        if learns:
            nats.sum().backward()
