"""`make` and the doctor's command, with an index on 127.0.0.1 that serves stand-in wheels."""

from __future__ import annotations

import functools
import http.server
import os
import platform
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pip
import pytest

from paramgolf.doctor.software import FLASH_ATTENTION, flash_attention_command

ROOT = Path(__file__).parents[1]
TAG = f"cp39-abi3-manylinux_2_17_{platform.machine()}"


def write_wheel(folder: Path, name: str, version: str, module: str, text: str) -> None:
    folder.mkdir(parents=True)
    stem = f"{name}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-{TAG}.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", text)
        facts = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: einops\n"
        wheel.writestr(f"{stem}.dist-info/METADATA", facts)
        kind = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {TAG}\n"
        wheel.writestr(f"{stem}.dist-info/WHEEL", kind)
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an index as PyTorch's: a folder per CUDA, in it one per package."""
    root = tmp_path_factory.mktemp("index")
    for cuda in ("cu126", "cu130"):
        text = f"CUDA = '{cuda}'\n"
        write_wheel(root / cuda / "torch", "torch", f"2.13.0+{cuda}", "torch", text)
        folder = root / cuda / "flash-attn-3"
        write_wheel(folder, "flash_attn_3", "3.0.0", "flash_attn_interface", text)
    write_wheel(root / "links", "flash_attn_3", "3.0.0+other", "flash_attn_interface", "CUDA = ''")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that `make` finds made; its pip is this one's, since a new one takes long."""
    folder = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    (packages / "README.txt").touch()  # pip removes a folder with the last file in it, links unseen
    script = folder / "bin/pip"
    script.write_text(f'#!/bin/sh\nexec {folder}/bin/python -m pip "$@"\n')
    script.chmod(0o755)
    return folder


def run(venv: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the environment, with a pip that knows no index but the one it is given."""
    outside = {name: os.environ[name] for name in os.environ if not name.startswith("PIP_")}
    path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**outside, "PATH": path, "PIP_CONFIG_FILE": os.devnull, **variables}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def make(venv: Path, *assignments: str) -> subprocess.CompletedProcess[str]:
    stamp = venv / ".gpu-packages"
    stamp.unlink(missing_ok=True)
    return run(venv, ["make", f"VENV={venv}", *assignments, str(stamp)], TORCH_INDEX="")


def cuda_of(venv: Path, module: str) -> str:
    found = run(venv, ["python", "-c", f"import {module}; print({module}.CUDA)"])
    return found.stdout.strip() or found.stderr


def test_make_takes_torch_and_flash_attention_from_the_cuda_folder(index, venv):
    made = make(venv, f"TORCH_INDEX={index}", "CUDA=cu126")
    assert made.returncode == 0, made.stderr
    assert cuda_of(venv, "torch") == cuda_of(venv, "flash_attn_interface") == "cu126"


def test_the_doctors_command_replaces_a_build_for_another_cuda(index, venv, monkeypatch):
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    command = flash_attention_command("13.0")
    done = run(venv, ["sh", "-c", command], TORCH_INDEX=index)
    assert done.returncode == 0, done.stderr
    assert cuda_of(venv, "flash_attn_interface") == "cu130"
    monkeypatch.setenv("TORCH_INDEX", index)
    assert flash_attention_command("13.0") == command.replace("$TORCH_INDEX", index)


def test_make_takes_flash_attention_from_the_page_that_is_named(index, venv):
    subprocess.run([venv / "bin/pip", "uninstall", "-qy", "flash_attn_3"], check=True)
    made = make(venv, f"TORCH_INDEX={index}", f"FLASH_LINKS={index}/links")
    assert made.returncode == 0, made.stderr
    assert cuda_of(venv, "flash_attn_interface") == ""


def test_make_without_the_index_stops_before_anything_is_installed(venv):
    made = make(venv)
    assert made.returncode != 0
    assert "set TORCH_INDEX" in made.stderr
    assert "docs/pod.md" in made.stderr


def test_a_folder_may_have_a_space_in_its_name(tmp_path):
    """A stand-in for Python makes an environment of further stand-ins."""
    folder, python, calls = tmp_path / "a b", tmp_path / "python", tmp_path / "calls"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    python.write_text(f"""#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
[ "$2" != venv ] || {{ mkdir -p .venv/bin && cp "$0" .venv/bin && cp "$0" .venv/bin/dvc; }}
""")
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", "repro"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert calls.read_text().splitlines()[1:] == [
        "python -m venv .venv",
        "python -m pip install --quiet --requirement requirements.lock",
        "python -m pip install --quiet --no-deps --editable .",
        "dvc repro",
    ]


def test_both_locks_and_the_doctor_name_the_same_versions():
    pinned, gpu = (
        {line for line in (ROOT / name).read_text().splitlines() if "==" in line}
        for name in ("requirements.lock", "requirements-gpu.lock")
    )
    assert gpu - pinned == {FLASH_ATTENTION}
