"""Folders in which recipes run stage by stage, and schedules cut to a small number of tokens."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import Text, budget_of
from paramgolf.experiments.lab.stages import (
    ROOT,
    Place,
    Processes,
    StageError,
    environment_of,
    write_params,
)
from paramgolf.experiments.lab.tokens import Tokens
from paramgolf.files import read_json
from paramgolf.gpu_slots import VISIBLE
from paramgolf.model.config import ModelConfig
from paramgolf.recipes import Assignment, build, compose, read_assignment
from paramgolf.schema import parse

WORK = ROOT / ".cache" / "benchmarks"


def cut(recipe: str, changes: list[Assignment], tokens: int, batch_tokens: int) -> dict[str, Any]:
    """Return the parameters of a recipe with changes, its schedule cut to so many tokens.

    Momentum has settled after a quarter of the run, and the average forgets its start. The changes
    have the last word.
    """
    content = compose(recipe)
    budget = budget_of(content, seconds=None, tokens=tokens, batch_tokens=batch_tokens)
    momentum = min(content["train"]["muon_momentum_steps"], tokens // batch_tokens // 4)
    short: dict[str, Any] = {
        "train.muon_momentum_steps": momentum,
        "train.ema_warmup": True,
        "train.validate_every": 0,
        "train.checkpoint_every": 0,
    }
    return build(recipe, [*budget, *short.items(), *changes])


def assignments(texts: Iterable[str]) -> list[Assignment]:
    """Read changes of parameters as the command line gives them."""
    return [read_assignment(text) for text in texts]


class Devices:
    """GPUs that runs take and give back.

    They are the first `count` of those that CUDA_VISIBLE_DEVICES names, or of the machine's.
    """

    def __init__(self, count: int) -> None:
        visible = os.environ.get(VISIBLE)
        names = visible.split(",") if visible else [str(i) for i in range(count)]
        if not 0 < count <= len(names):
            raise ParamGolfError(f"--gpus {count}, but {VISIBLE} names {len(names)}: {visible}")
        self._free: queue.Queue[str] = queue.Queue()
        for name in names[:count]:
            self._free.put(name.strip())

    @contextlib.contextmanager
    def take(self) -> Iterator[str]:
        """Wait for a GPU, and lend it as CUDA_VISIBLE_DEVICES names it."""
        device = self._free.get()
        try:
            yield device
        finally:
            self._free.put(device)


class Project:
    """A folder with params.yaml in which stages run; others of the same text share its tokens."""

    def __init__(self, folder: Path, content: dict[str, Any], device: str | None = None) -> None:
        """Make the folder anew; stages see `device` alone of the GPUs, or all of them."""
        self.folder, self.content = folder, content
        self._processes = Processes()
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        write_params(folder, content)
        self.see(device)

    def see(self, device: str | None) -> None:
        """Let the stages that follow see one GPU alone, or all.

        A folder of temporary files of its own lets several projects share a GPU.
        """
        environment = environment_of(self.folder, device)
        self.environment = {**environment, "TMPDIR": str(self.folder / "tmp")}

    def take_tokens(self) -> None:
        """Put data/tokens in place, those of the same text and tokenizer; make them if need be."""
        data = self.content["data"]
        text = Text(files=tuple(data["files"]), validation_files=tuple(data["validation_files"]))
        tokens = Tokens(WORK / "tokens", text, self._processes, ROOT)
        WORK.mkdir(parents=True, exist_ok=True)
        with FileLock(WORK / "tokens.lock"):  # others wait for the tokens
            self.link_tokens(tokens.take(self.content).folder)

    def link_tokens(self, tokens: Path) -> None:
        """Let data/tokens be a folder of shards elsewhere."""
        (self.folder / "data").mkdir()
        (self.folder / "data/tokens").symlink_to(tokens.resolve())

    def run(self, *stages: str) -> None:
        """Run stages; what one says goes to its log."""
        for stage in stages:
            try:
                seconds = self._processes.run(stage, Place(self.folder), self.environment)
            except StageError as error:
                where = self.folder / f"{stage}.log"
                raise ParamGolfError(str(error), where=where) from None
            print(f"{self.folder.name}: {stage} {seconds:.0f} s", file=sys.stderr, flush=True)

    def metrics(self, stage: str) -> dict[str, Any] | None:
        """Return the metrics of a stage, None where it has not run."""
        path = self.folder / f"artifacts/metrics/{stage}.json"
        return read_json(path) if path.is_file() else None

    def steps(self) -> list[dict[str, Any]]:
        """Return the log's steps of training."""
        lines = (self.folder / "artifacts/train/log.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == "step"]

    def times(self) -> dict[str, float | None]:
        """Return the first loss and the times of steps, as `of_steps` does."""
        return of_steps(self.steps(), parse(ModelConfig, self.content["model"], "model"))


def of_steps(steps: list[dict[str, Any]], model: ModelConfig) -> dict[str, float | None]:
    """Return the first loss, and the median milliseconds of a step in the first and last order."""
    milliseconds: list[list[float]] = [[] for _ in model.orders]
    for before, step in itertools.pairwise(steps):
        phase = model.phase_at((step["step"] - 1) / len(steps), step["step"] - 1)
        milliseconds[phase].append(1000 * (step["seconds"] - before["seconds"]))
    first, last = milliseconds[0], milliseconds[-1]
    return {
        "first_loss": steps[0]["loss"],
        "step_ms_before": statistics.median(first) if first else None,
        "step_ms_after": statistics.median(last) if last and len(model.orders) > 1 else None,
    }
