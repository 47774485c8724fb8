"""A project that ran whole once, shared by all tests of a process, and copies of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
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


@pytest.fixture
def sibling(project: Project, tmp_path: Path) -> Project:
    """A clone that shares the project's cache: everything is there, and it may be changed."""
    made = clone(project, tmp_path / "sibling")
    made.run("dvc", "config", "--local", "cache.dir", str(project.folder / ".dvc/cache"))
    made.run("dvc", "checkout", "-q")
    return made
