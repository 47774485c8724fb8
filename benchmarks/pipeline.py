"""What a user waits for, and what the sample run scores: `python benchmarks/pipeline.py [--tests]`.

Runs `dvc repro` in a fresh clone of the committed project, again with nothing changed, and again
with other bits; reads the scores from the metrics. With --tests it also times the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tables import Row, write_results

ROOT = Path(__file__).parents[1]


class Clone:
    """A fresh clone, with this environment's programs first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}

    def seconds(self, *command: str) -> float:
        """Run a command and return its wall-clock seconds."""
        start = time.perf_counter()
        self.run(*command)
        return time.perf_counter() - start

    def run(self, *command: str) -> str:
        """Run a command and return what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, text=True, stdout=subprocess.PIPE
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def metric(self, stage: str, key: str) -> float:
        """Return a metric of the last run."""
        return json.loads((self.folder / f"artifacts/metrics/{stage}.json").read_text())[key]


def measure(clone: Clone) -> list[Row]:
    """Run the pipeline three times and return the figures."""
    whole = clone.seconds("dvc", "repro")
    before, after = clone.metric("train", "val_bpb"), clone.metric("eval_sliding", "val_bpb_plain")
    sliding, adapted = (clone.metric(stage, "val_bpb") for stage in ("eval_sliding", "eval_ttt"))
    start = time.perf_counter()
    ran = clone.run("dvc", "repro").count("Running stage")
    nothing = time.perf_counter() - start
    params = clone.folder / "params.yaml"
    params.write_text(params.read_text().replace("matrix_bits: 6", "matrix_bits: 5"))
    requantized = clone.seconds("dvc", "repro")
    return [
        Row("dvc repro, whole, sample", whole, "s", None, 300.0, "lower"),
        Row("dvc repro, nothing changed", nothing, "s", None, 5.0, "lower"),
        Row("stages run when nothing changed", ran, "", None, 0.0, "lower"),
        Row("dvc repro, quantize.matrix_bits changed", requantized, "s", None, 90.0, "lower"),
        Row("BPB lost in quantising, sample", after - before, "bits/byte", None, 0.02, "lower"),
        Row("val_bpb plain, packed, sample", after, "bits/byte", None, None, "lower"),
        Row("val_bpb sliding, sample", sliding, "bits/byte", after, after, "lower"),
        Row("val_bpb adapted, sample", adapted, "bits/byte", sliding, sliding, "lower"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="time `make test` too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Clone(Path(name) / "project"))
    if options.tests:
        start = time.perf_counter()
        subprocess.run(["make", "test"], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        rows.append(Row("make test, after installing", seconds, "s", None, 600.0, "lower"))
    write_results("pipeline", rows, "python benchmarks/pipeline.py --tests")


if __name__ == "__main__":
    main()
