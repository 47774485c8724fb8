"""A program of the project, from its start to its end: a stage, or the command `paramgolf`.

However it ends, that is told by one line or one message, and by the exit code: 0 done, 1 a check
failed, 2 the user or the machine is at fault, 130 interrupted, 141 nobody reads its output any
more. A traceback is left for mistakes of our own. train_gpt.py does with less of this.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib.util
import io
import os
import re
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from paramgolf.errors import ParamGolfError, exit_on_error
from paramgolf.launch import tell_launcher
from paramgolf.process import start_process

INTERRUPTED, CLOSED_PIPE = 130, 141  # what a shell reports of SIGINT and SIGPIPE
BYTECODE = Path(__file__).parents[1] / ".cache/bytecode"
FREE_MEMORY = "end other programs, or take smaller batches; then give the same command again"
FREE_SPACE = "free space on that disk, then give the same command again"
RIGHTS = "take another folder, or mend the rights of this one (`ls -ld`, `df`)"
ADVICE = {
    errno.ENOMEM: FREE_MEMORY,
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "raise the limit of a file's size: `ulimit -f unlimited`",
    errno.EMFILE: "raise the limit of open files: `ulimit -n 4096`",
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.EROFS: RIGHTS,
    errno.EIO: "the disk or its network fails: see the system's log (`dmesg`)",
}
# how libraries tell it that raise what is no MemoryError, of what no machine could hold too
OUT_OF_MEMORY = re.compile(
    "out of memory|allocate memory|bad_alloc|failed to map|start new thread"
    "|array is too big|Maximum allowed (size|dimension) exceeded|size calculation overflowed"
)


def start_program() -> None:
    """Prepare the process, before any other module is imported (see `start_process`).

    Whatever is printed can be encoded. Ctrl-C and what the machine refuses are told without a
    traceback from here on, while modules are imported too. Garbage is not looked for until the
    imports are done, nor at the end: to look through torch's objects takes a second of each stage.
    """
    open_streams()
    start_process()
    keep_bytecode()
    gc.disable()
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, signal.SIG_IGN if _is_worker() else _end_at_once)
    sys.excepthook = _end_on_fault


def start_stage() -> None:
    """Prepare the process of a stage; words behind its script, which nothing reads, are refused."""
    start_program()
    if words := sys.argv[1:]:
        fix = "its parameters stand in params.yaml: `paramgolf use RECIPE section.key=value`"
        raise ParamGolfError("a stage takes no arguments", found=" ".join(words), fix=fix)


def open_streams() -> None:
    """Open what was closed of stdin, stdout and stderr on nothing, as in `... >&-`.

    Python has no stream there to print to; and the next file that is opened, weights perhaps, would
    get its number, and with it what programs that are started print.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def keep_bytecode() -> None:
    """Keep what Python compiles modules to in `BYTECODE`, where the machine keeps none of torch's.

    Images of containers often hold a torch without bytecode, and let nobody write it beside: then
    every start compiles torch anew, some 8 s, and so do the processes of PyTorch's compiler.
    """
    spec = importlib.util.find_spec("torch")
    if sys.pycache_prefix is not None or spec is None or spec.cached is None:
        return
    package = Path(spec.cached).parents[1]
    if Path(spec.cached).exists() or (os.access(package, os.W_OK) and not sys.dont_write_bytecode):
        return
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(BYTECODE)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(BYTECODE)


def _is_worker() -> bool:
    """Tell whether this is a worker of a stage, which runs its script too: the stage ends it."""
    loaded = sys.modules.get("multiprocessing.process")
    return loaded is not None and loaded.parent_process() is not None


def _end_at_once(*_: Any) -> None:
    """End while modules are imported: an exception could get lost in one that is written in C."""
    with contextlib.suppress(OSError):
        os.write(2, b"paramgolf: interrupted\n")
    os._exit(INTERRUPTED)


def _end_on_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Stand in for sys.excepthook: tell of an error that no block has caught."""
    try:
        with exit_on_fault():
            raise error
    except SystemExit:
        raise
    except BaseException:
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def exit_on_fault() -> Iterator[None]:
    """Turn a fault of the user or the machine, or Ctrl-C, into one message and an exit code.

    The block is the program: the process ends after it.
    """
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not gc.isenabled():
        gc.freeze()  # what was imported stays
        gc.enable()
    try:
        with exit_on_error(), _told_once(), _machine_explained():
            yield
    except BrokenPipeError:
        raise SystemExit(CLOSED_PIPE) from None


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Let the launcher tell what is wrong where this is one of its processes."""
    try:
        yield
    except ParamGolfError as error:
        tell_launcher(error)
        raise


@contextlib.contextmanager
def _machine_explained() -> Iterator[None]:
    """Raise a ParamGolfError for what the machine refuses; let a closed pipe be told apart."""
    try:
        try:
            yield
        finally:
            _flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise
        if (fault := machine_fault(error)) is None:
            raise
        raise fault from None


def _flush() -> None:
    """Write what was printed; where that fails, drop it, or Python tries again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _nobody_reads() -> bool:
    """Tell whether stdout or stderr is a pipe whose reader is gone, as in `... | head`."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def machine_fault(error: BaseException) -> ParamGolfError | None:
    """Return what to tell of an error by which the machine refuses memory, disk or a file.

    None for any other error. Libraries in C++ wrap what Python raised, or have but a text for it.
    """
    written = getattr(error, "__notes__", [])  # by atomic_open
    cause: BaseException | None = error
    while cause is not None:
        if (refusal := _refusal(cause)) is not None:
            paths = [*_named(cause, written), *written]
            where = f"{', '.join(paths)} ({_place(error)})" if paths else _place(error)
            return ParamGolfError(refusal.what, where=where, found=refusal.found, fix=refusal.fix)
        if not isinstance(cause, (RuntimeError, ImportError)):
            return None  # what else was raised because of another error is a mistake of our own
        cause = cause.__cause__ or cause.__context__
    return None


class _Refusal(NamedTuple):
    """What was refused, the words of the library for it, and what to do."""

    what: str
    found: str | None
    fix: str | None


def _refusal(error: BaseException) -> _Refusal | None:
    """Return what an error tells of, by itself; None if that is nothing of the machine's."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
        owner = "the GPU's memory" if "CUDA" in text else "memory"
        return _Refusal(f"{owner} ran out", text or None, ADVICE[errno.ENOMEM])
    if isinstance(error, OSError):
        fix = ADVICE.get(error.errno or 0)
        if error.strerror is None:
            return _Refusal("the system refused something", text, fix)
        return _Refusal(error.strerror, None, fix)
    for number, fix in ADVICE.items():
        if os.strerror(number) in text:
            return _Refusal(os.strerror(number), text, fix)
    return None


def _named(error: BaseException, written: Sequence[str]) -> list[str]:
    """Return the files that an error names, without the temporary ones of files to be written."""
    names = [str(getattr(error, key, None) or "") for key in ("filename", "filename2")]
    beginnings = tuple(f".{Path(path).name}." for path in written)
    return [n for n in names if n and n not in written and not Path(n).name.startswith(beginnings)]


def _place(error: BaseException) -> str:
    """Return the innermost line of the project that an error passed through."""
    place, step = "at the start", error.__traceback__
    while step is not None:
        module = step.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == "paramgolf" and module != __name__:
            place = f"{module}, line {step.tb_lineno}"
        step = step.tb_next
    return place
