"""An ssh and a WebDAV server on 127.0.0.1, each with a folder to store in."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 30.0
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
USER, PASSWORD = "golfer", "a secret"


@dataclass(frozen=True)
class Remote:
    """A remote's address, what its user must add to it, and the folder on the server's side."""

    url: str
    secrets: dict[str, str]
    folder: Path


def need(*modules: str) -> None:
    """Skip the test where a package is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install -e .[remotes,dev]")


@contextlib.contextmanager
def ssh(folder: Path, port: int) -> Iterator[Remote]:
    """OpenSSH's server, for this user and a new key."""
    need("dvc_ssh")
    if SSHD is None:
        pytest.skip("needs sshd: apt-get install openssh-server")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/sshd.pid",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "Subsystem sftp internal-sftp",
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the server drops its privileges
    store = folder / "store"
    store.mkdir()
    secrets = {"user": getpass.getuser(), "keyfile": str(folder / "user")}
    with _running([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], folder, port):
        yield Remote(f"ssh://127.0.0.1:{port}{store}", secrets, store)


@contextlib.contextmanager
def webdav(folder: Path, port: int) -> Iterator[Remote]:
    """WsgiDAV on cheroot, with a password."""
    need("dvc_webdav", "wsgidav", "cheroot")
    store = folder / "store"
    (store / "cache").mkdir(parents=True)  # DVC makes folders below it, not the first one
    config = {
        "host": "127.0.0.1",
        "port": port,
        "provider_mapping": {"/": str(store)},
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False},
    }
    (folder / "wsgidav.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "wsgidav.server.server_cli", "--server", "cheroot"]
    secrets = {"user": USER, "password": PASSWORD}
    with _running([*command, "--config", str(folder / "wsgidav.json")], folder, port):
        yield Remote(f"webdav://127.0.0.1:{port}/cache", secrets, store / "cache")


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """Run a server from when it answers until the end of the block."""
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _wait_for(server, port, folder / "server.log")
            yield
        finally:
            server.terminate()
            server.wait(timeout=START_SECONDS)


def _wait_for(server: subprocess.Popen, port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"the server does not answer: {log.read_text()[-2000:]}")
