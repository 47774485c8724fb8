"""Pack a run's code anew from its own sources: what is handed in must be that, byte for byte.

A train_gpt.py that somebody changed afterwards could print any score. So it is made again in a
process that imports the package as it was in the run's commit:
`python -m paramgolf.submission.rebuild FOLDER` writes the script to standard output; FOLDER holds
model.bin and params.yaml.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from paramgolf.codec.container import read_container
from paramgolf.errors import ParamGolfError, exit_on_error
from paramgolf.packing.code import frozen_params, pack_code
from paramgolf.params import PARAMS_PATH, load_params
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.submission.collect import SeedRun
from paramgolf.training.config import TrainConfig

SOURCES = ("paramgolf", "recipes")  # what packing reads of a project


def unpack_sources(commit: str, root: Path, folder: Path) -> None:
    """Write the sources that a commit was packed from into a folder."""
    command = ["git", "archive", commit, "--", *SOURCES]
    done = subprocess.run(command, cwd=root, capture_output=True)
    if done.returncode:
        found = done.stderr.decode(errors="replace").strip()
        raise ParamGolfError("Git cannot give the run's code", where=commit, found=found)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        # of Python 3.11.4 and later; the argument `filter` is an error before it
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)


def check_code(runs: Sequence[SeedRun], scratch: Path, root: Path) -> Iterator[str]:
    """Yield a line for each run whose train_gpt.py is not what its own sources pack to."""
    unpacked: dict[str, Path] = {}
    for run in runs:
        if run.commit is not None and run.commit not in unpacked:
            unpacked[run.commit] = scratch / "sources" / run.commit
            unpack_sources(run.commit, root, unpacked[run.commit])
        sources = root if run.commit is None else unpacked[run.commit]
        if rebuilt(run.folder, sources) != (run.folder / "train_gpt.py").read_bytes():
            fix = "`dvc repro -f package` here, and submit that"
            yield f"`{run.name}`: train_gpt.py is not what the run's own code packs to: {fix}"


def rebuilt(folder: Path, sources: Path) -> bytes | None:
    """Return the script that `sources` make of a run's model.bin and params.yaml; None: none."""
    environment = {**os.environ, "PYTHONPATH": str(sources.resolve())}
    command = [sys.executable, "-m", "paramgolf.submission.rebuild", str(folder.resolve())]
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True)
    return done.stdout if done.returncode == 0 else None


def script(folder: Path) -> bytes:
    """Return train_gpt.py as package makes it for the run in `folder`."""
    header, _ = read_container(folder / "model.bin")
    path = folder / PARAMS_PATH.name
    params = frozen_params(
        asdict(header.model),
        load_params(TrainConfig, "train", path),
        load_params(SlidingConfig, "eval_sliding", path),
        load_params(TttConfig, "eval_ttt", path),
    )
    rans = any(stream.codec == "rans" for stream in header.streams)
    return pack_code(params, rans=rans).content


if __name__ == "__main__":
    with exit_on_error():
        sys.stdout.buffer.write(script(Path(sys.argv[1])))
