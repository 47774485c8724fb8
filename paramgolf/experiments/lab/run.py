"""The laboratory at work: start the stages of runs on GPUs, and enter figures and failures.

One thread decides what starts and enters results; the other threads only wait for the process of a
stage. A run keeps its slot (one GPU, or several) from training to quantizing. Packing needs no GPU,
so that another run takes the slot meanwhile, and scoring uses whichever slot is free first.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from paramgolf.energy import EnergyMeter
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import Plan
from paramgolf.experiments.lab.records import Records, Run, keys_of
from paramgolf.experiments.lab.schedule import Job, Schedule, ordered
from paramgolf.experiments.lab.stages import (
    ROOT,
    WITHOUT_GPU,
    Place,
    Processes,
    Stage,
    StageError,
    due,
    environment_of,
)
from paramgolf.experiments.lab.tokens import Made, Tokens, tokenizer_name
from paramgolf.mirror import Mirror, file_name
from paramgolf.progress import say
from paramgolf.shell import output_of

LARGE = "calibrate"  # its Hessians are large, and of no use after quantizing


def runs_of(
    plan: Plan,
    contents: Mapping[str, Mapping[str, Any]],
    tokens: Mapping[str, Made | None],
    stages: Mapping[str, Stage],
) -> list[Run]:
    """Return the runs of a plan in their order; `contents` and `tokens` are by variant.

    Where tokens are still to be made (None), keys are those of no run that ever was.
    """
    names = [variant.name for variant in plan.variants]
    runs = []
    for name, seed, replicate in ordered(names, plan.seeds):
        content = dict(contents[name])
        content["train"] = {**content["train"], "seed": seed}
        made = tokens[name] or unmade(content)
        beginning = [made.key, plan.gpus, replicate]
        wanted = plan.stages(plan.variant(name))
        keys = keys_of(content, stages, wanted, beginning)
        alike = keys_of(content, stages, wanted, beginning, code=False)
        runs.append(Run(name, seed, replicate, keys, alike, content, made.folder))
    return runs


def unmade(content: Mapping[str, Any]) -> Made:
    """Return a stand-in for tokens that are still to be made, of a key that no tokens have."""
    return Made(Path(), json.dumps([content["data"], content["tokenizer"]], sort_keys=True), 0)


def slots_of(gpus: Sequence[str], each: int) -> list[str]:
    """Return the slots of a machine: GPUs, `each` at a time, as CUDA_VISIBLE_DEVICES has them."""
    slots = [",".join(gpus[i : i + each]) for i in range(0, len(gpus) - each + 1, each)]
    if not slots:
        found = f"{len(gpus)}: {', '.join(gpus)}"
        raise ParamGolfError(
            f"a run of the plan takes {each} GPUs", found=found, fix="lower `gpus`"
        )
    return slots


@contextmanager
def only_one(folder: Path, results: Path) -> Iterator[None]:
    """Hold a folder and a file of results for the length of the block.

    A second laboratory that works in the folder, or writes the file, is an error.
    """
    # the file itself cannot be locked: each write puts another in its place
    lock = results.with_name(f".{results.name}.lock")
    with _held(folder / "lock", folder, "--work"), _held(lock, results, "--results"):
        yield


@contextmanager
def _held(lock: Path, what: Path, option: str) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout:
        fix = f"wait for it, or name another with {option}"
        raise ParamGolfError("another laboratory works here", where=what, fix=fix) from None
    with held:
        yield


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the laboratory works, and what it works with."""

    folder: Path
    slots: Sequence[str]
    records: Records
    stages: Mapping[str, Stage]
    processes: Processes

    def place(self, key: str) -> Place:
        """Return the folder of a stage by its key."""
        return Place(self.folder / "stages" / key)

    def left(self, run: Run) -> list[str]:
        """Return which stages of a run must still run here, none where one has failed."""
        return [] if self.records.failure(run) else self._due(run)

    def of_any_code(self, run: Run) -> Run:
        """Return the run with those keys, of figures of any code, that leave least to run.

        A stage that must run has the key of its code as it is, whatever made its inputs.
        """
        found, others = self.records.keys_of_any_code(run, self.stages)
        runs = (dataclasses.replace(run, keys=keys) for keys in found)
        left = ((one, self._due(one)) for one in runs)
        allowed = [
            (one, due) for one, due in left if others.isdisjoint(one.keys[stage] for stage in due)
        ]
        return min(allowed, key=lambda pair: len(pair[1]))[0]

    def _due(self, run: Run) -> list[str]:
        recorded = {s for s, key in run.keys.items() if self.records.stage(key) is not None}
        present = {s for s, key in run.keys.items() if self.place(key).is_done}
        return due([*run.keys], self.stages, recorded=recorded, present=present)


def take_tokens(
    wanted: Sequence[tuple[Tokens, Mapping[str, Any]]], processes: Processes
) -> list[Made]:
    """Return the tokens of parameters, in their order; those that are missing are made.

    Those of different tokenizers are made side by side; the same one would be trained twice.
    """
    names = [tokenizer_name(content["tokenizer"]) for _, content in wanted]
    turns = {name: threading.Lock() for name in names}

    def take(name: str, one: tuple[Tokens, Mapping[str, Any]]) -> Made:
        tokens, content = one
        with turns[name]:
            return tokens.take(content)

    with ThreadPoolExecutor(len(wanted)) as pool:
        try:
            return [*pool.map(take, names, wanted)]
        except BaseException as error:
            processes.stop()
            if isinstance(error, StageError):
                raise ParamGolfError(f"the tokens cannot be made: {error}") from None
            raise


class Task(NamedTuple):
    """A stage that runs: the next one of a job. `joules` is what the slot's meters said before."""

    job: Job
    slot: str
    joules: float | None


class Laboratory:
    """A plan's runs on their way.

    `show` is called after each stage with the run and its name; stages' logs go to `mirror` too;
    no training is begun once it is `late`, as that function tells.
    """

    def __init__(
        self,
        runs: Iterable[Run],
        bench: Bench,
        *,
        show: Callable[[Run, str], None],
        late: Callable[[], bool],
        mirror: Mirror | None = None,
    ) -> None:
        self._bench, self._show = bench, show
        self._late, self._mirror = late, mirror
        self._energy, self._made = EnergyMeter(), commit_of_code()
        self._running: dict[Future[float], Task] = {}
        rounds: dict[tuple[int, int], int] = {}
        jobs = []
        for run in runs:
            number = rounds.setdefault((run.seed, run.replicate), len(rounds))
            left = bench.left(run)
            jobs.append(Job(run, number, left, begun=bool(left) and left[0] != "train"))
        self._schedule = Schedule(jobs, bench.slots, self._had(jobs))

    def _had(self, jobs: Iterable[Job]) -> Counter[tuple[str, str]]:
        """Count which slot trained which variant, as the records tell."""
        trained = ((job.run, self._bench.records.stage(job.run.keys["train"])) for job in jobs)
        told = ((run, figures) for run, figures in trained if figures and figures.get("gpus"))
        return Counter((figures["gpus"], run.variant) for run, figures in told)

    def work(self) -> None:
        """Run all that is left; on Ctrl-C stages are ended, and what is done stays done."""
        with ThreadPoolExecutor(2 * len(self._bench.slots)) as pool:
            try:
                while self._begin(pool):
                    # with a timeout: a signal received by another thread does not end the wait
                    for future in wait(self._running, 0.5, FIRST_COMPLETED).done:
                        self._end(future, pool)
            except BaseException:
                say("lab: ending what runs; the same command goes on from here")
                self._bench.processes.stop()
                raise

    @property
    def _keys(self) -> set[str]:
        """The keys of the stages that run."""
        return {task.job.next_key for task in self._running.values()}

    def _begin(self, pool: Executor) -> bool:
        """Start every stage that can start now; return whether anything runs.

        Stages that need no GPU come first, at most as many at once as there are slots; then each
        free slot gets a job.
        """
        idle = [job for job in self._schedule.jobs if not job.busy]
        self._update(idle)
        packages = [job for job in idle if job.left and job.left[0] in WITHOUT_GPU]
        for job in packages:
            without_slot = sum(not task.slot for task in self._running.values())
            if job.next_key not in self._keys and without_slot < len(self._bench.slots):
                self._start(job, "", pool)
        busy_slots = {task.slot for task in self._running.values()}
        for slot in self._bench.slots:
            if slot in busy_slots:
                continue
            taken = self._schedule.take(slot, self._keys | {job.next_key for job in packages})
            if taken is not None:
                self._start(taken, slot, pool)
        return bool(self._running)

    def _update(self, jobs: Iterable[Job]) -> None:
        """Note which stages each job has left: none if it is late and it has not begun."""
        late = self._late()
        for job in jobs:
            job.left = [] if late and not job.begun else self._bench.left(job.run)

    def _start(self, job: Job, slot: str, pool: Executor) -> None:
        """Begin a job's next stage on a slot; one that needs no GPU sees none, on slot ""."""
        job.busy = job.begun = True
        run, bench, stage = job.run, self._bench, job.left[0]
        place = bench.place(job.next_key)
        before = {other: bench.place(run.keys[other]) for other in bench.stages[stage].depends}
        place.prepare(run.content, run.tokens, before)
        if self._mirror is not None:
            self._follow(run, stage, place, self._mirror)
        joules = self._energy.joules(slot.split(",")) if slot else None
        environment = environment_of(place.folder, slot)
        future = pool.submit(bench.processes.run, stage, place, environment)
        self._running[future] = Task(job, slot, joules)

    def _end(self, future: Future[float], pool: Executor) -> None:
        """Enter a stage's figures or failure; start the job's next stage on the same slot."""
        job, slot, before = self._running.pop(future)
        run, bench, stage, key = job.run, self._bench, job.left[0], job.next_key
        try:
            seconds = future.result()
        except StageError as failure:
            figures = {"stage": stage, "reason": failure.reason, "killed": failure.killed}
            bench.records.add_failure(key, {**figures, "gpus": slot, **self._made})
            say(f"lab: {run.label}: {failure}")
        else:
            place, after = bench.place(key), self._energy.joules(slot.split(",")) if slot else None
            place.mark_done()
            joules = None if before is None or after is None else after - before
            figures = {"stage": stage, "wall_seconds": seconds, "energy_joules": joules}
            inputs = [run.keys[other] for other in bench.stages[stage].depends]
            figures |= {"alike": run.alike[stage], "before": inputs}
            figures |= {"metrics": place.metrics(stage), "gpus": slot}
            bench.records.add_stage(key, {**figures, **self._made})
            self._show(run, stage)
        job.left, job.busy = bench.left(run), False
        if not job.left:
            self._drop_large(run)
        elif slot and job.left[0] not in WITHOUT_GPU and job.next_key not in self._keys:
            self._start(job, slot, pool)

    def _drop_large(self, run: Run) -> None:
        """Remove a finished run's Hessians, unless another run needs them."""
        key = run.keys.get(LARGE)
        others = (job.run.keys.get(LARGE) for job in self._schedule.jobs if job.left)
        if key is not None and key not in others:
            shutil.rmtree(self._bench.place(key).folder, ignore_errors=True)

    @staticmethod
    def _follow(run: Run, stage: str, place: Place, mirror: Mirror) -> None:
        """Let the mirror have the logs of a stage as they grow."""
        label = file_name(run.label)
        mirror.add(f"{label}/{stage}.log", place.folder / f"{stage}.log")
        if stage == "train":
            mirror.add(f"{label}/log.jsonl", place.folder / "artifacts/train/log.jsonl")


def commit_of_code() -> dict[str, str]:
    """Return the commit of the code, with + where files differ from it; nothing without Git."""
    commit = output_of(["git", "rev-parse", "--short", "HEAD"], ROOT)
    if commit is None:
        return {}
    changed = output_of(["git", "status", "--porcelain", "--untracked-files=no"], ROOT)
    return {"commit": commit.strip() + ("+" if changed else "")}
