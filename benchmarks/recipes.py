"""Recipes run whole, on one text and at equal tokens.

    python benchmarks/recipes.py --recipes pr1493 pr1855 --set data.source=files ...
    python benchmarks/recipes.py --add one.json other.json

Recipes run every stage with their schedules cut to `--tokens`. Every run is added to
benchmarks/results/recipes.json as it ends, so that calls add up: a recipe's figures replace its
older ones. With --gpus N, runs are spread over N GPUs, and a recipe trains on one of its own. Calls
at the same time need a file each (--results), which --add brings together. Tokens and compiled
kernels stay in .cache. What a change of a recipe is worth, `paramgolf lab` finds out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
import time
from pathlib import Path

from projects import WORK, Devices, Project, assignments, cut
from recipe_results import FIGURES, PATH, Results

from paramgolf.arguments import count
from paramgolf.errors import ParamGolfError
from paramgolf.program import exit_on_fault
from paramgolf.recipes import compose

FIRST = ("train", "calibrate", "quantize")
PACKING = ("package", "packed")
EVALUATIONS = ("eval_sliding", "eval_ttt")
STAGES = (*FIRST, *PACKING, *EVALUATIONS)
# figure, and the stage's metric that it is
METRICS = {
    "parameters": ("train", "parameters"),
    "tokens": ("train", "tokens"),
    "tokens_per_second": ("train", "tokens_per_second"),
    "startup_seconds": ("train", "startup_seconds"),
    "peak_memory_bytes": ("train", "peak_memory_bytes"),
    "val_bpb": ("train", "val_bpb"),
    "val_bpb_packed": ("packed", "val_bpb"),
    "val_bpb_sliding": ("eval_sliding", "val_bpb"),
    "val_bpb_adapted": ("eval_ttt", "val_bpb"),
    "bytes_total": ("package", "bytes_total"),
    "headroom_bytes": ("package", "headroom_bytes"),
}


def run_recipe(recipe: str, options: argparse.Namespace, devices: Devices) -> dict[str, float]:
    """Run a recipe's stages in a folder of its own, one GPU at a time, and return the figures."""
    content = cut(recipe, assignments(options.set), options.tokens, options.batch_tokens)
    skipped = {*options.skip, *EVALUATIONS * options.plain}
    if content["eval_ttt"]["mode"] == "none":
        skipped.add("eval_ttt")
    with devices.take() as device:
        if time.monotonic() > options.deadline:
            raise ParamGolfError("train: not begun, out of time")
        project = Project(WORK / options.results.stem / recipe, content, device)
        project.take_tokens()
        project.run(*(stage for stage in FIRST if stage not in skipped))
    # beside the next recipe's start: compressing needs no GPU, and scoring needs it for a second
    project.run(*(stage for stage in PACKING if stage not in skipped))
    if stages := [stage for stage in EVALUATIONS if stage not in skipped]:
        with devices.take() as device:
            project.see(device)
            project.run(*stages)
    return figures_of(project)


def figures_of(project: Project) -> dict[str, float]:
    """Return the figures of a recipe's run, those of stages that were run."""
    metrics = {stage: project.metrics(stage) or {} for stage in STAGES}
    found = {name: metrics[stage].get(key) for name, (stage, key) in METRICS.items()}
    found |= project.times()
    if found["val_bpb_packed"]:
        found["lost"] = found["val_bpb_packed"] - found["val_bpb"]
    return {name: found[name] for name in FIGURES if found.get(name) is not None}


def run_recipes(options: argparse.Namespace, results: Results) -> None:
    """Run recipes in the order given, keep and print each as it ends."""
    devices = Devices(options.gpus)

    def run(recipe: str) -> bool:
        try:
            figures = run_recipe(recipe, options, devices)
        except ParamGolfError as error:
            print(f"{recipe}: {error}", file=sys.stderr, flush=True)
            return False
        results.add_recipe(recipe, figures, command_of(recipe, options))
        print(recipe, figures, flush=True)
        return True

    with concurrent.futures.ThreadPoolExecutor(2 * options.gpus) as pool:
        done = [*pool.map(run, dict.fromkeys(options.recipes))]
    if not all(done):
        sys.exit("some recipes have no figures")


def command_of(recipe: str, options: argparse.Namespace) -> str:
    """Return the command that runs one recipe alone."""
    arguments = [f"--recipes {recipe}", f"--tokens {options.tokens}"]
    arguments += [f"--batch-tokens {options.batch_tokens}", *["--plain"] * options.plain]
    arguments += [f"--skip {' '.join(options.skip)}"] * bool(options.skip)
    arguments += [f"--set {' '.join(options.set)}"] * bool(options.set)
    return " ".join(["python", "benchmarks/recipes.py", *arguments])


def main() -> None:
    options = read_options()
    results = Results(options.results)
    if options.recipes:
        for recipe in options.recipes:
            compose(recipe)  # an unknown one is refused before others run for long
        run_recipes(options, results)
    for path in options.add:
        results.add_file(path)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipes", nargs="+", metavar="NAME", help="recipes to run whole")
    what.add_argument(
        "--add", nargs="+", type=Path, default=[], metavar="FILE", help="results to take as well"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--tokens", type=count, default=60_000_000, help="of training")
    parser.add_argument("--batch-tokens", type=count, default=98_304, help="of a step")
    parser.add_argument("--results", type=Path, default=PATH, help="file of JSON to add to")
    parser.add_argument("--gpus", type=count, default=1, help="that runs are spread over")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no run is begun")
    parser.add_argument("--skip", nargs="*", default=[], choices=STAGES)
    parser.add_argument("--plain", action="store_true", help="no overlap, no adaptation")
    options = parser.parse_args()
    options.deadline = time.monotonic() + options.seconds
    return options


if __name__ == "__main__":
    with exit_on_fault():
        main()
