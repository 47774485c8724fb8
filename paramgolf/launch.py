"""The processes of a group: started, watched and ended together by one that need not load torch.

They find each other through a file, so there is no port that another program could take meanwhile.
Several hosts need torchrun instead (docs/cluster.md), and train_gpt.py uses it, whose bytes count.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from paramgolf.clock import pass_on_start_time
from paramgolf.errors import ParamGolfError
from paramgolf.process import GROUP_VARIABLE, SIGNALLED, is_rank

FAULT = "fault"  # the file of a group's folder for what the user is to be told
POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0  # to end, once asked to

Process = subprocess.Popen[bytes]


def launch(count: int) -> None:
    """Start this program `count` times, as processes of one group, and exit as they do.

    With one process, and in a process of a group, this returns at once and the program goes on. The
    others are ended as soon as one fails or this process is to end. A ParamGolfError of theirs is
    raised here, once for all; otherwise the exit code is that of the one that failed first.
    """
    if count == 1 or is_rank():
        return
    pass_on_start_time()
    signal.signal(signal.SIGTERM, _exit_by_signal)
    with tempfile.TemporaryDirectory(prefix="paramgolf-") as folder:
        shared = {"OMP_NUM_THREADS": "1", **os.environ}
        shared |= {GROUP_VARIABLE: folder, "WORLD_SIZE": str(count)}
        ranks: list[Process] = []
        try:
            for rank in range(count):
                ranks.append(_start(shared, str(rank)))
            code = _watch(ranks, Path(folder, FAULT))
        finally:
            end_groups(ranks, GRACE_SECONDS)
    raise SystemExit(code)


def end_groups(leaders: Sequence[Process], grace_seconds: float) -> None:
    """Ask processes to end, and kill those that do not in time; each must lead a group of its own.

    One that is killed has its group killed with it. All have ended when this returns.
    """
    for leader in leaders:
        leader.terminate()
    last = time.monotonic() + grace_seconds
    for leader in leaders:
        try:
            leader.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # another thread saw its end since
                os.killpg(leader.pid, signal.SIGKILL)
            leader.wait()


def tell_launcher(error: ParamGolfError) -> None:
    """Leave an error to the launcher, which tells it once for all, and wait to be ended.

    It returns where this process was not started by `launch`, and where the error cannot be left.
    """
    if GROUP_VARIABLE in os.environ:
        path = Path(os.environ[GROUP_VARIABLE], str(os.getpid()))
        with contextlib.suppress(OSError):
            path.write_text(str(error))
            path.replace(path.with_name(FAULT))
            signal.pause()


def _exit_by_signal(number: int, _: FrameType | None) -> None:
    raise SystemExit(SIGNALLED + number)


def _start(environment: dict[str, str], rank: str) -> Process:
    """Start one as this one was started, its words and Python's options included."""
    return subprocess.Popen(
        [sys.executable, "-u", *sys.orig_argv[1:]],
        env={**environment, "RANK": rank, "LOCAL_RANK": rank},
        start_new_session=True,  # Ctrl-C is meant for the launcher
    )


def _watch(ranks: Sequence[Process], fault: Path) -> int:
    """Wait until all have ended or one has failed; return the exit code."""
    failed: list[int] = []
    codes: list[int | None] = [None]
    while None in codes and not failed:
        time.sleep(POLL_SECONDS)
        if fault.exists():
            raise ParamGolfError(fault.read_text())
        codes = [rank.poll() for rank in ranks]
        failed = [code for code in codes if code]
    code = min(failed, default=0)  # others may have failed for want of one that a signal ended
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(f"paramgolf: process {codes.index(code)} was ended by {name}", file=sys.stderr)
    return SIGNALLED - code
