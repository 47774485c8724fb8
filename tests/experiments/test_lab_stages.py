"""Stages as the laboratory runs them: how their ends are told, and how they are stopped."""

from __future__ import annotations

import threading
import time

import pytest
import yaml

from paramgolf.experiments.lab import stages
from paramgolf.experiments.lab.stages import Processes, StoppedError, failure_of, read_stages


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (-9, "loss 3.2", ("killed by SIGKILL", True)),
        (
            2,
            "paramgolf: the loss is not finite\n  where: step 3\n",
            ("the loss is not finite", False),
        ),
        (
            1,
            "Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory.",
            ("torch.OutOfMemoryError: CUDA out of memory.", False),
        ),
        (2, "[rank1]: ValueError: odd\n", ("ValueError: odd", False)),
        (137, "loss 3.2", ("killed by SIGKILL", True)),
        (3, "", ("exit code 3", False)),
        (3, "something odd\n\n", ("something odd", False)),
    ],
)
def test_a_failure_is_said_in_a_line(code, said, expected):
    assert failure_of(code, said) == expected


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("paramgolf/experiments/packed_score.py", {"packed"}),
        ("paramgolf/validate.py", {"packed"}),
        ("paramgolf/evaluation.py", {"packed", "eval_sliding"}),
        ("stages/eval_sliding.py", {"eval_sliding"}),
        ("stages/package.py", {"package"}),
    ],
)
def test_an_edit_changes_the_code_of_the_stages_that_run_it(tmp_path, edited, changed):
    score = "import paramgolf.evaluation\n"
    files = {
        "stages/package.py": "",
        "paramgolf/packing/entry.py": "",
        "stages/eval_sliding.py": score,
        "paramgolf/experiments/packed_score.py": score + "import paramgolf.validate\n",
        "paramgolf/evaluation.py": "",
        "paramgolf/validate.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    plan = {name: {"deps": [], "params": []} for name in ("package", "eval_sliding")}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": plan}))
    before = read_stages(tmp_path)
    (tmp_path / edited).write_text(files[edited] + "answer = 42\n")
    after = read_stages(tmp_path)
    assert {name for name in after if after[name].code != before[name].code} == changed


def test_a_stage_that_is_stopped_ends_at_once(tmp_path, monkeypatch):
    script = tmp_path / "stages" / "train.py"
    script.parent.mkdir()
    script.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    processes, place = Processes(), stages.Place(tmp_path)
    caught = []

    def run():
        try:
            processes.run("train", place, stages.environment_of(tmp_path, None))
        except StoppedError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "train.log").is_file() or not (tmp_path / "train.log").read_text():
        time.sleep(0.02)
    processes.stop()
    thread.join()
    assert len(caught) == 1
    with pytest.raises(StoppedError):
        processes.run("train", place, stages.environment_of(tmp_path, None))
