"""One hash a stage: what is in it, and a stage that is run with a hash of other code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from paramgolf.errors import ParamGolfError
from paramgolf.imports import closure
from paramgolf.stage_code import (
    ALSO,
    DATA_SUFFIXES,
    HASHES,
    SCRIPTS,
    check_hash,
    stage_hash,
    stages,
    write_hashes,
)

ROOT = Path(__file__).parents[1]
FILES = {
    "stages/code.py": "",
    "stages/train.py": "from paramgolf.model.net import run\n",
    "stages/package.py": "import json\n",
    "paramgolf/__init__.py": "",
    "paramgolf/model/net.py": "def run():\n    from paramgolf.model.deep import x\n",
    "paramgolf/model/deep.py": "x = 1\n",
    "paramgolf/model/page.html": "<p>",
    "paramgolf/model/style.css": "p {}",
    "paramgolf/packing/entry.py": "import paramgolf.model.deep\n",
    "paramgolf/unused.py": "",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of two stages beside `code`."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    write_hashes(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def imported() -> dict[str, set[Path]]:
    """The modules of each stage of this project."""
    scripts = {stage: (SCRIPTS / f"{stage}.py", *ALSO.get(stage, ())) for stage in stages(ROOT)}
    return {
        stage: {path for file in files for path in closure(file, ROOT)}
        for stage, files in scripts.items()
    }


def test_every_stage_but_code_has_its_file(root):
    assert sorted(path.name for path in (root / HASHES).iterdir()) == [
        "package.sha256",
        "train.sha256",
    ]


@pytest.mark.parametrize(
    ("file", "appended", "changed"),
    [
        ("paramgolf/model/deep.py", "# why\n", set()),
        ("paramgolf/model/deep.py", "y = 2\n", {"train", "package"}),
        ("paramgolf/model/net.py", "y = 2\n", {"train"}),
        ("paramgolf/model/page.html", "</p>", {"train", "package"}),
        ("paramgolf/model/style.css", "b {}", {"train", "package"}),
        ("paramgolf/packing/entry.py", "y = 2\n", {"package"}),
        ("paramgolf/unused.py", "y = 2\n", set()),
        ("stages/train.py", "run()\n", {"train"}),
    ],
)
def test_a_hash_changes_with_what_the_stage_runs(root, file, appended, changed):
    before = {stage: stage_hash(stage, root) for stage in stages(root)}
    (root / file).write_text((root / file).read_text() + appended)
    assert {stage for stage in before if stage_hash(stage, root) != before[stage]} == changed


@pytest.mark.parametrize("name", [".DS_Store", "net.py.orig", "net.py~", ".page.html.swp"])
def test_a_stray_file_changes_no_hash(root, name):
    (root / "paramgolf/model" / name).write_text("stray")
    for stage in stages(root):
        check_hash(stage, root)


def test_every_template_counts():
    templates = ROOT.glob("paramgolf/*/templates/[!.]*")
    assert {path.suffix for path in templates} == DATA_SUFFIXES


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("quant/gptq.py", {"quantize"}),
        ("scoring/sliding.py", {"package", "eval_sliding", "eval_ttt"}),
        ("report/page.py", {"report"}),
        ("cli.py", set()),
    ],
)
def test_few_stages_depend_on_what_one_of_them_does(imported, module, expected):
    importing = {stage for stage, files in imported.items() if Path("paramgolf", module) in files}
    assert importing == expected


def test_a_stage_whose_code_was_not_hashed_is_refused(root):
    check_hash("train", root)
    (root / "paramgolf/model/net.py").write_text("def run():\n    pass\n")
    with pytest.raises(ParamGolfError, match=r"(?s)not the one that was hashed.*dvc repro -s code"):
        check_hash("train", root)
    check_hash("package", root)
    (root / HASHES / "package.sha256").unlink()
    with pytest.raises(ParamGolfError, match="no such file"):
        check_hash("package", root)


def test_a_stage_that_does_not_exist_is_named(root):
    with pytest.raises(ParamGolfError, match=r"(?s)no stage `trian`.*package, train"):
        check_hash("trian", root)


def test_each_stage_of_dvc_yaml_depends_on_its_hash_and_checks_it():
    plan = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert sorted(plan) == sorted(["code", *stages(ROOT)])
    for name in stages(ROOT):
        code = [dep for dep in plan[name]["deps"] if dep.startswith(f"{HASHES}/")]
        assert code == [f"{HASHES}/{name}.sha256"]
        check = f"exec python -m paramgolf.cli check --stage {name}"
        assert plan[name]["cmd"] == [check, f"exec python stages/{name}.py"]
    assert plan["code"]["deps"] == ["paramgolf", "stages"]
