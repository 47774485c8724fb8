"""Folders in which recipes run stage by stage, and schedules cut to a small number of tokens."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from paramgolf.files import read_json
from paramgolf.gpu_slots import VISIBLE
from paramgolf.model.config import ModelConfig
from paramgolf.recipes import Assignment, build, read_assignment
from paramgolf.schema import parse

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".cache" / "benchmarks"
SCRIPTS = {"packed": ROOT / "paramgolf" / "experiments" / "packed_score.py"}  # run as stages are
PUBLISHED_STEPS = 5000  # about what the records take in their 600 s
LOG_LINES = 20


def cut(recipe: str, changes: list[Assignment], tokens: int, batch_tokens: int) -> dict[str, Any]:
    """Return the parameters of a recipe with changes, its schedule cut to so many tokens.

    Points that the recipe gives in steps become shares of PUBLISHED_STEPS. Momentum has settled
    after a quarter of the run, and the average forgets its start. The changes have the last word.
    """
    content = build(recipe)
    train, steps = content["train"], tokens // batch_tokens
    short: dict[str, Any] = {
        "train.steps": steps,
        "train.budget_seconds": None,
        "train.batch_tokens": batch_tokens,
        "train.curriculum": [
            {**sizes, "batch_tokens": sizes["batch_tokens"] * batch_tokens // train["batch_tokens"]}
            for sizes in train["curriculum"]
        ],
        "train.micro_batch_tokens": min(batch_tokens, train["micro_batch_tokens"]),
        "train.muon_momentum_steps": min(train["muon_momentum_steps"], steps // 4),
        "train.ema_warmup": True,
        "train.validate_every": 0,
        "train.checkpoint_every": 0,
    }
    if train["warmdown_unit"] == "steps":
        share = min(1.0, train["warmdown"] / PUBLISHED_STEPS)
        short |= {"train.warmdown_unit": "fraction", "train.warmdown": share}
    if content["model"]["recurrence_unit"] == "step":
        phases = [
            {**phase, "at": phase["at"] / PUBLISHED_STEPS}
            for phase in content["model"]["recurrence"]
        ]
        short |= {"model.recurrence_unit": "fraction", "model.recurrence": phases}
    return build(recipe, [*short.items(), *changes])


def assignments(texts: Iterable[str]) -> list[Assignment]:
    """Read changes of parameters as the command line gives them."""
    return [read_assignment(text) for text in texts]


def folder_name(text: str) -> str:
    """Return a name as a folder may have it."""
    return "".join(c if c.isalnum() else "-" for c in text)


def stage_environment() -> dict[str, str]:
    """Return the environment in which a stage of this repository runs, whatever folder it is in."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Devices:
    """GPUs that runs take and give back, each of them `jobs` times at once.

    They are the first `count` of those that CUDA_VISIBLE_DEVICES names, or of the machine's.
    """

    def __init__(self, count: int, jobs: int = 1) -> None:
        visible = os.environ.get(VISIBLE)
        names = visible.split(",") if visible else [str(i) for i in range(count)]
        if not 0 < count <= len(names):
            raise SystemExit(f"--gpus {count}, but {VISIBLE} names {len(names)}: {visible}")
        self.runs = count * jobs
        self._free: queue.Queue[str] = queue.Queue()
        for name in names[:count] * jobs:
            self._free.put(name.strip())

    @contextlib.contextmanager
    def take(self) -> Iterator[str]:
        """Wait for a GPU, and lend it as CUDA_VISIBLE_DEVICES names it."""
        device = self._free.get()
        try:
            yield device
        finally:
            self._free.put(device)


class StageError(Exception):
    """A stage that ended with an error, or was not begun."""


class Project:
    """A folder with params.yaml in which stages run; others of the same text share its tokens."""

    def __init__(self, folder: Path, content: dict[str, Any], device: str | None = None) -> None:
        """Make the folder anew; stages see `device` alone of the GPUs, or all of them."""
        self.folder, self.content = folder, content
        self.environment = {
            **stage_environment(),
            "DVC_ROOT": str(ROOT),  # paths of texts are relative to the repository
            "TMPDIR": str(folder / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(WORK / "kernels/inductor"),
            "TRITON_CACHE_DIR": str(WORK / "kernels/triton"),
        }
        if device is not None:
            self.see(device)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        (folder / "params.yaml").write_text(yaml.safe_dump(content))

    def see(self, device: str) -> None:
        """Let the stages that follow see one GPU alone."""
        self.environment[VISIBLE] = device

    def take_tokens(self) -> None:
        """Put data/tokens in place, those of the same text and tokenizer; make them if need be."""
        parts = {name: self.content[name] for name in ("data", "tokenizer")}
        if parts["data"]["source"] != "hub":  # recipes name theirs all the same
            parts["data"] = {**parts["data"], "hub": None}
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        kept = WORK / "tokens" / key
        (WORK / "tokens").mkdir(parents=True, exist_ok=True)
        with FileLock(WORK / "tokens" / f"{key}.lock"):  # others wait for the tokens
            if not (kept / "manifest.json").is_file():
                self._make_tokens(kept)
        self.link_tokens(kept)

    def link_tokens(self, tokens: Path) -> None:
        """Let data/tokens be a folder of shards elsewhere."""
        (self.folder / "data").mkdir()
        (self.folder / "data/tokens").symlink_to(tokens.resolve())

    def _make_tokens(self, kept: Path) -> None:
        self.run("download", "retokenize")
        shutil.rmtree(kept, ignore_errors=True)
        (self.folder / "data/tokens").rename(kept)
        shutil.rmtree(self.folder / "data")

    def run(self, *stages: str) -> None:
        """Run stages; what one says goes to its log, whose end is shown if it fails.

        A folder of temporary files of its own lets several projects share a GPU; what they compile
        they share.
        """
        for stage in stages:
            log, start = self.folder / f"{stage}.log", time.monotonic()
            script = SCRIPTS.get(stage, ROOT / "stages" / f"{stage}.py")
            command = [sys.executable, str(script)]
            with log.open("w") as out:
                done = subprocess.run(
                    command, cwd=self.folder, env=self.environment, stdout=out, stderr=out
                )
            seconds = time.monotonic() - start
            print(f"{self.folder.name}: {stage} {seconds:.0f} s", file=sys.stderr, flush=True)
            if done.returncode:
                end = "\n".join(log.read_text().splitlines()[-LOG_LINES:])
                raise StageError(f"{stage} failed\n{end}")

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
