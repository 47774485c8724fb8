"""Judge another script's scoring function by the contest's rules, from outside.

SCORER.py has three functions: load(), score(model, tokens), probabilities(model, tokens, target);
docs/audit-score.md describes them, with an example. The text is changed in places that must not
matter, and the scores are compared: C1 causal, C2 normalized, C3 scored before learned from, C4 one
pass, each target scored once, bytes counted right. Exit code 1 where a rule is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paramgolf.scoring.score_audit import AuditFinding

FEWEST_TARGETS = 2  # one is changed, and another must not move
EXAMPLE = """example:
  paramgolf audit-score my_scorer.py
  paramgolf audit-score my_scorer.py --data data/tokens --tokens 4096 --targets 16 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("script", metavar="SCORER.py", type=Path, help="the script")
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path("data/tokens"),
        help="a folder of tokens; default: %(default)s",
    )
    add("--tokens", type=int, default=2048, help="validation tokens to score; default: %(default)s")
    add("--targets", type=int, default=8, help="targets to look at; default: %(default)s")
    add(
        "--tolerance",
        type=float,
        default=1e-3,
        help="nats that a score may be off; default: %(default)s",
    )
    add("--seed", type=int, default=0, help="of what is changed; default: %(default)s")
    add("--isolated", action="store_true", help="judge, too, that documents share no context")
    add("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Print a line for each rule; code 1 where one is broken."""
    from paramgolf.data.token_set import open_tokens
    from paramgolf.errors import ParamGolfError
    from paramgolf.scoring.score_audit import AuditSettings, audit_scores, load_script
    from paramgolf.scoring.text import load_text

    within = 0 <= options.tolerance < math.inf and options.seed >= 0
    if options.targets < 1 or options.tokens < FEWEST_TARGETS or not within:
        expected = "--targets of at least 1, --tokens of at least 2, --tolerance and --seed from 0"
        raise ParamGolfError("nothing to judge by", expected=expected)
    vocab_size = open_tokens(options.data).vocab_size
    text = load_text(options.data, vocab_size, options.tokens)
    if len(text) < FEWEST_TARGETS:
        found = f"{len(text)} in {options.data}"
        raise ParamGolfError(
            "too little text to change", expected=f"{FEWEST_TARGETS} targets", found=found
        )
    script = load_script(options.script)  # last: it may read the tokens, too
    settings = AuditSettings(options.targets, options.tolerance, options.seed, options.isolated)
    findings = audit_scores(script, text, vocab_size, settings, show=not options.json)
    broken = [finding.rule for finding in findings if finding.passed is False]
    if options.json:
        content = {
            "script": str(options.script),
            "passed": not broken,
            "rules": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(content, indent=1, sort_keys=True))
    else:
        print_findings(findings)
        print(f"broken: {', '.join(broken)}" if broken else "no rule is broken")
    return 1 if broken else 0


def print_findings(findings: Iterable[AuditFinding]) -> None:
    """Print a line for each rule."""
    outcomes = {True: "pass", False: "FAIL", None: "not judged"}
    for finding in findings:
        outcome = outcomes[finding.passed]
        print(f"{finding.rule:<10}{outcome:<12}{finding.name}: {finding.reason}")
