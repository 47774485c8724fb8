"""Write one offline page that shows several runs side by side.

Results, the parameters that differ, bits per byte from step to step, training curves in one frame,
and where the bytes went. EXP is the name of an experiment (with * several), a commit, branch or
tag, or `workspace`; without any, the experiments that began from the current commit, and the
workspace. A run may lack stages: what it has is shown. (The page of the run in the workspace alone
is artifacts/report/index.html, which `dvc repro` writes.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """example:
  paramgolf report
  paramgolf report main 'wide-*' workspace
  paramgolf report 'seed-*' --out seeds.html"""
OUTPUT = Path("artifacts/compare.html")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("experiments", metavar="EXP", nargs="*", help="experiments or commits")
    parser.add_argument("--all", action="store_true", help="with experiments of other commits")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=OUTPUT, help="the page; default: %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from paramgolf.files import write_text
    from paramgolf.report.comparison import render_comparison
    from paramgolf.report.runs import load_runs

    runs, left_out = load_runs(options.experiments, everywhere=options.all)
    write_text(options.out, render_comparison(runs, left_out))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    names = ", ".join(run.name for run in runs)
    print(f"{options.out}: {len(runs)} run{'s' if len(runs) > 1 else ''} ({names})")
    return 0
