"""A project that ran whole once, shared by all tests of a process, and copies of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pipeline_case import Project, clone, copy_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after one whole `dvc repro`, committed; no test may change it."""
    made = copy_project(tmp_path_factory.mktemp("project"))
    made.run("dvc", "repro")
    made.commit("a whole run")
    return made


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
def seeded(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with two experiments from a queue, 1-seed and 2-seed; no test may change it."""
    made = shared(project, tmp_path_factory.mktemp("seeded") / "project")
    made.run("dvc", "exp", "run", "--queue", "-S", "train.seed=range(1,3)")
    made.run("dvc", "exp", "run", "--run-all")
    for name in made.run("dvc", "exp", "list", "--name-only").split():
        commit = made.run("git", "rev-parse", f"refs/exps/{made.head[:2]}/{made.head[2:]}/{name}")
        params = yaml.safe_load(made.run("git", "show", f"{commit.strip()}:params.yaml"))
        made.run("dvc", "exp", "rename", name, f"{params['train']['seed']}-seed")
    return made
