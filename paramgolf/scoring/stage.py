"""An evaluation as a stage: its files, resuming where it was cut off, and its examinations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from paramgolf.checkpoint import resume_key
from paramgolf.data.token_set import TOKENS_PATH, open_tokens
from paramgolf.files import sha256_file, write_json
from paramgolf.progress import say
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import AdaptConfig, SlidingConfig
from paramgolf.scoring.documents import write_documents
from paramgolf.scoring.evaluation import Evaluation
from paramgolf.scoring.probe import Probe
from paramgolf.scoring.resume import Resume
from paramgolf.scoring.scorer import Batch, Scorer
from paramgolf.scoring.session import Session

ARTIFACTS = Path("artifacts")
PACKAGE_PATH = ARTIFACTS / "package" / "model.bin"


class StageSession(Session):
    """A session that survives a crash, and that examines some of the passes as they happen."""

    def __init__(
        self,
        stage: str,
        config: SlidingConfig | AdaptConfig,
        runtime: Runtime,
        package: Path = PACKAGE_PATH,
        tokens: Path = TOKENS_PATH,
    ) -> None:
        super().__init__(runtime)
        key = evaluation_key(config, runtime, package, tokens)
        self._stage, self._resume, self._probe = stage, Resume(stage, key, runtime), Probe()
        self._facts: dict[str, float] = {}
        saved = self._resume.state
        if saved is not None:
            self._facts, self.timing.before = saved["facts"], saved["before"]
            self.timing.seconds.update(saved["seconds"])
            self._probe.found.update(saved["probe"])

    def once(self, name: str, make: Callable[[], float]) -> float:
        """Return `make()`, or what it returned before the evaluation was cut off."""
        if name not in self._facts:
            self._facts[name] = make()
        return self._facts[name]

    def begin(self, scorer: Scorer) -> int:
        """Give `scorer` the state in which it was cut off; return how many items are done."""
        saved = self._resume.state
        if saved is None:
            return 0
        scorer.load_state({**saved["scorer"], **self._resume.own})
        if self.runtime.is_main:
            say(f"{self._stage}: resumed after {saved['done']} parts of the text")
        done: int = saved["done"]
        return done

    def after(self, scorer: Scorer, done: int, total: int) -> None:
        """Save what is done, and choose what to examine next."""
        self._probe.plan(done, total)
        self._resume.save(lambda: (self._state(scorer, done), scorer.own_state()))

    def examine(self, scorer: Scorer, batch: Batch) -> Callable[[Tensor], None] | None:
        """Examine the batch if its turn has come."""
        return self._probe.examine(scorer, batch)

    def _state(self, scorer: Scorer, done: int) -> dict[str, Any]:
        return {
            "done": done,
            "scorer": scorer.state(),
            "facts": self._facts,
            "before": self.timing.total,
            "seconds": dict(self.timing.seconds),
            "probe": self._probe.found,
        }

    @property
    def metrics(self) -> dict[str, Any]:
        """What the session tells of itself: seconds, and what the examinations found."""
        return {**super().metrics, "probe": self._probe.found}

    def finish(self, evaluation: Evaluation) -> None:
        """Write documents.parquet and the metrics; nothing is left to resume."""
        if self.runtime.is_main:
            path = ARTIFACTS / self._stage / "documents.parquet"
            write_documents(path, evaluation.text, evaluation.nats)
            write_json(ARTIFACTS / "metrics" / f"{self._stage}.json", evaluation.metrics)
        self._resume.remove()


def evaluation_key(
    config: SlidingConfig | AdaptConfig, runtime: Runtime, package: Path, tokens: Path
) -> str:
    """Return a hash of all that a score depends on."""
    found = open_tokens(tokens)
    files = [package, *(tokens / name for name in (*found.val_files, *found.val_bytes_files))]
    # a missing file is the evaluation's to complain of
    hashes = [sha256_file(path) if path.is_file() else None for path in files]
    return resume_key(dataclasses.asdict(config), hashes, [runtime.world, runtime.device.type])
