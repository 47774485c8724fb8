"""Every stage on outputs that are links, and every stage where the machine refuses something."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pipeline_case import STAGES, Project

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

DRIVER = Path(__file__).with_name("stage_driver.py")
SHORT = {  # each stage does all that it does in a whole run, on less
    "data": {"source": "files", "files": ["mine.jsonl"]},
    "train": {"steps": 2, "validate_every": 0, "checkpoint_every": 1},
    "eval_sliding": {"max_tokens": 300},
    "eval_ttt": {"max_tokens": 300},
}
MESSAGES = {
    "size": ("File too large", "ulimit -f"),
    "files": ("Too many open files", "ulimit -n"),
    "rights": ("Permission denied", "mend the rights"),
}
EMPTIED = {"download": "data/raw", "retokenize": "data/tokens"}  # before these stages fill them
CASES = [  # those that leave a folder empty last
    {"stage": stage, "refuse": refuse}
    for refuse in ("rights", "files", "size")
    for stage in (*(s for s in STAGES if s not in EMPTIED), "retokenize", "download")
]


def outputs(project: Project) -> list[Path]:
    """Return the files that stages have written, relative to the project."""
    folders = ("data", "artifacts")
    found = (path for folder in folders for path in (project.folder / folder).rglob("*"))
    files = (path.relative_to(project.folder) for path in found if path.is_file())
    return sorted(path for path in files if path.name != "README.md")


def digests(folder: Path, names: Iterable[Path]) -> dict[Path, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@dataclass
class Linked:
    """A project whose outputs are links into a folder that stands for DVC's cache."""

    project: Project
    cache: Path
    before: dict[Path, str]
    """What the outputs held, and the cache still must."""


def document(seed: int) -> str:
    """Return a line of JSON with made-up words."""
    draw = random.Random(seed)
    words = ("".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(200))
    return json.dumps({"text": " ".join(words)}) + "\n"


def linked_copy(original: Project, folder: Path) -> Linked:
    """Copy a project, with hard and symbolic links by turns in the place of outputs."""
    shutil.copytree(original.folder, folder, ignore=shutil.ignore_patterns(".dvc", ".git"))
    project = Project(folder)
    project.set(SHORT)
    (folder / "mine.jsonl").write_text("".join(map(document, range(60))))
    cache, names = folder.with_suffix(".cache"), outputs(project)
    for name, link in zip(names, itertools.cycle([os.link, os.symlink])):
        kept = cache / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(kept)
        link(kept, folder / name)
    return Linked(project, cache, digests(cache, names))


@pytest.fixture(scope="module")
def driven(project, tmp_path_factory) -> tuple[Linked, Linked, list]:
    """A project in which each stage ran, one in which each was refused something; the answers."""
    folder = tmp_path_factory.mktemp("driven")
    linked, refused = (linked_copy(project, folder / name) for name in ("linked", "refused"))
    folders = [path for path in refused.project.folder.rglob("*") if path.is_dir()]
    for path in (refused.project.folder, *folders):
        path.chmod(0o555)
    command = [sys.executable, DRIVER, linked.project.folder, refused.project.folder]
    done = subprocess.run(
        command,
        input=json.dumps(CASES),
        env=linked.project.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return linked, refused, json.loads(done.stdout.splitlines()[-1])


def test_a_stage_writes_new_files_where_outputs_are_links_into_the_cache(driven):
    linked, _, _ = driven
    assert digests(linked.cache, linked.before) == linked.before
    folder = linked.project.folder
    assert set(linked.before) == set(outputs(linked.project))
    still = [name for name in linked.before if (folder / name).samefile(linked.cache / name)]
    assert still == []  # every stage ran, and wrote all of its outputs


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join(CASES[i].values()))
def test_what_the_machine_refuses_is_one_message(driven, case):
    code, printed = driven[2][case]
    assert code == 2, printed
    assert printed.count("paramgolf: ") == 1
    assert "Traceback" not in printed
    assert all(part in printed for part in MESSAGES[CASES[case]["refuse"]]), printed


def test_what_was_made_is_not_lost_where_a_stage_fails(driven):
    _, refused, _ = driven
    assert digests(refused.cache, refused.before) == refused.before
    kept = {n: d for n, d in refused.before.items() if str(n.parent) not in EMPTIED.values()}
    assert digests(refused.project.folder, outputs(refused.project)) == kept
