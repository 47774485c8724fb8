"""The command `paramgolf` (also `python -m paramgolf.cli`): finds a command's module and runs it.

Only that command's module is imported, and none of them imports torch before it must: every stage
begins with `paramgolf check`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from paramgolf.program import exit_on_fault, start_program

COMMANDS = {
    "use": "write a recipe to params.yaml",
    "check": "check every parameter of params.yaml",
    "recipes": "list the recipes",
    "estimate": "what a recipe will cost, before any GPU is used",
    "rehearse": "every stage at full shape on few tokens, before a run is paid",
    "profile": "where the time of a training step goes, on this GPU",
    "watch": "what the run under way does, and what is left of its budgets",
    "doctor": "what this machine can run, and what to mend",
    "lab": "train variants side by side, and say what helps",
    "compare": "whether a difference between experiments is real",
    "report": "one page of several runs side by side",
    "audit-score": "judge another script's scoring function by the rules",
    "submit": "make the folder of a submission",
    "completion": "print the completion script of a shell",
}
EPILOG = "`paramgolf COMMAND --help` shows an example. The pipeline itself is run with `dvc repro`."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 a check failed, 2 bad input."""
    start_program()
    words = list(sys.argv[1:] if arguments is None else arguments)
    with exit_on_fault():
        options = build_parser(words[:1]).parse_args(words)
        raise SystemExit(options.run(options))


def build_parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; only the commands in `wanted` get their own options."""
    parser = argparse.ArgumentParser(
        prog="paramgolf", description="Parameter golf as a staged pipeline.", epilog=EPILOG
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        command = commands.add_parser(
            name, help=line, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in wanted:
            module = importlib.import_module(f"paramgolf.commands.{name.replace('-', '_')}")
            command.description, command.epilog = module.__doc__, module.EXAMPLE
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    main()
