"""The pipeline with real dvc, in a copy of the project, shrunk until a run takes seconds."""

from __future__ import annotations

import json

import pytest
from pipeline_case import STAGES

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


def test_every_stage_leaves_its_metrics(project):
    keys = {
        "audit": "documents_train documents_val bytes_val_raw bytes_val_counted lossless "
        "train_val_overlap near_copies bytes_per_token",
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
    output = clean.run("dvc", "repro", "package")
    ran = [stage for stage in STAGES if f"Running stage '{stage}'" in output]
    assert ran == ["quantize", "package"]
    assert clean.would_run()[0] == "eval_sliding"


def test_what_a_stage_has_made_once_is_not_made_again(clean):
    clean.set({"quantize": {"matrix_bits": 5}})
    clean.run("dvc", "repro", "package")
    clean.run("git", "checkout", "params.yaml")
    output = clean.run("dvc", "repro", "package")
    for stage in ("quantize", "package"):
        assert f"Stage '{stage}' is cached - skipping run" in output


@pytest.mark.parametrize(
    ("section", "changes", "first"),
    [
        ("eval_sliding", {"stride": 64}, ["package"]),  # they are in train_gpt.py too
        ("eval_ttt", {"epochs": 2}, ["package"]),
        ("verify", {"full_validation": False}, ["verify"]),
        ("runtime", {"workers": 2}, []),
    ],
)
def test_a_parameter_touches_only_what_reads_it(clean, section, changes, first):
    clean.set({section: changes})
    # a dry run does not know what the stage will write, so what follows it may be listed or not
    assert clean.would_run()[:1] == first


def test_a_variant_of_an_evaluation_leaves_the_other_alone(clean):
    """train_gpt.py has its parameters; the model stays as it is."""
    clean.set({"eval_ttt": {"epochs": 2}})
    clean.run("dvc", "repro", "package")
    assert "eval_sliding" not in clean.would_run()


def edit(project, module, old, new):
    path = project.folder / module
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_comments_and_docstrings_rerun_nothing_but_the_stage_code(clean):
    edit(clean, "paramgolf/model/block.py", '"""', '"""In other words. ')
    edit(clean, "paramgolf/training/run.py", "\n\n\n", "\n\n\n# why\n\n\n")
    clean.run("dvc", "repro", "code")  # a dry run does not foresee what it will write
    assert clean.would_run() == []


def test_an_edit_reruns_only_the_stages_that_import_it(clean):
    """tests/test_stage_code.py says which stages import what."""
    edit(clean, "paramgolf/model/attention.py", "\n\n\n", "\n\n\nEDITED = 1\n\n\n")
    clean.run("dvc", "repro", "code")
    found = clean.would_run()
    assert found[0] == "train"
    assert not {"download", "retokenize", "audit"} & set(found)


def test_a_stage_alone_with_code_that_was_not_hashed_stops(clean):
    edit(clean, "paramgolf/quant/gptq.py", "\n\n\n", "\n\n\nEDITED = 1\n\n\n")
    clean.set({"quantize": {"matrix_bits": 4}})  # which no other test leaves in the cache
    output = clean.run("dvc", "repro", "-s", "quantize", code=None)
    assert "the code of stage quantize is not the one that was hashed" in output
    assert "dvc repro -s code" in output
    assert "Traceback" not in output


def test_a_misspelt_key_stops_before_any_work(clean):
    clean.set({"train": {"matrix_rl": 0.1}, "quantize": {"matrix_bits": "six"}})
    output = clean.run("dvc", "repro", code=None)
    assert "2 faults" in output
    assert "did you mean `train.matrix_lr`?" in output
    assert "`quantize.matrix_bits` must be a whole number" in output
    assert "Traceback" not in output


def test_a_corpus_of_the_users_own_is_trained_on(clean):
    texts = [
        {"text": f"Document {i}. " + "Some words of the user's own. " * 60} for i in range(200)
    ]
    corpus = clean.folder / "mine.jsonl"
    corpus.write_text("".join(json.dumps(x) + "\n" for x in texts))
    clean.commit("a corpus")  # an experiment sees what Git tracks
    changes = ["-S", "data.source=files", "-S", "data.files=[mine.jsonl]"]
    changes += ["-S", "audit.allowed_near_copies=1.0"]  # they differ by a number
    changes += ["-S", "tokenizer.vocab_size=320"]
    clean.run("dvc", "exp", "run", *changes, "audit", "train")
    manifest = json.loads((clean.folder / "data/raw/manifest.json").read_text())
    assert "files" in json.dumps(manifest)
    assert clean.metrics("audit")["lossless"] is True
    assert clean.metrics("train")["val_bpb"] > 0
