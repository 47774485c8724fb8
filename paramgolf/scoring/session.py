"""The course of an evaluation: its processes and its seconds, and how its scorer is driven."""

# ruff: noqa: ARG002 (a stage's session overrides what takes arguments and leaves them unread here)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from paramgolf.progress import track
from paramgolf.runtime import Runtime
from paramgolf.scoring.scorer import Batch, Scorer
from paramgolf.scoring.timing import Timing


class Session:
    """What an evaluation runs in. A stage's also saves what is done, and examines some passes."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.timing = Timing(runtime.device)

    def run(
        self, scorer: Scorer, items: Sequence[Any], label: str | None = None, *, every: int = 1
    ) -> None:
        """Warm up, then let `scorer` run each of `items` that is not done yet.

        After each `every` items all processes stand at the same one. Without a label nothing is
        shown.
        """
        with self.timing.part("compile"):
            if self.runtime.compile:
                rehearse(scorer, items)
        rest = range(self.begin(scorer), len(items))
        show = self.runtime.is_main and label is not None
        for index in track(rest, label or "", total=len(rest), show=show):
            scorer.run(items[index])
            if (index + 1) % every == 0:
                self.after(scorer, index + 1, len(items))

    def once(self, name: str, make: Callable[[], float]) -> float:
        """Return `make()`, or what it returned before the evaluation was cut off."""
        return make()

    def begin(self, scorer: Scorer) -> int:
        """Give `scorer` the state in which it was cut off; return how many items are done."""
        return 0

    def after(self, scorer: Scorer, done: int, total: int) -> None:
        """Take notice that `done` items of `total` are done."""

    def examine(
        self,
        scorer: Scorer,
        batch: Batch,
    ) -> Callable[[Tensor], None] | None:
        """Look at a batch before it is scored; what is returned is then shown its scores."""
        return None

    @property
    def metrics(self) -> dict[str, Any]:
        """What the session tells of itself."""
        return self.timing.metrics


def rehearse(scorer: Scorer, items: Sequence[Any]) -> None:
    """Compile what `items` will need, on random tokens; weights, steps and ledger stay as they are.

    Gradients of rehearsals are cleared before the first step.
    """
    vocab_size = scorer.network.vocab_size
    generator = torch.Generator().manual_seed(0)
    for rows, length, part, options, learns in scorer.rehearsals(items):
        tokens = torch.randint(vocab_size, (rows, length), generator=generator)
        options = scorer.with_segments(tokens, options)
        tokens = tokens.to(scorer.runtime.device)
        batch = Batch(tokens, tokens, torch.zeros_like(tokens[:, 0]), options, part)
        with torch.set_grad_enabled(learns):
            nats, _ = scorer.nats(batch)
        if learns:
            nats.sum().backward()
