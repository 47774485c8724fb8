"""A copy of the project under Git, shrunk until a run takes seconds, and a user's commands."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import yaml
from repository_case import Repository

ROOT = Path(__file__).parents[2]
STAGES = [*yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]]
MODEL_STAGES = STAGES[STAGES.index("train") : STAGES.index("report")]
SHRUNK = {
    "data": {"validation_documents": 2, "max_documents": 60},
    "tokenizer": {"vocab_size": 512, "training_bytes": 500_000},
    "model": {
        "layers": 3,
        "width": 32,
        "heads": 2,
        "kv_heads": 1,
        "mlp_hidden": 64,
        "parallel_start": 2,
        "recurrence": [{"at": 0.5, "order": [0, 1, 1, 2]}],
    },
    "train": {
        "steps": 12,
        "batch_tokens": 512,
        "micro_batch_tokens": 512,
        "sequence_length": 64,
        "validate_every": 6,
        "validation_tokens": 1024,
        "checkpoint_every": 4,
    },
    "calibrate": {"sequences": 8, "batch_sequences": 4},
    "eval_sliding": {"window": 64, "stride": 32},
    "eval_ttt": {
        "window": 64,
        "stride": 32,
        "chunk_tokens": 1024,
        "epochs": 1,
        "token_mask": True,
    },
    "verify": {"enforce": False},
    "runtime": {"device": "cpu", "processes": 1, "workers": 1},
}


class Project(Repository):
    """A copy of the project under Git."""

    def set(self, changes: dict) -> None:
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        for section, values in changes.items():
            content[section] |= values
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def would_run(self) -> list[str]:
        """Name the stages that `dvc repro` would run now."""
        output = self.run("dvc", "repro", "--dry")
        return [stage for stage in STAGES if f"Running stage '{stage}'" in output]

    def metrics(self, stage: str) -> dict:
        return json.loads((self.folder / f"artifacts/metrics/{stage}.json").read_text())


def copy_project(folder: Path) -> Project:
    """Copy what Git has or would have of this project, with small parameters, as a new project."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    made = Project(folder)
    made.begin()
    made.set(SHRUNK)
    (folder / "dvc.lock").unlink(missing_ok=True)
    return made


def clone(project: Project, folder: Path) -> Project:
    """Clone a project as a second user would: without its cache, so without any output."""
    subprocess.run(["git", "clone", "-q", str(project.folder), str(folder)], check=True)
    made = Project(folder)
    made.identify()
    return made
