"""Runs stages in one process, and in forks of it under limits, so that torch is loaded once.

`stage_driver.py LINKED LIMITED < CASES`: first every stage in the project LINKED, then a fork in
the project LIMITED for each case of a JSON list, {"stage": name, "refuse": kind of REFUSALS}.
The last line that it prints is a JSON list of [exit code, what was printed], one of each case.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

import yaml


def limit(kind: int, value: int) -> None:
    """Lower a limit of this process for good."""
    resource.setrlimit(kind, (value, value))


def next_descriptor() -> int:
    """Return the number of the file that would be opened next."""
    os.close(number := os.open(os.devnull, os.O_RDONLY))
    return number


def forget_privilege() -> None:
    """Let the rights of files hold for root too: drop the capability CAP_DAC_OVERRIDE."""
    libc, dac_override = ctypes.CDLL(None), 1
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, of capabilities 0-31, 32-63
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << dac_override)
    assert libc.capset(header, sets) == 0


REFUSALS = {
    "nothing": lambda: None,
    "size": lambda: limit(resource.RLIMIT_FSIZE, 0),
    "files": lambda: limit(resource.RLIMIT_NOFILE, next_descriptor()),
    "rights": forget_privilege,
}


def run(stage: str, refuse: str = "nothing") -> int:
    """Run a stage as `python stages/STAGE.py` would; return its exit code."""
    sys.argv = [f"stages/{stage}.py"]
    code = compile(Path(sys.argv[0]).read_text(), sys.argv[0], "exec")
    try:
        try:
            REFUSALS[refuse]()
            exec(code, {"__name__": "__main__"})
        except Exception:
            sys.excepthook(*sys.exc_info())
            return 1
    except SystemExit as end:  # the hook's, too
        return int(end.code or 0)
    return 0


def run_refused(stage: str, refuse: str) -> tuple[int, str]:
    """Run a stage in a fork that is refused something; return its exit code and what it printed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(writer, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os._exit(run(stage, refuse))
    os.close(writer)
    with open(reader) as output:
        printed = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


def main(linked: str, limited: str) -> None:
    os.chdir(linked)
    stages = [*yaml.safe_load(Path("dvc.yaml").read_text())["stages"]]
    failed = [stage for stage in stages if run(stage)]
    assert not failed, failed
    os.chdir(limited)
    print(json.dumps([run_refused(**case) for case in json.load(sys.stdin)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
