"""Several GPUs, and runs to the bit: `python benchmarks/several_gpus.py TOKENS [--parts ...]`.

TOKENS is a folder of shards of the recipe's vocabulary, as data/tokens. On all GPUs that are there:

speed: whole steps on random tokens, on each GPU alone, all at a time, and on all together. The
factor is over the mean of them alone; beside it stands that over the slowest one, for which all
others wait.
deterministic: two runs of 200 steps with runtime.deterministic (one, on one GPU), and one that is
killed at half and resumed, each on a GPU; the cost is that of a step, on one GPU.
after: seconds from the end of training to the score, with as many of the GPUs as each stage takes
by itself: the stages' by the clock, their starts included. On the model in the folder --trained,
else on one of 200 steps, which part `deterministic` trains; its clips are far from those that fit,
so that quantize takes longer.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from child import answer_of
from projects import WORK, Devices, Project, assignments, cut
from tables import Row, device_name, need_gpus, write_results

from paramgolf.clock import seconds_since_start
from paramgolf.experiments.lab.stages import ROOT, environment_of
from paramgolf.files import sha256_file
from paramgolf.launch import launch
from paramgolf.profiling.step_benchmark import StepBenchmark
from paramgolf.program import exit_on_fault
from paramgolf.recipes import check, compose
from paramgolf.runtime import processes

RECIPE, STEPS = "best", 200
SMALL, LARGE = 98_304, 196_608  # tokens a GPU and step
# the speed of one, by GPUs
TIMES = {
    8: {SMALL: 7.6, LARGE: 7.6},
    4: {SMALL: 3.85, LARGE: 3.92},
    2: {SMALL: 1.9, LARGE: 1.9},
}
MOST_COST = 6.0  # percent of a step
AFTER = ("calibrate", "quantize", "package", "eval_sliding")
AFTER_SECONDS, BEFORE_SECONDS = 75.0, 144.0  # on four GPUs: wanted, and measured before
WEIGHTS = Path("artifacts/train/model.safetensors")
PARTS = ("speed", "deterministic", "after")


def measure(count: int) -> dict[str, Any]:
    """Return the seconds of steps and of the start, in this process and `count` - 1 others."""
    params = check(compose(RECIPE), where=RECIPE)
    machine = dataclasses.replace(params.runtime, device="cuda", processes=count)
    launch(count)
    with processes(machine) as runtime:
        benchmark = StepBenchmark(params, runtime)
        torch.cuda.synchronize()
        found: dict[str, Any] = {"startup": seconds_since_start()}
        for tokens, phase in itertools.product((SMALL, LARGE), (0, -1)):
            found[f"{tokens} {-phase}"] = benchmark.step_seconds(phase, tokens)
        found["split"] = benchmark.split(0, SMALL)
        if not runtime.is_main:
            raise SystemExit
    return found


def measured(count: int, device: str | None) -> dict[str, Any]:
    """Measure in processes of their own, on `device` or on all."""
    return answer_of([__file__, "--child", str(count), "-"], environment_of(WORK, device))


def speed_rows(count: int) -> list[Row]:
    with ThreadPoolExecutor(count) as pool:
        alone = list(pool.map(lambda gpu: measured(1, str(gpu)), range(count)))
    together = measured(count, None)
    them, rows = f"{RECIPE}, {count} x {device_name()}", []
    for tokens, after in itertools.product((SMALL, LARGE), (0, 1)):
        key = f"{tokens} {after}"
        name = f"{'after' if after else 'before'} recurrence, {tokens:,} tokens a GPU and step"
        speeds = [tokens / found[key] for found in alone]
        speed = count * tokens / together[key]
        rows.append(Row(f"{them}, {name}", speed, "tokens/s", None, None, "higher"))
        times, wanted = speed / statistics.mean(speeds), TIMES.get(count, {}).get(tokens)
        what = f"{them}, {name}: times one; reference: the slowest one"
        rows.append(Row(what, times, "", speed / min(speeds), wanted, "higher"))
    for kind, milliseconds in together["split"].items():
        figure = f"{them}, before recurrence, {SMALL:,} tokens a GPU and step: {kind}"
        reference = statistics.mean(found["split"][kind] for found in alone)
        rows.append(Row(f"{figure}; reference: one", milliseconds, "ms", reference, None, "lower"))
    what = f"{them}, start to first timed step; reference: each alone, at a time"
    first = max(found["startup"] for found in alone)
    return [*rows, Row(what, together["startup"], "s", first, None, "lower")]


def project(tokens: Path, name: str, device: str | None, *, deterministic: bool) -> Project:
    """Return a folder to train in, on one GPU."""
    changes = [
        f"runtime.deterministic={str(deterministic).lower()}",
        f"train.checkpoint_every={STEPS // 2}",
        "runtime.processes=1",
    ]
    content = cut(RECIPE, assignments(changes), STEPS * SMALL, SMALL)
    made = Project(WORK / "several_gpus" / name, content, device)
    made.link_tokens(tokens)
    return made


def train(tokens: Path, name: str, device: str, *, deterministic: bool) -> Project:
    """Train to the end."""
    made = project(tokens, name, device, deterministic=deterministic)
    made.run("train")
    return made


def train_in_two(tokens: Path, name: str, device: str) -> Project:
    """Train, kill that once there is a checkpoint, and go on."""
    made = project(tokens, name, device, deterministic=True)
    with open(made.folder / "cut.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "stages/train.py")],
            cwd=made.folder,
            env=made.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        while process.poll() is None and not list(made.folder.glob(".resume/*/state.pt")):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made.run("train")
    assert "resumed at step" in (made.folder / "train.log").read_text()
    return made


def deterministic_rows(tokens: Path, count: int) -> list[Row]:
    """Compare runs to the bit; the model that part `after` goes on from is among them."""
    devices = Devices(count)

    def on_one(*runs: Callable[[str], Project]) -> list[Project]:
        with devices.take() as device:
            return [run(device) for run in runs]

    def run(name: str, *, deterministic: bool) -> Callable[[str], Project]:
        return lambda device: train(tokens, name, device, deterministic=deterministic)

    first, second = (run(name, deterministic=True) for name in ("first", "second"))
    plain = run("plain", deterministic=False)

    def in_two(device: str) -> Project:
        return train_in_two(tokens, "cut", device)

    # on one GPU, one after the other, the half that was cut off is a second run
    chains = [(first, in_two, plain)] if count == 1 else [(first, plain), (second,), (in_two,)]
    if count > len(chains):  # it compiles what `plain` needs, in the meantime
        chains.append((run("other", deterministic=False),))
    with ThreadPoolExecutor(len(chains)) as pool:
        found = [one for chain in pool.map(lambda runs: on_one(*runs), chains) for one in chain]
    weights = {p.folder.name: sha256_file(p.folder / WEIGHTS) for p in found}
    print(weights, flush=True)
    losses = {p.folder.name: [step["loss"] for step in p.steps()] for p in found}
    others = [name for name in ("second", "cut") if name in weights]
    equal = sum(
        weights[name] == weights["first"] and losses[name] == losses["first"] for name in others
    )
    times = {p.folder.name: p.times() for p in found}
    name = f"{RECIPE}, deterministic, {STEPS} steps of {SMALL:,} tokens"
    rows = [Row(f"{name}: runs equal to the first", equal, "", None, len(others), "higher")]
    for key in ("step_ms_before", "step_ms_after"):
        fixed, free = (float(times[run][key] or 0) for run in ("first", "plain"))
        figure = f"{name}: {key.removeprefix('step_ms_')} recurrence, a step; reference: not so"
        rows.append(Row(figure, fixed, "ms", free, (1 + MOST_COST / 100) * free, "lower"))
    return rows


def after_rows(tokens: Path, count: int, trained: Path) -> list[Row]:
    """Time the stages behind a training, as the recipe has them."""
    made = Project(WORK / "several_gpus" / "after", compose(RECIPE))
    made.link_tokens(tokens)
    shutil.copytree(trained / "artifacts/train", made.folder / "artifacts/train")
    them, seconds = f"{RECIPE}, {count} x {device_name()}", {}
    for stage in AFTER:
        start = time.monotonic()
        made.run(stage)
        seconds[stage] = time.monotonic() - start
        print(stage, seconds[stage], made.metrics(stage), flush=True)
    rows = [Row(f"{them}: {stage}", s, "s", None, None, "lower") for stage, s in seconds.items()]
    wanted = (BEFORE_SECONDS, AFTER_SECONDS) if count == 4 else (None, None)
    total = sum(seconds.values())
    return [*rows, Row(f"{them}: from training to the score", total, "s", *wanted, "lower")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=Path, help="folder of shards, as data/tokens")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    trained = WORK / "several_gpus/plain"
    parser.add_argument("--trained", type=Path, default=trained, help="folder of a trained best")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    need_gpus()
    count, rows = torch.cuda.device_count(), []
    for part in options.parts:
        start = time.monotonic()
        if part == "speed":
            rows += speed_rows(count)
        elif part == "deterministic":
            rows += deterministic_rows(options.tokens, count)
        else:
            rows += after_rows(options.tokens, count, options.trained)
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
        write_results("train_speed", rows, show=part == options.parts[-1])


if __name__ == "__main__":
    with exit_on_fault():
        main()
