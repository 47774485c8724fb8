"""An evaluation as a stage: its files, resuming where it was cut off, and its probe.

Apart from the session, because train_gpt.py does without it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from paramgolf.bits_per_byte import bits_per_byte
from paramgolf.checkpoint import Checkpoint, resume_key
from paramgolf.data.token_set import TOKENS_PATH, open_tokens
from paramgolf.files import atomic_open, write_json
from paramgolf.metrics import file_hashes
from paramgolf.progress import say
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import ScoredText
from paramgolf.scoring.forecast import Forecast, work_of
from paramgolf.scoring.probe import Probe
from paramgolf.scoring.scorer import Scorer, ScoringBatch, State
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text

ARTIFACTS = Path("artifacts")
PACKAGE_PATH = ARTIFACTS / "package" / "model.bin"
SECONDS = 30.0  # between saves, at least
SHARE = 0.02  # of the time goes into saving, at most


class StageSession(Session):
    """A session that survives a crash, and that probes some of the passes as they happen."""

    def __init__(
        self,
        stage: str,
        config: SlidingConfig | TttConfig,
        runtime: Runtime,
        package: Path = PACKAGE_PATH,
        tokens: Path = TOKENS_PATH,
        *,
        limit_seconds: float | None = None,
    ) -> None:
        super().__init__(runtime)
        self._config, self._limit = config, limit_seconds
        self._forecast: Forecast | None = None
        found = open_tokens(tokens)
        primers = found.first_train_files(config.mixture.training_tokens)
        masked = (found.manifest.tokenizer,) if config.token_mask else ()
        names = ("manifest.json", *found.scored_files, *primers, *masked)
        files = [package, *(tokens / name for name in names)]
        # a missing file is reported by the evaluation itself
        self._read = file_hashes(path for path in files if path.is_file())
        # all that a score depends on
        hashes = [file["sha256"] for file in self._read]
        machine = [runtime.world, runtime.device.type]
        key = resume_key(dataclasses.asdict(config), hashes, machine)
        self._stage, self._saved, self._probe = stage, SavedEvaluation(stage, key, runtime), Probe()
        self._facts: dict[str, float] = {}
        saved = self._saved.state
        if saved is not None:
            self._facts, self.seconds_before = saved["facts"], saved["before"]
            self.seconds.update(saved["seconds"])
            if runtime.is_main:  # it holds what all had found
                self._probe.found.update(saved["probe"])

    def once(self, name: str, make: Callable[[], float]) -> float:
        """Return `make()`, or what it returned before the evaluation was cut off."""
        if name not in self._facts:
            self._facts[name] = make()
        return self._facts[name]

    def begin(self, scorer: Scorer, items: Sequence[Any]) -> int:
        """Give `scorer` the state in which it was cut off; return how many items are done."""
        saved = self._saved.state
        done: int = 0 if saved is None else saved["done"]
        if saved is not None:
            scorer.load_state({**saved["scorer"], **self._saved.own})
            if self.runtime.is_main:
                say(f"{self._stage}: resumed after {done} parts of the text")
        if self._limit is not None and self.runtime.is_main:
            work = [work_of(item, self._config) for item in items]
            self._forecast = Forecast(self._limit, work)
        return done

    def after(self, scorer: Scorer, done: int, total: int) -> None:
        """Say whether the time will suffice, save what is done, and choose what to probe next."""
        if self._forecast and (words := self._forecast.look(done, self.total_seconds)):
            say(f"{self._stage}: {words}")
        self._probe.plan(done, total)
        self._saved.save(lambda: (self._state(scorer, done), scorer.own_state()))

    def probe(self, scorer: Scorer, batch: ScoringBatch) -> Callable[[Tensor], None] | None:
        """Probe the batch if its turn has come."""
        return self._probe(scorer, batch)

    def _state(self, scorer: Scorer, done: int) -> dict[str, Any]:
        return {
            "done": done,
            "scorer": scorer.state(),
            "facts": self._facts,
            "before": self.total_seconds,
            "seconds": dict(self.seconds),
            "probe": self._probe.over(self.runtime),
        }

    @property
    def metrics(self) -> dict[str, Any]:
        """What the session tells of itself: seconds, and what the probe found.

        Of several processes, a part's seconds are those of the one that took longest over it.
        """
        slowest: Counter[str] = Counter()
        for one in self.runtime.gather(super().metrics):
            slowest |= Counter(one)  # the larger of two
        return {**slowest, "probe": self._probe.over(self.runtime)}

    def finish(self, evaluation: ScoredText) -> None:
        """Write documents.parquet and the metrics; nothing is left to resume."""
        if self.runtime.is_main:
            path = ARTIFACTS / self._stage / "documents.parquet"
            write_documents(path, evaluation.text, evaluation.nats)
            metrics = {**evaluation.metrics, "read": self._read, "wrote": file_hashes([path])}
            write_json(ARTIFACTS / "metrics" / f"{self._stage}.json", metrics)
        self._saved.remove()


class SavedEvaluation:
    """The newest saved state of an evaluation; `key` is a hash of its parameters, data and model.

    State that all processes share is one file, written by the main process. State of a single
    process (it may be empty) is written alternately to two files of that process. The main process
    writes last: if it is killed before that, its last file still matches the older of the two files
    of each process. All processes must see the folder.
    """

    def __init__(self, stage: str, key: str, runtime: Runtime) -> None:
        self._runtime = runtime
        self._shared = Checkpoint(stage, key)
        self._own = [Checkpoint(stage, f"{key}-{runtime.rank}-{turn}") for turn in (0, 1)]
        self._last, self._wait = time.monotonic(), SECONDS
        self.state, self.own = self._load()
        self._saves = 0 if self.state is None else self.state["saves"]

    def _load(self) -> tuple[State | None, State]:
        """Return the common and the own state; all processes find one, or none does."""
        cpu, own = torch.device("cpu"), None
        shared = self._shared.load(cpu, tell=self._runtime.is_main)
        if shared is not None and self._runtime.rank in shared["owners"]:
            own = self._own[shared["saves"] % 2].load(cpu)
            shared = shared if own is not None else None
        lost = torch.tensor(float(shared is None), device=self._runtime.device)
        return (None, {}) if self._runtime.sum(lost) else (shared, own or {})

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
        owners = torch.zeros(self._runtime.world, device=self._runtime.device)
        owners[self._runtime.rank] = bool(own)
        owners = self._runtime.sum(owners).nonzero().flatten()  # waits for all to have saved
        if self._runtime.is_main:
            self._shared.save({**shared, "saves": self._saves, "owners": owners.tolist()})
        self._last = time.monotonic()
        self._wait = max(SECONDS, (self._last - begin) / SHARE)

    def remove(self) -> None:
        """Delete the files, after success."""
        self._runtime.barrier()
        for checkpoint in (self._shared, *self._own):
            checkpoint.remove()


def document_table(text: Text, nats: np.ndarray) -> pa.Table:
    """Return a row per document in the order of the text: document, tokens, bytes, nats and bpb.

    The prediction of a document's BOS counts for that document, with 0 bytes; the first BOS of the
    text is not a target. bpb is null if no byte of the document was scored.
    """
    begins = text.tokens == text.bos
    count = int(begins.sum())
    document = np.cumsum(begins)[1:] - 1
    tokens = np.bincount(document, minlength=count)
    byte_counts = np.bincount(document, weights=text.byte_counts, minlength=count).astype(np.int64)
    sums = np.bincount(document, weights=nats, minlength=count)
    pairs = zip(sums.tolist(), byte_counts.tolist(), strict=True)
    return pa.table(
        {
            "document": pa.array(np.arange(count)),
            "tokens": pa.array(tokens, type=pa.int64()),
            "bytes": pa.array(byte_counts),
            "nats": pa.array(sums),
            "bpb": pa.array([bits_per_byte(*p) if p[1] else None for p in pairs], pa.float64()),
        }
    )


def write_documents(path: str | Path, text: Text, nats: np.ndarray) -> None:
    """Write the table as Parquet, atomically."""
    with atomic_open(path) as file:
        pq.write_table(document_table(text, nats), file, compression="zstd")
