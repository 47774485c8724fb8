"""Recipes run whole, and what each technique does, on one text and at equal tokens.

    python benchmarks/recipes.py --recipes pr1493 pr1855 --set data.source=files ...
    python benchmarks/recipes.py --techniques --seconds 540 --jobs 3 --set data.source=files ...

Recipes run every stage with their schedules cut to `--tokens`; techniques are changes of one common
recipe (benchmarks/techniques.py). Every run is added to benchmarks/results/recipes.json as it ends,
so that calls add up: a recipe's figures replace its older ones, a technique that was run with the
same settings is not run again. Tokens and compiled kernels stay in .cache/benchmarks.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

import techniques
from projects import WORK, Failed, Project, assignments, cut
from recipe_results import FIGURES, PATH, Results

from paramgolf.model.config import ModelConfig
from paramgolf.params import parse

STAGES = ("train", "calibrate", "quantize", "package", "eval_sliding", "eval_ttt")
# figure, and the stage's metric that it is
METRICS = {
    "parameters": ("train", "parameters"),
    "tokens": ("train", "tokens"),
    "tokens_per_second": ("train", "tokens_per_second"),
    "startup_seconds": ("train", "startup_seconds"),
    "peak_memory_bytes": ("train", "peak_memory_bytes"),
    "val_bpb": ("train", "val_bpb"),
    "val_bpb_packed": ("eval_sliding", "val_bpb_plain"),
    "val_bpb_sliding": ("eval_sliding", "val_bpb"),
    "val_bpb_adapted": ("eval_ttt", "val_bpb"),
    "bytes_total": ("package", "bytes_total"),
    "headroom_bytes": ("package", "headroom_bytes"),
}


def run_recipe(recipe: str, options: argparse.Namespace) -> dict[str, float]:
    """Run a recipe's stages in a folder of its own and return the figures."""
    content = cut(recipe, assignments(options.set), options.tokens, options.batch_tokens)
    skipped = set(options.skip)
    if options.plain:
        content["eval_sliding"]["stride"] = content["eval_sliding"]["window"]
        skipped.add("eval_ttt")
    if content["eval_ttt"]["mode"] == "none":
        skipped.add("eval_ttt")
    project = Project(WORK / "recipes" / recipe, content)
    project.take_tokens()
    project.run(*(stage for stage in STAGES if stage not in skipped))
    metrics = {stage: project.metrics(stage) or {} for stage in STAGES}
    found = {name: metrics[stage].get(key) for name, (stage, key) in METRICS.items()}
    if options.plain:
        found["val_bpb_sliding"] = None
    found |= of_steps(project.steps(), parse(ModelConfig, content["model"], "model"))
    return {name: found[name] for name in FIGURES if found.get(name) is not None}


def of_steps(steps: list[dict[str, Any]], model: ModelConfig) -> dict[str, float | None]:
    """Return the first loss, and the median milliseconds of a step in the first and last order."""
    milliseconds: list[list[float]] = [[] for _ in model.orders]
    for before, step in itertools.pairwise(steps):
        phase = model.phase_at((step["step"] - 1) / len(steps), step["step"] - 1)
        milliseconds[phase].append(1000 * (step["seconds"] - before["seconds"]))
    first, last = milliseconds[0], milliseconds[-1]
    return {
        "first_loss": steps[0]["loss"],
        "step_ms_before": statistics.median(first) if first else None,
        "step_ms_after": statistics.median(last) if last and len(model.orders) > 1 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipes", nargs="+", metavar="NAME", help="recipes to run whole")
    what.add_argument("--techniques", action="store_true", help="run the table of techniques")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--tokens", type=int, help="of training; default: 60 M, techniques 20 M")
    parser.add_argument("--batch-tokens", type=int, help="a step; default: 98,304, techniques half")
    parser.add_argument("--results", type=Path, default=PATH, help="file of JSON to add to")
    recipes = parser.add_argument_group("recipes")
    recipes.add_argument("--skip", nargs="*", default=[], choices=STAGES)
    recipes.add_argument("--plain", action="store_true", help="no overlap, no adaptation")
    others = parser.add_argument_group("techniques")
    others.add_argument("--only", nargs="+", default=[], metavar="NAME", help="and the common one")
    others.add_argument("--common", default="h100x1", help="recipe that they change")
    others.add_argument("--seeds", type=int, nargs="+", default=[1337, 42, 2025])
    others.add_argument(
        "--close", type=float, default=0.003, help="difference below which all seeds are run"
    )
    others.add_argument("--seconds", type=float, default=1e9, help="after which no run is begun")
    others.add_argument("--jobs", type=int, default=1, help="runs at a time on one GPU")
    options = parser.parse_args()
    options.tokens = options.tokens or (20_000_000 if options.techniques else 60_000_000)
    options.batch_tokens = options.batch_tokens or (49_152 if options.techniques else 98_304)
    results = Results(options.results)
    if options.techniques:
        techniques.run_all(options, results)
        return
    failed = False
    for recipe in options.recipes:
        try:
            figures = run_recipe(recipe, options)
        except Failed as error:
            print(f"{recipe}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        arguments = [f"--recipes {recipe}", f"--tokens {options.tokens}"]
        arguments += [f"--batch-tokens {options.batch_tokens}", *["--plain"] * options.plain]
        arguments += [f"--set {' '.join(options.set)}"] * bool(options.set)
        command = " ".join(["python", "benchmarks/recipes.py", *arguments])
        results.add_recipe(recipe, figures, command)
        print(recipe, figures, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
