"""The command `paramgolf` (also `python -m paramgolf.cli`): finds a command's module and runs it.

Only that command's module is imported, and none of them imports torch before it must: every stage
begins with `paramgolf check`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Collection, Sequence

from paramgolf.errors import ParamGolfError
from paramgolf.program import exit_on_fault, start_program

COMMANDS = {
    "use": "write a recipe to params.yaml",
    "check": "check every parameter of params.yaml",
    "recipes": "list the recipes",
    "estimate": "what a run will cost, before any GPU is used",
    "rehearse": "try every stage at full shape on few tokens, before the run",
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
    with exit_on_fault():
        options = parse(sys.argv[1:] if arguments is None else arguments)
        raise SystemExit(options.run(options))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser, commands = build_parsers(words[:1])
    if not words:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if words[0] in commands:
        return _options(commands[words[0]], words[1:])
    if not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0], commands, n=1)
        fix = f"did you mean `paramgolf {near[0]}`?" if near else "`paramgolf --help` lists them"
        raise ParamGolfError(f"there is no command `{words[0]}`", fix=fix)
    return parser.parse_args(words)


def _options(command: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse the words of a command; argparse alone takes no changes of a recipe after an option."""
    options, left = command.parse_known_args(words)
    if "assignments" in options and all("=" in word and not word.startswith("-") for word in left):
        options.assignments = [*options.assignments, *left]
    elif left:
        command.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def build_parsers(
    wanted: Collection[str],
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and that of each command; those in `wanted` get their own options."""
    parser = argparse.ArgumentParser(
        prog="paramgolf", description="Parameter golf as a staged pipeline.", epilog=EPILOG
    )
    group = parser.add_subparsers(metavar="COMMAND", required=True)
    commands = {}
    for name, line in COMMANDS.items():
        command = commands[name] = group.add_parser(
            name, help=line, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in wanted:
            module = importlib.import_module(f"paramgolf.commands.{name.replace('-', '_')}")
            command.description, command.epilog = module.__doc__, module.EXAMPLE
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser, commands


if __name__ == "__main__":
    main()
