"""What a user waits for, and what the sample run scores: `python benchmarks/pipeline.py [--tests]`.

Runs `dvc repro` in a fresh clone of the committed project, again with nothing changed, and again
with other bits; reads the scores from the metrics; times the commands. With --tests it also times
the tests.

Overhead is the whole first run less what its stages spend in their library calls. Each stage's
script calls the library inside `exit_on_error` of paramgolf/errors.py; a sitecustomize on the
clone's PYTHONPATH notes the seconds of that block, in the very run that is timed. So the overhead
is what surrounds them: DVC, hashing, the starts of 22 processes with their imports, and
`paramgolf check`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from tables import Row, write_results

from paramgolf.program import exit_on_fault

ROOT = Path(__file__).parents[1]
EXPERIMENTS, SEEDS = 200, 4
REPEATS = 5  # of short commands; the median counts
WATCH = """
import contextlib, os, sys, time
import paramgolf.errors

plain = paramgolf.errors.exit_on_error

@contextlib.contextmanager
def timed():
    start = time.perf_counter()
    try:
        with plain():
            yield
    finally:
        if sys.argv[0].startswith("stages/"):
            with open(os.environ["PARAMGOLF_WATCH"], "a") as file:
                file.write(f"{sys.argv[0]} {time.perf_counter() - start}\\n")

paramgolf.errors.exit_on_error = timed
"""


class Clone:
    """A fresh clone, with this environment's programs first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python's default, a user's too

    def watch(self, folder: Path) -> Path:
        """Let each stage from now on note its library call's seconds; return the file of notes."""
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(WATCH)
        self._environment["PYTHONPATH"] = f"{folder}{os.pathsep}{self.folder}"
        self._environment["PARAMGOLF_WATCH"] = str(folder / "calls")
        return folder / "calls"

    def seconds(self, *command: str) -> float:
        """Run a command and return its wall-clock seconds."""
        start = time.perf_counter()
        self.run(*command)
        return time.perf_counter() - start

    def set(self, variable: str, value: str) -> None:
        """Set an environment variable of the commands to come."""
        self._environment[variable] = value

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command on the input `text` and return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            text=True,
            input=text,
            stdout=subprocess.PIPE,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def metric(self, stage: str, key: str) -> float:
        """Return a metric of the last run."""
        return json.loads((self.folder / f"artifacts/metrics/{stage}.json").read_text())[key]


def measure(clone: Clone, scratch: Path) -> list[Row]:
    """Run the pipeline three times and return the figures."""
    (clone.folder / "dvc.lock").unlink()  # else audit, whose output is in Git, has nothing to do
    notes = clone.watch(scratch / "watch")
    whole = clone.seconds("dvc", "repro")
    calls = [float(line.split()[1]) for line in notes.read_text().splitlines()]
    before, after = clone.metric("train", "val_bpb"), clone.metric("eval_sliding", "val_bpb_plain")
    sliding, adapted = (clone.metric(stage, "val_bpb") for stage in ("eval_sliding", "eval_ttt"))
    start = time.perf_counter()
    ran = clone.run("dvc", "repro").count("Running stage")
    nothing = time.perf_counter() - start
    params = clone.folder / "params.yaml"
    content = params.read_text()
    assert "matrix_bits: 6" in content
    params.write_text(content.replace("matrix_bits: 6", "matrix_bits: 5"))
    requantized = clone.seconds("dvc", "repro")
    return [
        Row("dvc repro, whole, sample", whole, "s", None, 300.0, "lower"),
        Row(
            f"overhead around {len(calls)} library calls",
            whole - sum(calls),
            "s",
            None,
            15.0,
            "lower",
        ),
        Row("dvc repro, nothing changed", nothing, "s", None, 5.0, "lower"),
        Row("stages run when nothing changed", ran, "", None, 0.0, "lower"),
        Row("dvc repro, quantize.matrix_bits changed", requantized, "s", None, 90.0, "lower"),
        Row("BPB lost in quantising, sample", after - before, "bits/byte", None, 0.02, "lower"),
        Row("val_bpb plain, packed, sample", after, "bits/byte", None, None, "lower"),
        Row("val_bpb sliding, sample", sliding, "bits/byte", after, after, "lower"),
        Row("val_bpb adapted, sample", adapted, "bits/byte", sliding, sliding, "lower"),
    ]


def measure_commands(clone: Clone) -> list[Row]:
    """Time the commands that a user types between runs."""
    add_experiments(clone)
    command = ("python", "-m", "paramgolf.cli")
    helped = median(clone, *command, "--help")
    compared = median(clone, *command, "compare", "HEAD", "made-*")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes a connection, never answers
        clone.set("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        examined = median(clone, *command, "doctor")
    return [
        Row("paramgolf --help", helped, "s", None, 0.4, "lower"),
        Row(f"paramgolf compare, {EXPERIMENTS} experiments", compared, "s", None, 3.0, "lower"),
        Row("paramgolf doctor, the hub is silent", examined, "s", None, 3.0, "lower"),
    ]


def median(clone: Clone, *command: str) -> float:
    """Return the median seconds of a command."""
    return statistics.median(clone.seconds(*command) for _ in range(REPEATS))


def add_experiments(clone: Clone) -> None:
    """Store experiments as dvc does, each the committed run with other parameters and scores."""
    head = clone.run("git", "rev-parse", "HEAD").strip()
    params = yaml.safe_load(clone.run("git", "show", "HEAD:params.yaml"))
    names = clone.run("git", "ls-files", "artifacts/metrics").split()
    metrics = {name: clone.run("git", "show", f"HEAD:{name}") for name in names}
    stream = []
    for i in range(EXPERIMENTS):
        params["train"]["seed"], params["quantize"]["mlp_clip"] = i % SEEDS, 10 + i // SEEDS / 10
        files = {**metrics, "params.yaml": yaml.safe_dump(params, sort_keys=False)}
        adapted = json.loads(metrics["artifacts/metrics/eval_ttt.json"])
        adapted["val_bpb"] += i % 7 / 1000
        files["artifacts/metrics/eval_ttt.json"] = json.dumps(adapted)
        stream += [f"commit refs/exps/{head[:2]}/{head[2:]}/made-{i}", "committer x <x> 0 +0000"]
        stream += ["data 0"]
        for path, content in files.items():
            stream += [f"M 100644 inline {path}", f"data {len(content.encode())}", content]
    clone.run("git", "fast-import", "--quiet", text="\n".join([*stream, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="time `make test` too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone = Clone(Path(name) / "project")
        rows = measure(clone, Path(name)) + measure_commands(clone)
    if options.tests:
        start = time.perf_counter()
        subprocess.run(["make", "test"], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        rows.append(Row("make test, after installing", seconds, "s", None, 600.0, "lower"))
    write_results("pipeline", rows)


if __name__ == "__main__":
    with exit_on_fault():
        main()
