"""Print a script that makes a shell complete commands, options, recipes and experiments.

The script asks `paramgolf completion recipes` (experiments, records, references) for names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paramgolf.recipes import names, read_records

EXAMPLE = """example:
  paramgolf completion bash > ~/.local/share/bash-completion/completions/paramgolf
  paramgolf completion zsh > ~/.zfunc/_paramgolf      # a folder of fpath
  paramgolf completion fish > ~/.config/fish/completions/paramgolf.fish"""
SHELLS = ("bash", "zsh", "fish", "tcsh")


def _experiments() -> Iterable[str]:
    from paramgolf.experiments.read import WORKSPACE, list_experiments

    return sorted({name for _, name in list_experiments(Path())} | {WORKSPACE})


LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "recipes": names,
    "experiments": _experiments,
    "records": read_records,
    "references": lambda: [*read_records(), *_experiments()],
}
LIST_OF = {  # by metavar
    "RECIPE": "recipes",
    "EXP": "experiments",
    "RECORD": "records",
    "REFERENCE": "references",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    what = f"{', '.join(SHELLS)}: its script; {', '.join(LISTS)}: the names there are"
    parser.add_argument("what", metavar="WHAT", choices=(*SHELLS, *LISTS), help=what)


def run(options: argparse.Namespace) -> int:
    """Print the script, or the names, a line each."""
    if options.what in LISTS:
        print("\n".join(LISTS[options.what]()))
        return 0
    import shtab

    from paramgolf.cli import COMMANDS, build_parsers

    parser, commands = build_parsers(COMMANDS)
    for action in (action for command in commands.values() for action in command._actions):
        if completer := _completer(action, shtab):
            action.complete = completer  # type: ignore[attr-defined]  # where shtab looks
    print(shtab.complete(parser, options.what))
    return 0


def _completer(action: argparse.Action, shtab: Any) -> Any:
    if action.metavar in LIST_OF:
        return shtab.cmd(f"paramgolf completion {LIST_OF[str(action.metavar)]} 2>/dev/null")
    if action.type is Path:
        return shtab.DIRECTORY if action.metavar == "FOLDER" else shtab.FILE
    return None
