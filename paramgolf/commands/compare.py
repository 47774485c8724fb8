"""Compare experiments: seeds grouped, means, deviations, Welch's test, both rules of the contest.

EXP is the name of an experiment (with * several), a commit, branch or tag, or `workspace`; without
any, the experiments that began from the current commit, and the workspace. Runs that differ by
train.seed alone are one group. Each group is held against a published record of
recipes/records.yaml, or against the group of an experiment; without --against, the first group.
--paired takes differences of equal seeds: runs of one machine, one after the other or side by side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLE = """example:
  paramgolf compare
  paramgolf compare 'wide-*' --against base-1
  paramgolf compare main workspace --against pr1855 --markdown
  paramgolf compare --against pr1493 --score eval_sliding.val_bpb --picture compare.png"""
SCORES = (
    *("eval_ttt.val_bpb", "eval_ttt.val_bpb_plain"),
    *("eval_sliding.val_bpb", "eval_sliding.val_bpb_plain", "train.val_bpb"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("experiments", metavar="EXP", nargs="*", help="experiments or commits")
    parser.add_argument("--against", metavar="REFERENCE", help="a record (pr1855) or an experiment")
    default = f"one of {', '.join(SCORES)}; default: what the record submitted, else {SCORES[0]}"
    parser.add_argument("--score", choices=SCORES, metavar="METRIC", help=default)
    parser.add_argument("--all", action="store_true", help="with experiments of other commits")
    paired = "pair runs of equal seeds; say what so many can tell apart"
    parser.add_argument("--paired", action="store_true", help=paired)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="write a PNG of all runs")


def run(options: argparse.Namespace) -> int:
    """Print the comparison."""
    from paramgolf.experiments.compare import compare  # imports scipy
    from paramgolf.experiments.show import markdown, notes, print_tables, tables

    result = compare(
        options.experiments,
        against=options.against,
        score=options.score,
        everywhere=options.all,
        by_seed=options.paired,
        root=Path(),
    )
    if options.json:
        print(json.dumps(result, indent=1, sort_keys=True))
    elif options.markdown:
        print(markdown(result), end="")
    else:
        print_tables(tables(result), notes(result))
    if options.picture:
        from paramgolf.files import write_bytes
        from paramgolf.report.pictures import compared  # imports matplotlib

        write_bytes(options.picture, compared(result).png())
    return 0
