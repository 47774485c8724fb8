"""A remote on a real server: a second clone requantises the first one's training, never its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from pipeline_case import Project, clone

from paramgolf.doctor import project as doctor
from paramgolf.doctor.reach import reachable

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


@pytest.fixture(params=["ssh", "webdav"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, free_port: int) -> Iterator:
    folder = tmp_path / "server"
    folder.mkdir(mode=0o700)
    with getattr(servers, request.param)(folder, free_port) as made:
        yield made


def log_in(project: Project, remote: servers.Remote) -> None:
    """Give this clone what must not be in Git: user, and password or key."""
    for name, value in remote.secrets.items():
        project.run("dvc", "remote", "modify", "--local", "shared", name, value)


@pytest.mark.parametrize("remote", ["webdav"], indirect=True)  # test_remotes.py has ssh
def test_a_second_clone_requantizes_without_training(sibling, remote, tmp_path):
    sibling.run("dvc", "remote", "add", "-d", "shared", remote.url)
    log_in(sibling, remote)
    sibling.run("dvc", "push")
    assert any(remote.folder.rglob("files/md5/*/*"))
    sibling.commit("a remote")

    second = clone(sibling, tmp_path / "second")
    log_in(second, remote)
    second.run("dvc", "pull", "artifacts/train", "artifacts/calibrate")
    checkpoint = "artifacts/train/model.safetensors"
    assert (second.folder / checkpoint).read_bytes() == (sibling.folder / checkpoint).read_bytes()

    second.set({"quantize": {"matrix_bits": 5}})
    output = second.run("dvc", "repro", "--pull", "--allow-missing", "package")
    ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    assert ran == ["quantize", "package"]
    assert not (second.folder / "data/tokens").exists()
    smaller, larger = (p.metrics("package")["bytes_model"] for p in (second, sibling))
    assert smaller < larger


def test_the_doctor_reaches_the_remote(remote, tmp_path):
    config = {"core.remote": "shared", "remote.shared.url": remote.url}
    found = doctor.check_remote(config, tmp_path, reachable)
    assert (found.state, found.text[-7:]) == ("ok", "answers")
