"""A project that ran whole once for all processes of the tests, and copies of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from pipeline_case import Project, clone, copy_project


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder: Path, make: Callable[[Path], Project]) -> Project:
    """Make a project at `folder`, unless another process has or is about to: then wait for it."""
    with FileLock(folder.with_suffix(".lock")):
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return Project(folder)


def run_whole(folder: Path) -> Project:
    """Copy the project, run it whole and commit."""
    folder.mkdir()
    made = copy_project(folder)
    made.run("dvc", "repro")
    made.commit("a whole run")
    return made


@pytest.fixture(scope="session")
def original(shelf: Path) -> Project:
    """The project after one whole `dvc repro`, committed, the same for all processes."""
    return once(shelf / "original", run_whole)


@pytest.fixture(scope="session")
def project(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of it, cache and all, for this process alone; no test may change it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(original.folder, folder, symlinks=True, dirs_exist_ok=True)
    return Project(folder)


@pytest.fixture
def clean(project: Project) -> Iterator[Project]:
    """The project, put back as it was after the test."""
    yield project
    project.run("git", "reset", "-q", "--hard")  # autostage puts dvc.lock into the index
    project.run("dvc", "checkout", "-q")


def shared(project: Project, folder: Path) -> Project:
    """Clone a project; the clone shares its cache, so everything is there, and may be changed."""
    made = clone(project, folder)
    made.run("dvc", "config", "--local", "cache.dir", str(project.folder / ".dvc/cache"))
    made.run("dvc", "checkout", "-q")
    return made


@pytest.fixture
def sibling(project: Project, tmp_path: Path) -> Project:
    """A clone of the project that shares its cache."""
    return shared(project, tmp_path / "sibling")


@pytest.fixture(scope="session")
def seeded(original: Project, shelf: Path) -> Project:
    """A clone with two experiments from a queue, 1-seed and 2-seed; no test may change it."""

    def make(folder: Path) -> Project:
        made = shared(original, folder)
        made.run("dvc", "exp", "run", "--queue", "-S", "train.seed=range(1,3)")
        made.run("dvc", "exp", "run", "--run-all")
        for name in made.run("dvc", "exp", "list", "--name-only").split():
            commit = made.run(
                "git", "rev-parse", f"refs/exps/{made.head[:2]}/{made.head[2:]}/{name}"
            )
            params = yaml.safe_load(made.run("git", "show", f"{commit.strip()}:params.yaml"))
            made.run("dvc", "exp", "rename", name, f"{params['train']['seed']}-seed")
        return made

    return once(shelf / "seeded", make)
