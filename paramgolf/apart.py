"""Work that a process of its own does for this one, which so goes on meanwhile on another core."""

from __future__ import annotations

import signal
import subprocess
import sys

from paramgolf.process import end_with_parent


def run_apart(module: str, *words: str, data: bytes) -> bytes | None:
    """Return what a module, run as a program with these words, makes of `data`.

    None if it failed: then the caller does the work itself. It may have the memory for which the
    process was killed; any other fault shows again.
    """
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE)
    return None if done.returncode else done.stdout


def serve_parent() -> None:
    """Make this such a process: it ends with its parent, and says nothing then.

    Ctrl-C is the parent's affair.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # where nobody reads the result any more
