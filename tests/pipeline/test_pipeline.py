"""The pipeline with real dvc, in a copy of the project, shrunk until a run takes seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = [
    "download",
    "retokenize",
    "audit",
    "train",
    "calibrate",
    "quantize",
    "package",
    "eval_sliding",
    "eval_ttt",
    "report",
    "verify",
]
SHRUNK = {
    "data": {"validation_documents": 4, "max_documents": 60},
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
    "eval_sliding": {"window": 64, "stride": 32, "max_tokens": 4096},
    "eval_ttt": {
        "window": 64,
        "stride": 32,
        "max_tokens": 4096,
        "chunk_tokens": 1024,
        "epochs": 1,
    },
    "verify": {"enforce": False},
    "runtime": {"device": "cpu", "processes": 1, "workers": 1},
}
pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


class Project:
    """A copy of the project under Git, with the commands a user would type."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        binaries = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str, code: int | None = 0) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert code is None or done.returncode == code, done.stdout[-4000:]
        return done.stdout

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

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def metrics(self, stage: str) -> dict:
        return json.loads((self.folder / f"artifacts/metrics/{stage}.json").read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The project after one whole `dvc repro`, committed."""
    folder = tmp_path_factory.mktemp("project")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    made = Project(folder)
    made.run("git", "init", "-q")
    made.run("git", "config", "user.name", "test")
    made.run("git", "config", "user.email", "test@example.com")
    made.set(SHRUNK)
    (folder / "dvc.lock").unlink(missing_ok=True)
    made.run("dvc", "repro")
    made.commit("a whole run")
    return made


@pytest.fixture
def clean(project):
    """The project, put back as it was after the test."""
    yield project
    project.run("git", "reset", "-q", "--hard")  # autostage puts dvc.lock into the index
    project.run("dvc", "checkout", "-q")


def test_every_stage_leaves_its_metrics(project):
    keys = {
        "audit": "documents_train documents_val bytes_val_raw bytes_val_counted lossless "
        "train_val_overlap bytes_per_token",
        "train": "parameters steps tokens train_seconds tokens_per_second step_ms_median "
        "startup_seconds peak_memory_bytes mfu val_bpb world_size device",
        "calibrate": "seconds tokens source",
        "quantize": "seconds bits_per_weight mean_relative_error",
        "package": "bytes_model bytes_code bytes_total limit_bytes headroom_bytes fits seconds",
        "eval_sliding": "val_bpb val_loss val_bpb_plain tokens_scored bytes_scored seconds",
        "eval_ttt": "val_bpb val_loss tokens_scored bytes_scored seconds updates ledger",
    }
    for stage, names in keys.items():
        assert set(names.split()) <= set(project.metrics(stage)), stage
    assert (project.folder / "artifacts/report/index.html").is_file()
    assert set(project.metrics("verify")["rules"]) >= {f"R{i}" for i in range(1, 12)}


def test_nothing_changed_runs_nothing(project):
    assert project.would_run() == []
    assert "up to date" in project.run("dvc", "repro")


def test_quantize_bits_rerun_only_quantize_onward(clean):
    clean.set({"quantize": {"matrix_bits": 5}})
    output = clean.run("dvc", "repro")
    ran = [stage for stage in STAGES if f"Running stage '{stage}'" in output]
    assert ran == STAGES[STAGES.index("quantize") :]


@pytest.mark.parametrize(
    ("section", "changes", "first"),
    [
        ("eval_sliding", {"stride": 64}, ["eval_sliding"]),
        ("eval_ttt", {"epochs": 2}, ["eval_ttt"]),
        ("verify", {"full_validation": False}, ["verify"]),
        ("runtime", {"workers": 2}, []),
    ],
)
def test_a_parameter_touches_only_what_reads_it(clean, section, changes, first):
    clean.set({section: changes})
    # a dry run does not know what the stage will write, so what follows it may be listed or not
    assert clean.would_run()[:1] == first


@pytest.mark.parametrize(
    ("module", "untouched"),
    [
        ("paramgolf/scoring/sliding.py", ["download", "retokenize", "audit", "train", "quantize"]),
        ("paramgolf/quant/gptq.py", ["download", "retokenize", "audit", "train"]),
        ("paramgolf/report/page.py", STAGES[:9]),
        ("paramgolf/cli.py", STAGES),
    ],
)
def test_an_edit_reruns_only_the_stages_that_import_it(clean, module, untouched):
    path = clean.folder / module
    path.write_text(path.read_text() + "\n# edited\n")
    assert not set(untouched) & set(clean.would_run())


def test_a_misspelt_key_stops_before_any_work(clean):
    clean.set({"train": {"matrix_rl": 0.1}, "quantize": {"matrix_bits": "six"}})
    output = clean.run("dvc", "repro", code=None)
    assert "2 faults" in output
    assert "did you mean `train.matrix_lr`?" in output
    assert "`quantize.matrix_bits` must be a whole number" in output
    assert "Traceback" not in output


def test_a_corpus_of_the_users_own_runs_to_the_end(clean):
    texts = [
        {"text": f"Document {i}. " + "Some words of the user's own. " * 60} for i in range(200)
    ]
    corpus = clean.folder / "mine.jsonl"
    corpus.write_text("".join(json.dumps(x) + "\n" for x in texts))
    clean.commit("a corpus")  # an experiment sees what Git tracks
    changes = ["-S", "data.source=files", "-S", "data.files=[mine.jsonl]"]
    clean.run("dvc", "exp", "run", *changes, "-S", "tokenizer.vocab_size=320")
    manifest = json.loads((clean.folder / "data/raw/manifest.json").read_text())
    assert "files" in json.dumps(manifest)
    assert clean.metrics("audit")["lossless"] is True
    assert clean.metrics("eval_sliding")["val_bpb"] > 0
