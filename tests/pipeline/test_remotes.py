"""Real servers, S3 and OpenSSH's: pushing and pulling, what a mirror writes, and watching."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from dvc.repo import Repo
from run_files import ROOT

from paramgolf.cli import main
from paramgolf.mirror import Mirror


@pytest.fixture
def ssh(tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """A server that lets the key in this user's ~/.ssh in."""
    folder, keys = tmp_path / "server", tmp_path / "home/.ssh"
    folder.mkdir(mode=0o700)
    keys.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with servers.ssh(folder, free_port) as made:
        shutil.copy(made.secrets["keyfile"], keys / "id_ed25519")
        yield made


def test_what_is_pushed_to_a_bucket_comes_back(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pushed_and_pulled({"url": bucket}, tmp_path / "model.bin")


def test_what_is_pushed_over_ssh_comes_back(ssh, tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    pushed_and_pulled({"url": ssh.url, **ssh.secrets}, tmp_path / "project/model.bin")
    assert any(ssh.folder.rglob("files/md5/*/*"))


def pushed_and_pulled(remote: dict[str, str], path: Path) -> None:
    """Push a file to a remote, forget it here, and pull it."""
    content = bytes(range(256)) * 100
    Repo.init(no_scm=True)
    with Repo() as repo:
        with repo.config.edit() as config:
            config["remote"]["shared"] = remote
            config["core"]["remote"] = "shared"
        path.write_bytes(content)
        repo.add(path.name)
    with Repo() as repo:
        assert repo.push() == 1
        repo.cache.local.clear()
        path.unlink()
        assert repo.pull()["stats"]["fetched"] == 1
    assert path.read_bytes() == content


def test_a_mirror_over_ssh_has_whole_files_alone(ssh, tmp_path, monkeypatch, capsys):
    from sshfs import SSHFileSystem  # with dvc_ssh, which a machine may lack

    put, targets = SSHFileSystem._put_file, set()

    async def noted(self, source, target, **options):
        targets.add(Path(target).name)
        return await put(self, source, target, **options)

    monkeypatch.setattr(SSHFileSystem, "_put_file", noted)
    log = tmp_path / "artifacts/train/log.jsonl"
    log.parent.mkdir(parents=True)
    place = ssh.url.replace("ssh://", f"ssh://{getpass.getuser()}@")
    mirror = Mirror(f"{place}/runs", "runtime.mirror")
    mirror.follow(tmp_path, "artifacts/**/*")
    for text in ("step 1\n", "step 1\nstep 2\n"):
        log.write_text(text)
        mirror.copy()
        assert capsys.readouterr().err == ""
        found = [path for path in ssh.folder.rglob("*") if path.is_file()]
        assert found == [ssh.folder / "runs/artifacts/train/log.jsonl"]  # and no part of one
        assert found[0].read_text() == text
    assert targets == {"log.jsonl.part"}


def test_a_run_is_watched_over_ssh(ssh, tmp_path, monkeypatch, capfd):
    project, tools = tmp_path / "a run's folder", tmp_path / "tools"
    (project / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", project)
    command = project / ".venv/bin/paramgolf"
    program = f"PYTHONPATH={ROOT} exec {sys.executable} -m paramgolf.cli"
    command.write_text(f'#!/bin/sh\n{program} "$@"\n')
    tools.mkdir()
    client = tools / "ssh"  # with the key of the test, which ssh does not look for in $HOME
    unknown = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    program = f"exec {shutil.which('ssh')} -i {ssh.secrets['keyfile']} {unknown}"
    client.write_text(f'#!/bin/sh\n{program} "$@"\n')
    for tool in (command, client):
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    address = ssh.url.removesuffix(str(ssh.folder)).replace("//", f"//{getpass.getuser()}@")
    with pytest.raises(SystemExit) as caught:
        main(["watch", "--once", "--host", address, "--folder", str(project)])
    assert caught.value.code == 0
    assert "none under way" in capfd.readouterr().out
