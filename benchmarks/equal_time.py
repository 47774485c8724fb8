"""What faster shapes are worth: changes of recipe pr2135, each trained for the same seconds.

    python benchmarks/equal_time.py --gpus 4 --set data.source=files ...

At equal tokens a faster shape can only lose (recipes.py --techniques); here it has the tokens that
it is faster by. One run a GPU at a time, with batch, momentum and average of h100x1. Rows go to
results/train_speed.json, beside pr2135 without a change, of the same call or an earlier one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
from dataclasses import dataclass

from projects import WORK, Devices, Project, assignments, folder_name
from tables import RESULTS, Row, write_results
from techniques import COMMON_CHANGES, REPEATED_ONCE

from paramgolf.files import read_json
from paramgolf.recipes import build

RECIPE, UNCHANGED = "pr2135", "unchanged"
SECONDS = 90.0
BATCH_TOKENS = 196_608
ONE_GPU = (
    *COMMON_CHANGES,
    f"train.batch_tokens={BATCH_TOKENS}",
    "train.muon_momentum_steps=100",
    "train.ema_warmup=true",
    "train.reserve_seconds=0.0",
    "train.validate_every=0",
    "train.checkpoint_every=0",
)
TWICE = f"model.recurrence=[{{at: 0.35, order: {REPEATED_ONCE}}}]"
NO_FIRST = "model.first_attention=false"
LANES_9, LANES_10 = "model.parallel_start=9", "model.parallel_start=10"
WINDOWS = ("model.window_layers=[0,2,4,6,8]", "model.window=512")


def short(length: int) -> tuple[str, str]:
    """Return the change by which documents are cut to `length` tokens until recurrence begins."""
    later = f"{{at: 0.35, batch_tokens: {BATCH_TOKENS}, sequence_length: 2048}}"
    return f"train.sequence_length={length}", f"train.curriculum=[{later}]"


CHANGES: dict[str, tuple[str, ...]] = {
    UNCHANGED: (),
    "layers 3-5 twice": (TWICE,),
    "twice, 512 tokens of a document until then": (TWICE, *short(512)),
    "twice, 512, no first attention": (TWICE, *short(512), NO_FIRST),
    "twice, 256, no first attention, windows": (TWICE, *short(256), NO_FIRST, *WINDOWS),
    "twice, 256, no first attention, lanes from 9": (TWICE, *short(256), NO_FIRST, LANES_9),
    "twice, 256, no first attention, lanes from 10": (TWICE, *short(256), NO_FIRST, LANES_10),
    "twice, 128, no first attention, lanes from 9": (TWICE, *short(128), NO_FIRST, LANES_9),
}


@dataclass(frozen=True)
class Run:
    """A training: bits per byte, and tokens per second before and after recurrence."""

    val_bpb: float
    before: float
    after: float

    def rows(self, figure: str, reference: Run) -> list[Row]:
        """Return the rows of this run beside those of another."""
        score = Row(figure, self.val_bpb, "bits/byte", reference.val_bpb, None, "lower")
        pairs = {"before": (self.before, reference.before), "after": (self.after, reference.after)}
        return [score] + [
            Row(f"{figure}: {name} recurrence", value, "tokens/s", other, None, "higher")
            for name, (value, other) in pairs.items()
        ]


def figure_of(name: str, options: argparse.Namespace) -> str:
    """Return the name of a run's score in the results."""
    return f"{RECIPE}, {name}, {options.seconds:.0f} s, seed {options.seed}"


def train(name: str, options: argparse.Namespace, devices: Devices) -> Run:
    """Train with a change for the seconds asked for."""
    seconds = f"train.budget_seconds={options.seconds}"
    changes = [*ONE_GPU, seconds, *CHANGES[name], *options.set, f"train.seed={options.seed}"]
    content = build(RECIPE, assignments(changes))
    with devices.take() as device:
        project = Project(WORK / "equal_time" / folder_name(name), content, device)
        project.take_tokens()
        project.run("train")
    metrics = project.metrics("train")
    assert metrics is not None
    times = project.times()
    speeds = [
        1000 * content["train"]["batch_tokens"] / (times[key] or math.nan)
        for key in ("step_ms_before", "step_ms_after")
    ]
    print(f"{name}: {metrics['val_bpb']:.4f}, {metrics['tokens']:,} tokens, {times}", flush=True)
    return Run(metrics["val_bpb"], *speeds)


def earlier(figure: str) -> Run | None:
    """Return a run from the results, if it is there."""
    path = RESULTS / "train_speed.json"
    rows = read_json(path)["rows"] if path.is_file() else []
    values = {row["figure"]: row["value"] for row in rows}
    names = (figure, f"{figure}: before recurrence", f"{figure}: after recurrence")
    return Run(*(values[name] for name in names)) if figure in values else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--gpus", type=int, default=1, help="that runs are spread over")
    parser.add_argument("--only", nargs="+", default=[*CHANGES], choices=CHANGES, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training")
    parser.add_argument("--seed", type=int, default=1337)
    options = parser.parse_args()
    reference = earlier(figure_of(UNCHANGED, options))
    names = [*dict.fromkeys([*options.only, *[UNCHANGED] * (reference is None)])]
    devices = Devices(options.gpus)
    with concurrent.futures.ThreadPoolExecutor(devices.runs) as pool:
        runs = pool.map(lambda name: train(name, options, devices), names)
        found = dict(zip(names, runs, strict=True))
    reference = found.get(UNCHANGED, reference)
    assert reference is not None
    rows = [row for n in names for row in found[n].rows(figure_of(n, options), reference)]
    command = f"python benchmarks/equal_time.py --seconds {options.seconds:.0f}"
    write_results("train_speed", rows, f"{command} --seed {options.seed}")


if __name__ == "__main__":
    main()
