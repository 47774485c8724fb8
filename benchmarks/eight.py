"""A recipe whole on all GPUs, by `dvc repro` alone: `python benchmarks/eight.py FOLDER`.

FOLDER is a clone of the project with the parameters to run, as `paramgolf use` writes them:

    git clone . /tmp/run && cd /tmp/run
    paramgolf use best data.source=files 'data.files=[TEXT/*.jsonl]' \
        verify.guard_training=false verify.enforce=false

The guard would refuse a text that is read more than once; and weights of a short training may take
more bytes than those of a long one, which is to be shown and not to end the run. Shown are the
seconds of each stage by the clock, their starts included, training's speed and memory, what the
contest limits, and how far the sliding score is from that of one GPU. With --kill, one process of
the training is killed once there is a checkpoint: all must end, with one message, and the second
`dvc repro` must go on from there. How many times faster than one GPU they train:
benchmarks/several_gpus.py, part `speed`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from projects import WORK, Project
from several_gpus import AFTER, AFTER_SECONDS
from tables import Row, device_name, need_gpus, write_results

from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json
from paramgolf.params import read_yaml
from paramgolf.program import exit_on_fault
from paramgolf.verify.bindings import EVALUATORS

RUNNING = "Running stage '"
CHECKPOINTS = ".resume/train-*/state.pt"
SAME = 1e-9  # bits per byte


@dataclass
class Repro:
    """A `dvc repro`: what it printed, when each stage began, and when all was over."""

    folder: Path
    lines: list[str] = field(default_factory=list)
    began: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0
    code: int | None = None

    def run(self, *, kill: bool = False) -> Repro:
        """Run to the end; with `kill`, end one process of the training at its first checkpoint."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=self.folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if kill:
            killer = (process.pid, self.folder)
            threading.Thread(target=kill_one, args=killer, daemon=True).start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            self.lines.append(line.rstrip())
            if line.startswith(RUNNING):
                self.began[line.removeprefix(RUNNING).split("'")[0]] = time.monotonic()
        self.code, self.ended = process.wait(), time.monotonic()
        return self

    def seconds(self) -> dict[str, float]:
        """Return the seconds of the stages that ran."""
        times = [*self.began.values(), self.ended]
        return {name: times[i + 1] - times[i] for i, name in enumerate(self.began)}

    def messages(self) -> int:
        """Return how many lines tell of a fault of ours."""
        return sum(line.startswith("paramgolf: ") for line in self.lines)


def kill_one(pid: int, folder: Path) -> None:
    """Wait for a checkpoint of training, and kill the youngest of its processes."""
    while not list(folder.glob(CHECKPOINTS)):
        time.sleep(0.05)
    below = psutil.Process(pid).children(recursive=True)
    ranks = [process for process in below if "stages/train.py" in process.cmdline()]
    victim = max(ranks, key=lambda process: process.pid)
    print(f"killing process {victim.pid}", flush=True)
    victim.send_signal(signal.SIGKILL)


def kill_rows(folder: Path, them: str) -> list[Row]:
    """Kill one process of a training, which ends; another `dvc repro` is to go on."""
    start = time.monotonic()
    died = Repro(folder).run(kill=True)
    assert died.code, "dvc repro must fail when a process of the training is killed"
    rows = [Row(f"{them}, one killed: messages", died.messages(), "", None, 1.0, "lower")]
    print(f"killed run ended after {died.ended - start:.0f} s", flush=True)
    return rows


def metric_rows(folder: Path, them: str) -> list[Row]:
    """Return what the run's own metrics say, beside what the contest allows."""
    metrics = {path.stem: read_json(path) for path in folder.glob("artifacts/metrics/*.json")}
    limits = read_yaml(folder / "params.yaml")["verify"]
    train, package = metrics["train"], metrics["package"]
    learning = train["train_seconds"] + metrics["calibrate"]["seconds"]
    learning += metrics["quantize"]["adjust_seconds"]
    memory = train["peak_memory_bytes"] / 2**30
    speed = train["tokens_per_second"]
    rows = [
        Row(f"{them}: training", speed, "tokens/s", None, None, "higher"),
        Row(f"{them}: tokens", train["tokens"], "", None, None, "higher"),
        Row(f"{them}: start of training", train["startup_seconds"], "s", None, None, "lower"),
        Row(f"{them}: memory of a GPU", memory, "GiB", None, None, "lower"),
        Row(
            f"{them}: train, calibrate, adjust",
            learning,
            "s",
            None,
            limits["train_seconds"],
            "lower",
        ),
        Row(f"{them}: bytes", package["bytes_total"], "", None, package["limit_bytes"], "lower"),
        Row(f"{them}: rules broken", metrics["verify"]["failed"], "", None, 0.0, "lower"),
        Row(f"{them}: trained", train["val_bpb"], "bits/byte", None, None, "lower"),
    ]
    for name in EVALUATORS:
        found = metrics[name]
        most = limits["eval_seconds"]
        rows.append(Row(f"{them}: {name}", found["val_bpb"], "bits/byte", None, None, "lower"))
        rows.append(Row(f"{them}: {name}, seconds", found["seconds"], "s", None, most, "lower"))
        print(name, found, flush=True)
    return rows


def one_gpu_row(folder: Path, them: str, count: int) -> Row:
    """Score the package with all GPUs, however short the text, and with one."""
    scores = []
    for processes, device in ((count, None), (1, "0")):
        content = read_yaml(folder / "params.yaml")
        content["runtime"]["processes"] = processes
        made = Project(WORK / "eight" / str(processes), content, device)
        made.link_tokens(folder / "data/tokens")
        shutil.copytree(folder / "artifacts/package", made.folder / "artifacts/package")
        made.run("eval_sliding")
        found = made.metrics("eval_sliding")
        assert found is not None
        print(f"{processes} GPUs", found, flush=True)
        scores.append(found["val_bpb"])
    figure = f"{them}: eval_sliding, difference from one GPU's"
    return Row(figure, abs(scores[0] - scores[1]), "bits/byte", None, SAME, "lower")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a clone of the project")
    parser.add_argument("--recipe", default="best", help="how the rows name what params.yaml holds")
    parser.add_argument("--kill", action="store_true", help="kill a process of the training, once")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not (folder / "dvc.yaml").is_file():
        parser.error(f"no clone of the project: {folder}")
    if options.kill and any(folder.glob(CHECKPOINTS)):
        parser.error("--kill waits for a checkpoint, and one is there already: take a fresh clone")
    need_gpus()
    count = torch.cuda.device_count()
    them, rows = f"{options.recipe}, {count} x {device_name()}", []
    if options.kill:
        rows += kill_rows(folder, them)
    repro = Repro(folder).run()
    if repro.code:
        raise SystemExit(f"dvc repro ended with {repro.code}")
    if options.kill:
        resumed = sum("resumed at step" in line for line in repro.lines)
        rows.append(Row(f"{them}, one killed: runs that went on", resumed, "", None, 1.0, "higher"))
    seconds = repro.seconds()
    if missing := {"train", *AFTER} - {*seconds}:
        fix = "take a fresh clone, so that every stage runs"
        raise ParamGolfError("stages were not run anew", found=", ".join(sorted(missing)), fix=fix)
    for name, value in seconds.items():
        rows.append(Row(f"{them}: {name}, by the clock", value, "s", None, None, "lower"))
    wanted = AFTER_SECONDS if count == 4 else None
    after = sum(seconds[name] for name in AFTER)
    rows.append(Row(f"{them}: from training to the score", after, "s", None, wanted, "lower"))
    rows += metric_rows(folder, them)
    write_results("eight", rows)
    if count > 1:
        rows.append(one_gpu_row(folder, them, count))
        write_results("eight", rows)


if __name__ == "__main__":
    with exit_on_fault():
        main()
