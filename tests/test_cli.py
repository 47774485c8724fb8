"""The command line: light, with an example each; bad input is one message and exit code 2."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paramgolf.cli import COMMANDS, parse
from paramgolf.commands import use
from paramgolf.commands.completion import SHELLS
from paramgolf.errors import exit_on_error
from paramgolf.params import read_yaml
from paramgolf.report.inputs import SECTIONS

ROOT = Path(__file__).parents[1]
HELP = ("use", "recipes", "compare", "submit", "doctor", "completion")
LIGHT = ("--help", "check", "estimate sample", *(f"{name} --help" for name in HELP))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes, the working directory of the test."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name, command):
    assert f"example:\n  paramgolf {name}" in command(name, "--help")


def test_help_lists_every_command(command):
    text = command("--help")
    assert all(line in text for line in COMMANDS.values())


@pytest.mark.parametrize("words", LIGHT)
def test_a_light_command_imports_nothing_heavy(words):
    script = f"""
import sys
from paramgolf.cli import main
try:
    main({words.split()!r})
except SystemExit:
    pass
heavy = {{"torch", "numpy", "dvc", "matplotlib", "scipy", "jinja2"}} & sys.modules.keys()
print("heavy:", sorted(heavy))
"""
    command_line = [sys.executable, "-c", script]
    result = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("heavy: []\n")


def test_nothing_is_left_for_the_collector_at_the_end():
    gc.unfreeze()
    before = gc.get_freeze_count()
    with exit_on_error():
        pass
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert frozen > before


BAD = [
    ([], "write a recipe to params.yaml"),
    (
        ["frobnicate"],
        "there is no command `frobnicate`\n  what to do: `paramgolf --help` lists them",
    ),
    (["estmate"], "did you mean `paramgolf estimate`?"),
    (["--frobnicate"], "COMMAND"),
    (["use"], "the following arguments are required: RECIPE\n"),
    (["use", "pr9"], "there is no recipe `pr9`"),
    (["use", "sample", "train.sed=1"], "did you mean `train.seed`?"),
    (["use", "sample", "seed"], "`seed` is not a change of a parameter"),
    (["use", "sample", "train.seed=one"], "`train.seed` must be a whole number, found 'one'"),
    (
        ["use", "sample", "train.seed=["],
        "  found: line 2, column 1: did not find expected node content",
    ),
    (["use", "sample", "train.seed=!!python/name:os.system"], "a tag (!name) is not taken here"),
    (["use", "sample", "train.seed={a: 1, a: 2}"], "the key 'a' comes twice"),
    (["check"], "there is no file params.yaml"),
    (["check", "recipes/sample.yaml"], "`audit.allowed_overlap` is missing"),
    (["check", "other.yaml"], "there is no file other.yaml"),
    (["recipes", "sample"], "unrecognized arguments: sample"),
    (["recipes", "--all"], "--all goes with --frontier alone"),
    (["recipes", "--frontier", "--differences"], "not allowed with argument --frontier"),
    (["watch", "--folder", "other"], "what to do: cd other && paramgolf watch"),
    (["estimate", "pr9"], "there is no recipe `pr9`"),
    (["estimate", "sample", "train.sed=1"], "did you mean `train.seed`?"),
    (["estimate"], "there is no file params.yaml"),
    (["rehearse", "train.steps=1"], "there is no file params.yaml"),
    (["profile"], "there is no file params.yaml"),
    (["estimate", "sample", "--gpus", "0"], "argument --gpus: must be at least 1, not 0"),
    (["estimate", "sample", "--price", "nan"], "argument --price: must be a number above 0"),
    (["lab", "plan.yaml", "--stop-after", "-5"], "argument --stop-after: must be a number above 0"),
    (["estimate", "sample", "--gpu", "abacus"], "invalid choice: 'abacus'"),
    (["doctor", "everything"], "paramgolf doctor: error: unrecognized arguments: everything"),
    (["compare"], "Git cannot read this folder"),
    (["submit"], "`workspace` has no params.yaml"),
    (["submit", "--against", "pr9"], "there is no record `pr9`"),
    (["submit", "--track", "open"], "invalid choice: 'open'"),
    (["submit", "--credit", "nobody"], "`nobody` credits nobody"),
    (["submit", "--out", "recipes"], "recipes is there already"),
    (["completion"], "the following arguments are required: WHAT"),
    (["completion", "smalltalk"], "invalid choice: 'smalltalk'"),
    (["completion", "experiments"], "Git cannot read this folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_message_and_code_2(arguments, message, project, command):
    assert message in command(*arguments, code=2)
    assert not (project / "params.yaml").exists()


@pytest.mark.parametrize(
    "words", [("recipes",), ("use", "sample"), ("estimate", "sample"), ("compare",)]
)
def test_outside_a_project_the_remedy_is_its_folder(words, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert command(*words, code=2).endswith("what to do: run in the project's folder\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_message_and_code_2(name, project, command):
    error = command(name, "--frobnicate", code=2)
    assert error.count("error:") == 1
    assert "--frobnicate" in error or "are required" in error


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "doctor"])
def test_an_empty_folder_is_one_message_and_code_2(name, tmp_path, monkeypatch, command):
    """The doctor's code there is 1: it finds faults."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    words = {name: ["sample"] for name in ("use", "estimate", "rehearse", "profile")}
    words |= {"completion": ["records"], "audit-score": ["scorer.py"], "lab": ["x.yaml"]}
    assert command(name, *words.get(name, []), code=2).startswith("paramgolf: ")


def test_changes_may_stand_behind_an_option():
    words = ["estimate", "sample", "train.seed=2", "--gpu", "cpu", "train.steps=4"]
    assert parse(words).assignments == ["train.seed=2", "train.steps=4"]


def test_without_a_recipe_the_run_of_params_yaml_is_meant(project, command):
    def estimated(*words: str) -> dict[str, Any]:
        return json.loads(command("estimate", *words, "--gpu", "cpu", "--json"))

    command("use", "sample", "train.steps=30", "model.mlp_hidden=256")
    named = estimated("sample", "train.steps=30", "model.mlp_hidden=256")
    own = estimated()
    assert (own.pop("recipe"), own.pop("changes")) == ("params.yaml", [])
    assert own.items() <= named.items()
    changed = estimated("train.steps=40")
    assert changed["changes"] == ["train.steps=40"]
    assert (own["run"]["steps"], changed["run"]["steps"]) == (30, 40)
    (project / "params.yaml").write_text("train.steps: 3")
    assert "`train.steps` is not a parameter" in command("estimate", "train.steps=4", code=2)


def test_use_writes_what_check_accepts_and_prints_the_changes(project, command):
    assert "params.yaml: written anew" in command("use", "sample")
    changes = ("train.seed=3", "train.adam_eps=1e-5")
    lines = command("use", "sample", *changes).splitlines()
    assert lines == ["train.seed: 1337 -> 3", "train.adam_eps: 1e-08 -> 1e-05"]
    text = (project / "params.yaml").read_text()
    assert text.startswith("# Written by `paramgolf use sample train.seed=3 train.adam_eps=1e-5`.")
    assert "  # steps; null: until the budget is spent\n  steps: " in text
    assert command("use", "sample", *changes) == "params.yaml: no parameter changed\n"
    assert command("check") == ""


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028"])
def test_use_writes_what_check_accepts_of_a_value_of_several_lines(end, project, command):
    command("use", "sample", f"data.files=[a,{end}b]")
    assert command("check") == ""
    assert read_yaml("params.yaml")["data"]["files"] == ["a", "b"]
    first = (project / "params.yaml").read_text().split("\n", 1)[0]
    assert first == "# Written by `paramgolf use sample data.files=[a, b]`."


@pytest.mark.parametrize("text", ["on", "No", "010", "1:30", "1e5", "null", "2020-01-01", "a: # b"])
def test_use_writes_a_text_that_is_read_as_this_text(text, project, command):
    command("use", "sample", f"data.text_field='{text}'")
    command("check")
    assert read_yaml("params.yaml")["data"]["text_field"] == text


def test_use_changes_nothing_when_a_parameter_is_at_fault(project, command):
    command("use", "sample")
    before = (project / "params.yaml").read_bytes()
    error = command("use", "sample", "model.heads=3", "train.sed=1", code=2)
    assert (project / "params.yaml").read_bytes() == before
    assert error.count("\n  - ") == 3


def test_use_replaces_a_file_that_is_no_yaml(project, command):
    (project / "params.yaml").write_text("a: [")
    command("use", "sample")
    assert read_yaml("params.yaml")["train"]["seed"] == 1337


def test_differences_show_what_came_and_went():
    lines = list(use.differences({"a": 1, "b": None, "c": [1]}, {"a": 1, "b": 2, "d": "x"}))
    assert lines == ["b: null -> 2", "d: (absent) -> x", "c: [1] -> (absent)"]


def listed(command: Callable[..., str]) -> dict[str, list[str]]:
    """The words of each table's rows by recipe: what it is, what it costs, what ours scored."""
    lines = command("recipes").splitlines()
    assert max(map(len, lines)) <= 84
    rows: dict[str, list[str]] = {}
    for words in (line.split() for line in lines if line.strip()):
        rows.setdefault(words[0], []).append(" ".join(words[1:]))
    return rows


def test_recipes_are_listed_with_score_size_and_speed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = listed(command)
    assert "embedded sample" in rows["sample"][0]
    assert rows["pr1493"][0].startswith("1.0810 SP8192")
    assert rows["pr1493"][1].startswith("35,944,536 35,944,536 15,993,232 ")
    assert rows["pr2135"][1].split()[4] == "820"  # 5,001 steps of 786,432 in 599.5 s on 8 GPUs


FIGURES = {"tokens": 6e7, "val_bpb_packed": 1.2345, "lost": 0.003, "tokens_per_second": 9e5}
FIGURES |= {"bytes_total": 16_000_001, "headroom_bytes": -1}


def write_results(project: Path, recipes: dict[str, dict[str, Any]]) -> None:
    path = project / "benchmarks/results/recipes.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"runs": {"recipes": recipes}}))


def test_recipes_tell_what_was_measured_here_and_what_was_not(project, command):
    other = {"device": "a GPU", "figures": {"tokens": 1e8, "val_bpb_packed": 1.1}}
    write_results(project, {"h100x1": other, "pr1493": {"device": "a GPU", "figures": FIGURES}})
    rows = listed(command)
    _, costs, scores = rows["pr1493"]
    assert costs == "35,944,536 35,944,536 15,993,232 16,000,001* 761 900"
    assert scores == "1.2345 16,000,001*"
    assert len(rows["h100x1"]) == 1
    assert rows["pr1296"][1].endswith("15,999,533 - 909 -")


def test_recipes_name_the_machine_of_the_runs_that_are_shown(project, command):
    runs = {"pr1493": "this GPU", "pr1493, before its correction": "another GPU"}
    write_results(project, {n: {"device": d, "figures": FIGURES} for n, d in runs.items()})
    output = " ".join(command("recipes").split())
    assert "text on one this GPU." in output
    assert "another GPU" not in output


def test_differences_are_a_table_that_names_what_restores_them(project, command):
    lines = command("recipes", "--differences").splitlines()
    clipped = next(line for line in lines if "train.clip_scope" in line)
    assert clipped.startswith("| pr1204, pr1392, pr1855, pr2135 | each process clips ")
    assert "| `train.clip_scope: process` |" in clipped


def test_a_recipe_can_be_used_as_it_was_published(project, command):
    command("use", "pr1855", "train.reserve_seconds=1.0", "fidelity=published")
    params = read_yaml("params.yaml")
    assert params["train"]["clip_scope"] == "process"
    assert params["train"]["reserve_seconds"] == 1.0  # what is named wins


@pytest.mark.parametrize("words", [("best", "fidelity=published"), ("pr1855", "fidelity=ours")])
def test_what_was_never_published_cannot_be_restored(words, project, command):
    error = command("use", *words, code=2)
    assert "`fidelity` is `published`, for a recipe of a published" in error


def test_params_of_dvc_yaml_are_those_that_the_scripts_read():
    """runtime is nobody's parameter: no result depends on it."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    del stages["code"]  # which runs before any parameter is read
    for name, stage in stages.items():
        source = (ROOT / f"stages/{name}.py").read_text()
        read = set(re.findall(r'load_params\(\w+, "(\w+)"\)', source)) - {"runtime"}
        if name in ("eval_sliding", "eval_ttt"):
            read -= {"verify"}  # for a warning while it runs; no result depends on it
        if name == "report":
            read = {*SECTIONS, "verify.eval_seconds", "verify.train_seconds"}
        assert set(stage["params"]) == read, name


# completion


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell_names_every_command(shell, command):
    script = command("completion", shell)
    assert all(name in script for name in COMMANDS)
    assert "paramgolf completion experiments" in script


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["co"], {"compare", "completion"}),
        (["use", "samp"], {"sample"}),
        (["estimate", "pr12"], {"pr1204", "pr1296"}),
        (["rehearse", "samp"], {"sample"}),
        (["compare", "--against", "pr185"], {"pr1851", "pr1855"}),
        (["compare", "work"], {"workspace"}),
        (["submit", "--tr"], {"--track"}),
        (["submit", "--track", "non"], {"non_record_16mb"}),
    ],
)
def test_bash_completes(words, expected, tmp_path, command):
    """In a real bash, by the script; `paramgolf` is this tree's."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (tmp_path / "script").write_text(command("completion", "bash"))
    line = f"""
paramgolf() {{ {sys.executable} -m paramgolf.cli "$@"; }}
source {tmp_path}/script
COMP_WORDS=(paramgolf {" ".join(words)})
COMP_CWORD={len(words)}
COMP_LINE="${{COMP_WORDS[*]}}"
COMP_POINT=${{#COMP_LINE}}
_shtab_paramgolf paramgolf {words[-1]}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run([bash, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr


def test_recipes_experiments_and_records_are_listed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    for what, name in (("recipes", "sample"), ("records", "pr1855"), ("experiments", "workspace")):
        assert name in command("completion", what).splitlines()
