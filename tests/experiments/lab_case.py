"""A plan of the laboratory on the CPU, and stages that cost nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paramgolf.experiments.lab.plan import Plan
from paramgolf.experiments.lab.records import Records
from paramgolf.experiments.lab.run import Bench
from paramgolf.experiments.lab.session import Session
from paramgolf.experiments.lab.stages import Place, Processes, read_stages
from paramgolf.files import write_json
from paramgolf.gpu_slots import VISIBLE
from paramgolf.params import read_yaml
from paramgolf.schema import parse

ROOT = Path(__file__).parents[2]
STAGES = read_stages(ROOT)
SMALL = (
    *("tokenizer.vocab_size=300", "model.layers=3", "model.width=32", "model.heads=2"),
    *("model.kv_heads=1", "model.mlp_hidden=64", "model.parallel_start=2"),
    *("model.recurrence=[{at: 0.5, order: [0, 1, 1, 2]}]", "train.sequence_length=64"),
    *("train.micro_batch_tokens=512", "train.validate_every=0", "runtime.device=cpu"),
)
PLAN: dict[str, Any] = {
    "name": "tiny",
    "recipe": "sample",
    "tokens": 2048,
    "batch_tokens": 512,
    "seeds": [1, 2],
    "goal": "trained",
    "common": SMALL,
    "variants": [{"name": "base"}, {"name": "no skips", "changes": ["model.skips=none"]}],
}
# bits per byte of a fake run, by what its parameters say
BASE, SKIPS, SEED, BITS = 1.2, 0.01, 0.002, 0.05


def plan_of(folder: Path = Path("nowhere"), /, **changes: Any) -> Plan:
    """Return the plan on a folder of tokens, with changes."""
    return parse(Plan, PLAN | {"text": {"tokens": str(folder)}} | changes, "")


def write_plan(path: Path, folder: Path, /, **changes: Any) -> None:
    """Write the plan on a folder of tokens, with changes, to a file."""
    path.write_text(json.dumps(PLAN | {"text": {"tokens": str(folder)}} | changes))


class FakeProcesses(Processes):
    """Stages that write made-up metrics; `before` may fail, or wait, in the place of one."""

    def __init__(self, before: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, str]] = []
        self._before, self._writing = before, threading.Lock()

    def run(self, stage: str, place: Place, environment: Mapping[str, str]) -> float:
        params = read_yaml(place.folder / "params.yaml")
        seed, skips = params["train"]["seed"], params["model"]["skips"]
        with self._writing:
            self.calls.append((stage, f"{skips} {seed}", environment[VISIBLE]))
        (place.folder / f"{stage}.log").write_text(f"{stage}\n")
        if self._before is not None:
            self._before(stage, params)
        for other in STAGES[stage].depends:
            assert (place.folder / f"artifacts/{other}").is_dir(), f"{stage} lacks {other}"
        (place.folder / f"artifacts/{stage}").mkdir(parents=True)
        score = BASE - SKIPS * (skips == "none") + SEED * seed
        if stage != "train":
            score += BITS / params["quantize"]["matrix_bits"]
        metrics = {"val_bpb": score, "bytes_total": 1000, "headroom_bytes": 24}
        if stage == "train":
            metrics |= {"tokens": 2048, "train_seconds": 1.0, "tokens_per_second": 2048.0}
            metrics |= {"device": "made up", "torch": "2.0", "peak_memory_bytes": 2**30}
        write_json(place.folder / f"artifacts/metrics/{stage}.json", metrics)
        return 3.0


def session_of(
    plan: Plan, folder: Path, processes: Processes, gpus: int = 1, **how: Any
) -> Session:
    """Return a session with so many stand-ins for GPUs."""
    slots = [str(i) for i in range(gpus)]
    records = Records(folder / "results.json")
    return Session(plan, (), Bench(folder, slots, records, STAGES, processes), **how)


def work(plan: Plan, folder: Path, processes: Processes, gpus: int = 1, **how: Any) -> dict:
    """Run a plan; return what the file of results holds then."""
    session = session_of(plan, folder, processes, gpus)
    session.work(command="test", **how)
    return Records(folder / "results.json").content
