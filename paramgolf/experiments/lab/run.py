"""The laboratory at work: runs on their GPUs, figures entered as they come, failures as rows.

One thread a slot (a GPU, or as many as a run takes). A run holds its slot from training to
quantizing; packing needs no GPU, so that the slot goes on with another run meanwhile, and scoring
takes whichever slot is free first.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    StoppedError,
    due,
    environment_of,
)
from paramgolf.experiments.lab.tokens import Made, Tokens, tokenizer_name
from paramgolf.mirror import Mirror, file_name
from paramgolf.progress import say
from paramgolf.shell import output_of

LARGE = "calibrate"  # Hessians, which nobody needs once they are used


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
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder for the length of the block; a second laboratory in it is an error."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait for it, or name another folder with --work"
            raise ParamGolfError("another laboratory works here", where=folder, fix=fix) from None
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
        if self.records.failure(run):
            return []
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


class Laboratory:
    """A plan's runs on their way.

    `show` is called after each stage with the run and its name; stages' logs go to `mirror` too;
    no training is begun after `deadline`, a time of time.monotonic.
    """

    def __init__(
        self,
        runs: Iterable[Run],
        bench: Bench,
        *,
        show: Callable[[Run, str], None],
        mirror: Mirror | None = None,
        deadline: float | None = None,
    ) -> None:
        self._bench, self._show = bench, show
        self._mirror, self._deadline = mirror, deadline
        self._changed = threading.Condition()
        self._running: set[str] = set()  # keys of stages
        self._energy = EnergyMeter()
        self._made = made_by()
        rounds: dict[tuple[int, int], int] = {}
        jobs = []
        for run in runs:
            number = rounds.setdefault((run.seed, run.replicate), len(rounds))
            left = bench.left(run)
            jobs.append(Job(run, number, left, begun=bool(left) and left[0] != "train"))
        self._schedule = Schedule(jobs, bench.slots, self._had(jobs))
        self._crash: BaseException | None = None

    def _had(self, jobs: Iterable[Job]) -> Counter[tuple[str, str]]:
        """Count which slot trained which variant, as the records tell."""
        trained = ((job.run, self._bench.records.stage(job.run.keys["train"])) for job in jobs)
        return Counter((figures["gpus"], run.variant) for run, figures in trained if figures)

    def work(self) -> None:
        """Run all that is left; on Ctrl-C stages are ended, and what is done stays done."""
        with ThreadPoolExecutor(len(self._bench.slots)) as packers:
            self._packers = packers
            threads = [
                threading.Thread(target=self._serve, args=(slot,), name=f"slot {slot}")
                for slot in self._bench.slots
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.5)  # a join without end would not feel Ctrl-C
            except BaseException:
                say("lab: ending what runs; the same command goes on from here")
                self._end()
                raise
            finally:
                for thread in threads:
                    thread.join()
        if self._crash is not None:
            raise self._crash

    def _end(self) -> None:
        self._bench.processes.stop()
        with self._changed:
            self._changed.notify_all()

    def _serve(self, slot: str) -> None:
        """Do jobs on a slot until none is left."""
        try:
            while (job := self._take(slot)) is not None:
                self._advance(job, slot)
        except StoppedError:
            pass
        except BaseException as error:  # a fault of ours must not leave the others waiting
            self._crash = error
            self._end()

    def _take(self, slot: str) -> Job | None:
        """Wait for a job, and return it; None where nothing is left for this slot."""
        with self._changed:
            while not self._bench.processes.stopped.is_set():
                idle = [job for job in self._schedule.jobs if not job.busy]
                for job in idle:
                    job.left = self._bench.left(job.run)
                if self._deadline is not None and time.monotonic() > self._deadline:
                    for job in idle:
                        job.left = job.left if job.begun else []
                taken = self._schedule.take(slot, self._running)
                if taken is not None:
                    taken.busy = taken.begun = True
                    return taken
                if not any(job.left or job.busy for job in self._schedule.jobs):
                    return None
                self._changed.wait()
        return None

    def _advance(self, job: Job, slot: str) -> None:
        """Run a job's stages until it is done, fails, or can go on without a GPU."""
        while True:
            stage = self._claim(job)
            if stage is None:
                break
            if stage in WITHOUT_GPU:
                self._packers.submit(self._pack, job, stage, slot)
                return
            if not self._run(job.run, stage, slot):
                break
        self._release(job)

    def _pack(self, job: Job, stage: str, slot: str) -> None:
        try:
            self._run(job.run, stage, slot)
        except StoppedError:
            pass
        except BaseException as error:
            self._crash = error
            self._end()
        finally:
            self._release(job)

    def _claim(self, job: Job) -> str | None:
        """Return a job's next stage, as running from now on; None where it is at its end."""
        with self._changed:
            while not self._bench.processes.stopped.is_set():
                job.left = self._bench.left(job.run)
                if not job.left:
                    return None
                if job.next_key not in self._running:
                    self._running.add(job.next_key)
                    return job.left[0]
                self._changed.wait()
        raise StoppedError

    def _release(self, job: Job) -> None:
        with self._changed:
            job.left, job.busy = self._bench.left(job.run), False
            if not job.left:
                self._drop_large(job.run)
            self._changed.notify_all()

    def _drop_large(self, run: Run) -> None:
        """Remove a finished run's Hessians, unless another run needs them."""
        key = run.keys.get(LARGE)
        others = (job.run.keys.get(LARGE) for job in self._schedule.jobs if job.left)
        if key is not None and key not in others:
            shutil.rmtree(self._bench.place(key).folder, ignore_errors=True)

    def _run(self, run: Run, stage: str, slot: str) -> bool:
        """Run one stage, and enter its figures or why it failed; return whether it went well."""
        key, bench = run.keys[stage], self._bench
        place = bench.place(key)
        devices = slot.split(",")
        before = self._energy.joules(devices)
        try:
            place.prepare(run.content, run.tokens, self._places_before(run, stage))
            self._follow(run, stage, place)
            seconds = bench.processes.run(stage, place, environment_of(place.folder, slot))
        except StageError as failure:
            figures = {"stage": stage, "reason": failure.reason, "killed": failure.killed}
            bench.records.add_failure(key, {**figures, "gpus": slot, **self._made})
            say(f"lab: {run.label}: {failure}")
            return False
        else:
            after = None if stage in WITHOUT_GPU else self._energy.joules(devices)
            joules = None if before is None or after is None else after - before
            place.mark_done()
            figures = {"stage": stage, "wall_seconds": seconds, "energy_joules": joules}
            figures |= {"metrics": place.metrics(stage), "alike": run.alike[stage]}
            bench.records.add_stage(key, {**figures, "gpus": slot, **self._made})
            self._show(run, stage)
            return True
        finally:
            with self._changed:
                self._running.discard(key)
                self._changed.notify_all()

    def _follow(self, run: Run, stage: str, place: Place) -> None:
        """Let the mirror have the logs of a stage as they grow."""
        if self._mirror is None:
            return
        label = file_name(run.label)
        self._mirror.add(f"{label}/{stage}.log", place.folder / f"{stage}.log")
        if stage == "train":
            self._mirror.add(f"{label}/log.jsonl", place.folder / "artifacts/train/log.jsonl")

    def _places_before(self, run: Run, stage: str) -> dict[str, Place]:
        """Return the folders of the stages whose outputs a stage reads."""
        return {s: self._bench.place(run.keys[s]) for s in self._bench.stages[stage].depends}


def made_by() -> dict[str, str]:
    """Return the commit of the code, with + where files differ from it; nothing without Git."""
    commit = output_of(["git", "rev-parse", "--short", "HEAD"], ROOT)
    if commit is None:
        return {}
    changed = output_of(["git", "status", "--porcelain", "--untracked-files=no"], ROOT)
    return {"commit": commit.strip() + ("+" if changed else "")}
