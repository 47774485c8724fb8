"""Stages of the pipeline, run as DVC would run them, each in a folder of its own.

A folder has params.yaml, links to the outputs of earlier stages, and what its stage writes. A
stage that was cut off goes on where it stopped when it is run again in its folder.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from paramgolf.experiments.lab.plan import STAGES
from paramgolf.files import read_json, write_json, write_text
from paramgolf.gpu_slots import VISIBLE
from paramgolf.launch import end_groups
from paramgolf.params import PARAMS_PATH, read_yaml
from paramgolf.process import SIGNALLED
from paramgolf.stage_code import scripts_hash, stage_hash

ROOT = Path(__file__).resolve().parents[3]
MODULES = {"packed": "paramgolf.experiments.packed_score"}  # others are scripts of stages/
WITHOUT_GPU = ("package",)
PLAN = Path("dvc.yaml")
ARTIFACTS = "artifacts/"
SAFE_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's is ten times as fast
GRACE_SECONDS = 20.0  # a stage of several processes gives these half of it
CAUSES = re.compile(r"paramgolf: |[\w.]*(?:Error|Exception|Interrupt)\b")
RANK = re.compile(r"^\[rank\d+\]:")
REASON_LENGTH = 300


class StageError(Exception):
    """A stage that ended with an error; `reason` says which, in a line."""

    def __init__(self, stage: str, reason: str, *, killed: bool) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason, self.killed = stage, reason, killed


class StoppedError(Exception):
    """The laboratory was asked to stop, and the stage with it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What dvc.yaml says of a stage: the stages and the parameters that its result depends on.

    `code` is the hash of what it runs.
    """

    depends: tuple[str, ...]
    params: tuple[str, ...]
    code: str

    def values(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters, of a whole file of them, by dotted key or section."""
        return {name: functools.reduce(getitem, name.split("."), content) for name in self.params}


def read_stages(root: Path = ROOT) -> dict[str, Stage]:
    """Return the stages of a model from training on, in the order in which they run."""
    plan = read_yaml(root / PLAN)["stages"]
    names = [name for name in plan if any(name in stages for stages in STAGES.values())]
    found = {}
    for name in names:
        # the folder below artifacts/ that a dependency is, or lies in
        outs = (dep.removeprefix(ARTIFACTS).partition("/")[0] for dep in plan[name]["deps"])
        depends = tuple(out for out in outs if out in names)
        found[name] = Stage(depends, tuple(plan[name]["params"]), stage_hash(name, root))
        if name == "package":  # `packed` is no stage of DVC's
            script = Path(*MODULES["packed"].split(".")).with_suffix(".py")
            found["packed"] = Stage(("package",), (), scripts_hash([script], root))
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """A stage's folder."""

    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether the stage ended well, and its outputs are here."""
        return (self.folder / "done.json").is_file()

    def prepare(
        self, content: Mapping[str, Any], tokens: Path, before: Mapping[str, Place]
    ) -> None:
        """Write params.yaml, and link the tokens and the outputs of the stages `before`."""
        (self.folder / "done.json").unlink(missing_ok=True)
        write_params(self.folder, content)
        links = {"data/tokens": tokens}
        links |= {f"artifacts/{s}": p.folder / f"artifacts/{s}" for s, p in before.items()}
        for name, target in links.items():
            link = self.folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target.resolve())

    def metrics(self, stage: str) -> dict[str, Any]:
        """Return the metrics that the stage wrote."""
        return read_json(self.folder / f"artifacts/metrics/{stage}.json")

    def mark_done(self) -> None:
        """Note that the stage ended well."""
        write_json(self.folder / "done.json", {})


def write_params(folder: Path, content: Mapping[str, Any]) -> None:
    """Write params.yaml."""
    text = yaml.dump(dict(content), Dumper=SAFE_DUMPER, sort_keys=False)
    write_text(folder / PARAMS_PATH, text)


class Processes:
    """The processes of stages that run now, so that they can be ended together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = threading.Event()

    def run(self, stage: str, place: Place, environment: Mapping[str, str]) -> float:
        """Run a stage; return its wall seconds. What it says goes to STAGE.log of its folder."""
        log, start = place.folder / f"{stage}.log", time.monotonic()
        before = log.stat().st_size if log.is_file() else 0  # of a run that was cut off
        module = MODULES.get(stage)
        what = ["-m", module] if module else [str(ROOT / "stages" / f"{stage}.py")]
        with log.open("ab") as out:
            with self._lock:
                if self.stopped.is_set():
                    raise StoppedError
                process = subprocess.Popen(
                    [sys.executable, *what],
                    cwd=place.folder,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,  # Ctrl-C is for the laboratory, which ends its stages
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if self.stopped.is_set() and code:
            raise StoppedError
        if code:
            said = log.read_bytes()[before:].decode(errors="replace")
            reason, killed = failure_of(code, said)
            raise StageError(stage, reason, killed=killed)
        return time.monotonic() - start

    def stop(self) -> None:
        """End all stages, and let no other begin; they have GRACE_SECONDS to end by themselves."""
        with self._lock:
            self.stopped.set()
            running = [*self._running]
        end_groups(running, GRACE_SECONDS)


def environment_of(folder: Path, devices: str | None) -> dict[str, str]:
    """Return the environment of a stage, which sees the GPUs in `devices` alone.

    Checkpoints lie in the stage's folder (DVC_ROOT): two runs of one seed would share one else.
    """
    kernels = ROOT / ".cache/kernels"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(kernels / "inductor"),
        "TRITON_CACHE_DIR": str(kernels / "triton"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "DVC_ROOT": str(folder.resolve()),
    }
    return environment if devices is None else {**environment, VISIBLE: devices}


def failure_of(code: int, said: str) -> tuple[str, bool]:
    """Return why a stage ended with `code`, by what it said, and whether it was killed."""
    number = -code if code < 0 else code - SIGNALLED  # of one of several processes
    if number in {*signal.Signals}:
        return f"killed by {signal.Signals(number).name}", True
    lines = [RANK.sub("", line).strip() for line in said.splitlines()]
    causes = [line for line in lines if CAUSES.match(line)]
    last = [*filter(None, lines)]
    reason = (causes or last or [f"exit code {code}"])[-1]
    return reason.removeprefix("paramgolf: ")[:REASON_LENGTH], False


def due(
    wanted: Sequence[str],
    stages: Mapping[str, Stage],
    *,
    recorded: Collection[str],
    present: Collection[str],
) -> list[str]:
    """Return which of a run's stages must run, in their order.

    Those whose figures are not recorded yet, and those whose outputs these need and that are not
    at hand: another machine may have made them.
    """
    found: set[str] = set()

    def run(stage: str) -> None:
        found.add(stage)
        for other in stages[stage].depends:
            if other not in present and other not in found:
                run(other)

    for stage in wanted:
        if stage not in recorded and stage not in found:
            run(stage)
    return [stage for stage in stages if stage in found]
