"""Recipes run whole: `python benchmarks/recipes.py pr1493 --set data.source=files ...`.

Each recipe runs every stage from download to eval_ttt in a folder of its own, at a given number of
training tokens; the figures come from the stages' metrics. Options after --set go to every recipe.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from tables import Row, write_results

ROOT = Path(__file__).parents[1]
STAGES = [*yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]]
STAGES = STAGES[: STAGES.index("report")]


def run_recipe(recipe: str, changes: list[str], skip: list[str]) -> dict[str, dict]:
    """Run a recipe's stages in a temporary folder and return their metrics."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipes").symlink_to(ROOT / "recipes")
        use = [sys.executable, "-m", "paramgolf.cli", "use", recipe, *changes]
        subprocess.run(use, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for stage in STAGES:
            if stage not in skip:
                command = [sys.executable, str(ROOT / "stages" / f"{stage}.py")]
                subprocess.run(command, cwd=folder, check=True)
        found = (folder / "artifacts/metrics").glob("*.json")
        return {path.stem: json.loads(path.read_text()) for path in found}


def rows_of(recipe: str, metrics: dict[str, dict]) -> list[Row]:
    """Return the figures of a recipe: its size, speed, scores and bytes."""
    wanted = [
        ("train", "parameters", "", "lower"),
        ("train", "tokens", "tokens", "higher"),
        ("train", "tokens_per_second", "tokens/s", "higher"),
        ("train", "startup_seconds", "s", "lower"),
        ("train", "peak_memory_bytes", "bytes", "lower"),
        ("train", "val_bpb", "bits/byte", "lower"),
        ("calibrate", "seconds", "s", "lower"),
        ("quantize", "seconds", "s", "lower"),
        ("eval_sliding", "val_bpb_plain", "bits/byte", "lower"),
        ("eval_sliding", "val_bpb", "bits/byte", "lower"),
        ("eval_sliding", "seconds", "s", "lower"),
        ("eval_ttt", "val_bpb", "bits/byte", "lower"),
        ("eval_ttt", "seconds", "s", "lower"),
        ("package", "bytes_total", "bytes", "lower"),
        ("package", "headroom_bytes", "bytes", "higher"),
    ]
    return [
        Row(f"{recipe}: {stage} {key}", metrics[stage][key], unit, None, None, better)
        for stage, key, unit, better in wanted
        if stage in metrics
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="+")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value for every recipe")
    parser.add_argument("--skip", nargs="*", default=[], choices=STAGES)
    options = parser.parse_args()
    command = f"python benchmarks/recipes.py {' '.join(options.recipe)} --set ..."
    for recipe in options.recipe:
        write_results(
            "recipes", rows_of(recipe, run_recipe(recipe, options.set, options.skip)), command
        )


if __name__ == "__main__":
    main()
