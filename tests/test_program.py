"""A program ends with one message, by its exit code, whatever the machine refuses it."""

from __future__ import annotations

import gc
import io
import os
import py_compile
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from paramgolf.checkpoint import Checkpoint
from paramgolf.cli import COMMANDS, main
from paramgolf.files import write_bytes
from paramgolf.program import exit_on_fault, machine_fault, start_program

ROOT = Path(__file__).parents[1]
PETABYTE = 1 << 50


def ended(program: Callable[[], object]) -> int:
    """Run a program's block and return its exit code."""
    try:
        with exit_on_fault():
            program()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(autouse=True)
def own_hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what start_program sets."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
    gc.enable()


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file grow beyond 1,000 bytes, not even one that pytest's report goes to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_to_a_full_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("program", "message", "advice"),
    [
        (write_to_a_full_disk, "No space left on device", "free space"),
        (lambda: np.empty(PETABYTE), "memory ran out", "smaller batches"),
        (lambda: torch.empty(PETABYTE), "memory ran out", "smaller batches"),
        (lambda: bytearray(PETABYTE), "memory ran out", "smaller batches"),
        (lambda: np.empty(2**62), "memory ran out", "smaller batches"),
        (lambda: np.pad(np.zeros(1), (0, 2**62)), "memory ran out", "smaller batches"),
        (lambda: torch.empty(2**62), "memory ran out", "smaller batches"),
        (lambda: Path("/proc/1/none").write_text("x"), "No such file", "/proc/1/none"),
        (lambda: Path("/dev/null/a").read_text(), "Not a directory", "/dev/null/a"),
        (lambda: write_bytes("/dev/null/a", b""), "File exists", "/dev/null"),
        (lambda: write_bytes("/dev", b""), "Is a directory", "/dev"),
    ],
)
def test_what_the_machine_refuses_is_told_with_its_place(program, message, advice, capsys):
    assert ended(program) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"paramgolf: {message}")
    assert advice in error


@pytest.mark.gpu
def test_a_gpu_whose_memory_runs_out_is_told(capsys):
    assert ended(lambda: torch.empty(PETABYTE, device="cuda")) == 2
    assert capsys.readouterr().err.startswith("paramgolf: the GPU's memory ran out")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "the GPU's memory ran out"),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "the GPU's memory ran out"),
        (RuntimeError("std::bad_alloc"), "memory ran out"),
        (RuntimeError("can't start new thread"), "memory ran out"),
        (ImportError("libx.so: failed to map segment from shared object"), "memory ran out"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left"),
    ],
)
def test_libraries_that_have_only_words_for_it_are_understood(error, message):
    assert str(machine_fault(error)).startswith(message)


def test_a_checkpoint_that_finds_no_room_is_told_and_the_one_before_stays(
    tmp_path, monkeypatch, capsys
):
    """torch.save wraps what Python's file raised in an error of its own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    checkpoint = Checkpoint("train", "key")
    write_bytes(checkpoint.path, b"as it was")
    with small_files():
        assert ended(lambda: checkpoint.save({"weights": torch.zeros(10_000)})) == 2
    error = capsys.readouterr().err
    assert error.startswith("paramgolf: File too large")
    assert str(checkpoint.path) in error
    assert [path.read_bytes() for path in checkpoint.folder.iterdir()] == [b"as it was"]


def fails_while_it_handles_another() -> None:
    try:
        write_to_a_full_disk()
    except OSError:
        raise KeyError("a mistake of ours") from None


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (lambda: {}["key"], KeyError),
        (fails_while_it_handles_another, KeyError),
        (lambda: torch.zeros(2) @ torch.zeros(3), RuntimeError),
    ],
)
def test_a_mistake_of_ours_keeps_its_traceback(program, kind):
    with pytest.raises(kind), exit_on_fault():
        program()


# whole processes

START = "from paramgolf.program import exit_on_fault, start_program; start_program()\n"
SLOW_MODULE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except BaseException:  # as a module in C may do, which reports a failed import its own way
    raise ImportError("lost") from None
"""


def run(script: str, **options) -> subprocess.CompletedProcess:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = pipes | {"cwd": ROOT, "timeout": 120} | options
    return subprocess.run([sys.executable, "-c", START + script], text=True, **options)


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_MODULE)
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import slow")
    assert (done.returncode, done.stderr) == (130, "paramgolf: interrupted\n")


def test_a_signal_that_the_user_ignores_stays_ignored():
    """As under nohup, or in the background of a script."""
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", f"{ignored}{START}{kill}"], cwd=ROOT)
    assert done.returncode == 0


def test_memory_that_runs_out_while_modules_are_imported_is_one_message():
    done = run("raise ImportError('libtorch.so: failed to map segment from shared object')")
    assert done.returncode == 2
    assert done.stderr.startswith("paramgolf: memory ran out\n")


def test_a_mistake_while_modules_are_imported_is_a_traceback():
    done = run("import paramgolf.no_such_module")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stage_whose_output_nobody_reads_ends_without_a_word(stream):
    reader, writer = os.pipe()
    os.close(reader)
    say = f"import sys\nwith exit_on_fault():\n    print('x' * 10**5, file=sys.{stream})"
    done = run(say, **{stream: writer})
    os.close(writer)
    assert done.returncode == 141
    assert {done.stdout, done.stderr} <= {None, ""}


UNREAD = ["check --help", "compare workspace", "doctor", "estimate sample --json", "recipes"]


@pytest.mark.parametrize("command", [*UNREAD, "watch --once"])
def test_a_command_whose_output_nobody_reads_ends_without_a_word(command):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(f"from paramgolf.cli import main\nmain({command.split()!r})", stdout=writer)
    os.close(writer)
    code = 0 if "--help" in command else 141  # argparse sees to its own end
    assert (done.returncode, done.stderr) == (code, "")


def test_output_to_a_full_disk_is_one_message():
    with open("/dev/full", "w") as full:
        done = run("with exit_on_fault():\n    print('x')", stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("paramgolf: No space left on device\n")
    assert done.stderr.count("\n") == 3  # Python says nothing of its own at the end


IN_ASCII = [
    *(f"{name} --help" for name in COMMANDS),
    *("recipes", "recipes --differences", "check", "completion bash"),
]


@pytest.mark.parametrize("command", IN_ASCII)
def test_a_command_prints_where_only_ascii_can_be_printed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", printed)
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 0
    assert printed.buffer.getvalue() or command == "check"


def test_garbage_is_looked_for_when_the_imports_are_done():
    start_program()
    assert not gc.isenabled()
    with exit_on_fault():
        assert gc.isenabled()


@pytest.mark.parametrize(
    ("setting", "has_bytecode", "kept"),
    [("1", False, True), ("1", True, False), ("", False, False)],
    ids=["none is kept", "torch has its own", "it is kept beside torch"],
)
def test_bytecode_is_kept_where_the_machine_keeps_none(tmp_path, setting, has_bytecode, kept):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    if has_bytecode:
        py_compile.compile(str(tmp_path / "torch/__init__.py"))
    folder = tmp_path / "kept"
    script = f"""
import os, pathlib
from paramgolf import program
program.BYTECODE = pathlib.Path({str(folder)!r})
program.start_program()
import torch
print(os.environ.get("PYTHONPYCACHEPREFIX"), bool(os.environ.get("PYTHONDONTWRITEBYTECODE")))
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": setting}
    command = [sys.executable, "-c", script]
    said = subprocess.check_output(command, env=environment, text=True).split()
    assert said == ([str(folder), "False"] if kept else ["None", str(bool(setting))])
    assert any(path.parent.name == "torch" for path in folder.rglob("*.pyc")) == kept


def test_what_ascii_has_not_is_written_out(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    start_program()
    print("0.1 ± 0.2")
    printed.flush()
    assert printed.buffer.getvalue() == b"0.1 \\xb1 0.2\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_streams_that_are_closed_lead_nowhere(closed, tmp_path):
    """Not into the next file that is opened, nor to a traceback."""
    script = f"""
import os, subprocess, sys
from paramgolf.program import exit_on_fault, start_program
start_program()
with exit_on_fault(), open({str(tmp_path / "file")!r}, "w") as file:
    assert file.fileno() > 2
    print("said")
    print("said", file=sys.stderr, flush=True)
    subprocess.run(["sh", "-c", "echo said; echo said >&2"], check=True)
    file.write("kept")
"""
    shell = " ".join(f"{number}>&-" for number in closed)
    command = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "kept"
    assert done.stdout == ("" if 1 in closed else "said\nsaid\n")
    assert done.stderr == ("" if 2 in closed else "said\nsaid\n")
