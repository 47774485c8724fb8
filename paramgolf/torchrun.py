"""torchrun as stages start it: `python -m paramgolf.torchrun OPTIONS SCRIPT`.

PyTorch's own ends in a traceback and a table where a process fails, or on Ctrl-C. The processes
have said what there is to say.
"""

from __future__ import annotations

import logging

from paramgolf.program import exit_on_fault, start_program

SIGNALLED = 128  # and the signal's number is what a shell reports of a program that it ended


def main() -> None:
    """Run torchrun; exit with the code of the process that failed first."""
    # here, for what is set when the program starts
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable()
    try:
        torchrun()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else SIGNALLED - code) from None
    except SignalException as error:
        raise SystemExit(SIGNALLED + error.sigval) from None


if __name__ == "__main__":
    start_program()
    with exit_on_fault():
        main()
