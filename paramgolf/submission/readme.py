"""The submission's README.md, from the same figures as submission.json."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paramgolf.experiments.show import Table, figure, markdown_table
from paramgolf.recipes import as_text
from paramgolf.submission.collect import SeedRun

SCORES = (
    *("seed", "val_bpb", "val_loss", "steps"),
    *("ms per step", "training s", "evaluation s", "bytes"),
)
CHANGES = ("parameter", "base", "here")
TEMPLATE = """\
# {name}

{blurb}

**val_bpb {score}**, {seeds}, on {hardware}; the largest artifact has {size:,} bytes.

{scores}
{comparison}
## Running it

In this folder, with Python {python}, on a folder of validation tokens as `paramgolf` writes them:

```
pip install -r requirements.txt
{command} --data TOKENS
```

This scores `model.bin`, the artifact of seed {first}. Before the folder was called done, that gave
val_bpb {checked:.8f} in it (recorded: {recorded:.8f}). `python train_gpt.py train` trains the
seed's weights anew; `dvc repro` with `params.yaml` in the project's folder makes every file.
{packages}
## Rules

{rules}

## What differs from the base recipe

{changes}
"""


def readme(
    content: Mapping[str, Any],
    runs: Sequence[SeedRun],
    *,
    words: Sequence[str],
    base: Mapping[str, Any],
    checked: float,
) -> str:
    """Return the text; `content` is submission.json's, `words` the command that gave `checked`.

    `base` holds the base recipe's parameters by dotted key.
    """
    count = len(runs)
    scores = Table("", SCORES, [*_rows(content["seed_results"])])
    changes = Table("", CHANGES, [*_changes(base, runs[0].params)], figures=False)
    return TEMPLATE.format(
        name=content["name"],
        blurb=content["blurb"],
        score=figure({"mean": content["val_bpb"], "deviation": content["val_bpb_std"]}),
        seeds="1 seed" if count == 1 else f"mean of {count} seeds",
        hardware=content["hardware"],
        size=content["artifact_bytes_max"],
        scores=markdown_table(scores),
        comparison=_comparison(content.get("comparison")),
        python=runs[0].log.environment["python"],
        command=shlex.join(["python", "train_gpt.py", *words]),
        first=runs[0].seed,
        checked=checked,
        recorded=next(iter(content["seed_results"].values()))["val_bpb"],
        packages="\n".join(_credits(content["attribution"])),
        rules="\n".join(_rules(runs)),
        changes=markdown_table(changes),
    )


def _rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for seed, result in results.items():
        scores = (f"{result[key]:.5f}" for key in ("val_bpb", "val_loss"))
        times = (f"{result[key]:.1f}" for key in ("step_avg_ms", "train_time_s", "eval_time_s"))
        yield seed, *scores, f"{result['steps']:,}", *times, f"{result['artifact_bytes']:,}"


def _comparison(comparison: Mapping[str, Any] | None) -> str:
    """Return a paragraph on the difference to a record, with both of the contest's tests."""
    if comparison is None:
        return ""
    against, verdict = comparison["against"], comparison["verdict"]
    line = f"Against {against['label']} ({against['mean']:.5f}): "
    line += f"{verdict['difference_bpb']:+.5f} bits per byte, "
    line += f"{verdict['difference_nats']:+.5f} nats per token."
    if verdict["better"]:
        line += f" One-sided Welch test: p = {verdict['better']['p']:.2g} that it is no better, "
        line += f"p = {verdict['by_margin']['p']:.2g} that it is better by less than 0.005 nats."
    return "\n".join(["", line, *(f"- {note}" for note in comparison["notes"]), ""])


def _credits(attribution: Mapping[str, str]) -> Iterator[str]:
    if attribution:
        yield "\n## Built on\n"
        yield from (f"- {what}: {source}" for what, source in attribution.items())


def _rules(runs: Sequence[SeedRun]) -> Iterator[str]:
    """Yield what the verify stage found of each rule; once, where it is the same for all seeds."""
    for i, entry in enumerate(runs[0].metrics["verify.reasons"]):
        rule = entry["rule"]
        outcomes = {
            run.seed: f"{run.metrics[f'verify.rules.{rule}']}; "
            f"{run.metrics['verify.reasons'][i]['reason']}"
            for run in runs
        }
        if len(set(outcomes.values())) == 1:
            yield f"- {rule}, {entry['name']}: {outcomes[runs[0].seed]}"
        else:
            yield f"- {rule}, {entry['name']}"
            yield from (f"  - seed {seed}: {line}" for seed, line in outcomes.items())


def _changes(base: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each parameter that makes a result and is not the base recipe's."""
    for key, value in params.items():
        if value != base.get(key) and not key.startswith("runtime."):
            yield key, as_text(base.get(key)), as_text(value)
