"""The files of each seed's run, out of Git and DVC's cache (or its remote), into a scratch folder.

An experiment other than the working folder's has its outputs in the cache alone; DVC's own file
system finds them there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.data.token_set import TOKENS_PATH, open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.read import Experiment, Source, read, read_outputs
from paramgolf.files import parse_object
from paramgolf.packing.script import PackedScript, read_script
from paramgolf.params import PARAMS_PATH
from paramgolf.recipes import nested
from paramgolf.report.inputs import TrainingLog, read_log
from paramgolf.training_log import LOG
from paramgolf.verify.bindings import EVALUATORS

PACKAGE = Path("artifacts/package")
NAMES = {
    "model.bin": PACKAGE / "model.bin",
    "train_gpt.py": PACKAGE / "train_gpt.py",
    "log.jsonl": LOG,
    "manifest.json": TOKENS_PATH / "manifest.json",
    "params.yaml": PARAMS_PATH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRun(Experiment):
    """A finished run, its files (the keys of NAMES) in `folder`.

    `commit` is None for the working folder.
    """

    commit: str | None
    folder: Path
    log: TrainingLog

    @property
    def sections(self) -> dict[str, Any]:
        """The parameters by section."""
        return nested(self.params)

    @property
    def script(self) -> PackedScript:
        """What its train_gpt.py holds."""
        return read_script(self.folder / "train_gpt.py")

    def copy_validation(self, folder: Path, root: Path) -> None:
        """Write the tokens that the run was scored on to `folder`: no training text is there.

        Where an evaluator has a token mask their tokenizer comes with them.
        """
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes((self.folder / "manifest.json").read_bytes())
        tokens = open_tokens(folder)
        names = [*tokens.scored_files]
        if any(self.sections[stage].get("token_mask") for stage in EVALUATORS):
            names.append(tokens.manifest.tokenizer)
        files = {name: TOKENS_PATH / name for name in names}
        for fault in _copy(self.commit, files, folder, root):
            raise ParamGolfError(f"`{self.name}`: {fault}")


def collect(
    sources: Sequence[Source], scratch: Path, root: Path
) -> tuple[list[SeedRun], list[str]]:
    """Return the runs whose files are all there, and a line for each fault of a run."""
    runs, faults = [], []
    for i, (source, experiment) in enumerate(zip(sources, read(sources, root), strict=True)):
        folder = scratch / str(i)
        folder.mkdir(parents=True)
        own = [*_faults(source, experiment, root), *_copy(source.commit, NAMES, folder, root)]
        if own:
            faults += [f"`{source.name}`: {fault}" for fault in own]
        else:
            run = SeedRun(
                experiment.name,
                experiment.params,
                experiment.metrics,
                commit=source.commit,
                folder=folder,
                log=read_log(folder / "log.jsonl"),
            )
            runs.append(run)
    return runs, faults


def _faults(source: Source, experiment: Experiment, root: Path) -> Iterator[str]:
    """Yield why a run's metrics cannot be trusted to be those of its files."""
    if source.commit is None:
        if stages := unfinished_stages(root):
            yield f"{', '.join(stages)} must be run: `dvc repro`"
        return
    for stage, reason in experiment.foreign.items():
        yield f"its {stage} was made with {reason}: run it whole"


def unfinished_stages(root: Path) -> list[str]:
    """Return the stages that `dvc repro` would run in the working folder."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if result.returncode:
        said = result.stderr.strip() or result.stdout.strip()
        raise ParamGolfError("`dvc status` failed", found=said, fix="see `paramgolf doctor`")
    return list(parse_object(result.stdout.strip().rpartition("\n")[2], "`dvc status --json`"))


def _copy(commit: str | None, files: Mapping[str, Path], folder: Path, root: Path) -> Iterator[str]:
    """Copy a run's outputs under the names that `files` gives them; yield what is not at hand."""
    missing = []
    contents = read_outputs(commit, files.values(), root)
    for (name, path), content in zip(files.items(), contents, strict=True):
        if content is None:
            missing.append(path.as_posix())
        else:
            (folder / name).write_bytes(content)
    if missing:
        fix = "`dvc fetch` it where there is a remote, or run it again"
        yield f"not in DVC's cache: {', '.join(missing)}; {fix}"
