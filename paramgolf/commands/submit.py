"""Make the folder of a submission, if every seed keeps the rules and the folder scores as recorded.

EXP is the name of an experiment (with * several), a commit, branch or tag, or `workspace`; without
any, the workspace. They are the seeds of one system; model.bin is that of the first. The folder has
README.md, submission.json, train_gpt.py, model.bin, params.yaml, requirements.txt and one training
log a seed. train_gpt.py is run inside it before it is called done. What is missing is listed.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from paramgolf.errors import ParamGolfError
from paramgolf.recipes import read_records, unknown_record
from paramgolf.shell import output_of
from paramgolf.submission.about import NON_RECORD, RECORD, TRACKS, About

EXAMPLE = """example:
  paramgolf submit 'wide-*' --name "Wide MLP" --blurb "A wider MLP" --github-id me
  paramgolf submit --track non_record_16mb --name Sample --blurb "Of the sample" --github-id me
  paramgolf submit a-1 a-2 a-3 --against pr1855 --credit "QK gain=#1493" --name A ..."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("experiments", metavar="EXP", nargs="*", help="experiments or commits")
    parser.add_argument("--name", default="", help="the submission's title; needed")
    parser.add_argument("--blurb", default="", help="what it does, in a sentence or two; needed")
    parser.add_argument("--author", help="default: Git's user.name")
    parser.add_argument(
        "--github-id", metavar="ID", default="", help="the account that hands it in; needed"
    )
    track = f"default: %(default)s, a record; {NON_RECORD}: any machine, time, number of seeds"
    parser.add_argument("--track", choices=TRACKS, default=RECORD, help=track)
    credit = "whose work a technique is; may be given several times"
    parser.add_argument("--credit", metavar="WHAT=WHOSE", action="append", default=[], help=credit)
    parser.add_argument("--against", metavar="RECORD", help="compare with a record, such as pr1855")
    out = "default: submissions/track_TRACK/DATE_NAME"
    parser.add_argument("--out", metavar="FOLDER", type=Path, help=out)


def run(options: argparse.Namespace) -> int:
    """Make the folder and print its path."""
    about = About(
        name=options.name,
        author=options.author or (output_of(["git", "config", "user.name"]) or "").strip(),
        github_id=options.github_id,
        blurb=options.blurb,
        track=options.track,
        credits=dict(_credit(text) for text in options.credit),
    )
    records = read_records()
    if options.against is not None and options.against not in records:
        raise unknown_record(options.against, records)
    from paramgolf.submission.build import submit  # imports torch

    folder = submit(
        options.experiments,
        about,
        against=options.against,
        out=options.out,
        day=datetime.now(UTC).date(),
        root=Path(),
    )
    print(folder)
    return 0


def _credit(text: str) -> tuple[str, str]:
    what, equals, whose = text.partition("=")
    if not what or not equals or not whose:
        fix = 'write --credit "QK gain=#1493"'
        raise ParamGolfError(f"`{text}` credits nobody", fix=fix)
    return what, whose
