"""Loss curves that must agree: `python benchmarks/curves.py DIR [--gpus 2 | --budget]`.

DIR is as data/tokens.

Trains for 200 steps with fused kernels and with plain operations, each rounded in three ways: what
two runs of one kind differ by is the noise that the kinds are held against. Runs share the GPUs
that there are. With --gpus N it trains on one GPU and on N instead, and compares speeds as well;
--deterministic then leaves the order in which processes add as their only difference.
Rows go to results/train_speed.json: the mean loss of every 20 steps, and the largest differences.
With --budget it trains for 120 s as the recipe says; the published script came to 1.2715 bits per
byte then, on the text that this project is measured on.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from projects import WORK, Devices, Project, assignments, cut
from tables import Row, device_name, need_gpus, write_results

from paramgolf.arguments import count
from paramgolf.program import exit_on_fault
from paramgolf.recipes import build

STEPS, EVERY = 200, 20
RECIPE = "h100x1"
UNREAD = ("data.source=files", "data.files=[unread]", "tokenizer.source=train")  # tokens are there
KINDS = ("fused", "reference")  # of runtime.kernels
ROUNDINGS = ("runtime.attention=auto", "runtime.attention=sdpa", "train.micro_batch_tokens=49152")
BUDGET_SECONDS, PUBLISHED_BPB, WANTED_BPB = 120, 1.2715, 1.24


@dataclass(frozen=True)
class Run:
    """A training: the mean loss of every EVERY steps, and its speed."""

    losses: list[float]
    tokens_per_second: float


def train(
    tokens: Path, name: str, batch_tokens: int, changes: list[str], device: str | None = None
) -> Run:
    """Train on the tokens in a folder, with changes of the recipe's parameters."""
    changes = assignments([*UNREAD, *changes])
    content = cut(RECIPE, changes, STEPS * batch_tokens, batch_tokens)
    project, metrics = trained(tokens, name, content, device)
    losses = [step["loss"] for step in project.steps()]
    means = [statistics.mean(losses[i : i + EVERY]) for i in range(0, STEPS, EVERY)]
    return Run(means, metrics["tokens_per_second"])


def trained(
    tokens: Path, name: str, content: dict[str, Any], device: str | None = None
) -> tuple[Project, dict[str, Any]]:
    """Return a folder in which training has run on these tokens, and its metrics."""
    project = Project(WORK / "curves" / name, content, device)
    project.link_tokens(tokens)
    project.run("train")
    metrics = project.metrics("train")
    assert metrics is not None
    return project, metrics


def largest(one: list[float], other: list[float]) -> float:
    """Return the largest difference of two curves, nats."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def curve_rows(name: str, losses: list[float], reference: list[float]) -> list[Row]:
    """Return a curve beside the one that it is compared with."""
    pairs = zip(losses, reference, strict=True)
    return [
        Row(f"{name}: loss, steps to {EVERY * (i + 1)}", a, "nats", b, None, "lower")
        for i, (a, b) in enumerate(pairs)
    ]


def kernel_rows(tokens: Path) -> list[Row]:
    """Compare fused kernels with plain operations."""
    gpus = torch.cuda.device_count()
    devices = Devices(gpus)

    def run(way: tuple[str, str]) -> list[float]:
        rounding, kind = way
        with devices.take() as device:
            changes = [rounding, f"runtime.kernels={kind}"]
            return train(tokens, f"{kind}-{rounding}", 98_304, changes, device).losses

    with ThreadPoolExecutor(gpus) as pool:
        curves = list(pool.map(run, itertools.product(ROUNDINGS, KINDS)))
    fused, plain = curves[::2], curves[1::2]
    noise = max(largest(*pair) for of in (fused, plain) for pair in itertools.combinations(of, 2))
    apart = max(largest(*pair) for pair in itertools.product(fused, plain))
    means = [[statistics.mean(x) for x in zip(*of, strict=True)] for of in (fused, plain)]
    name = "fused kernels, plain operations"
    found = {
        "of two runs; reference: of one kind": apart,
        "of the means; reference: of two runs of one kind": largest(*means),
    }
    return [
        *curve_rows(f"{name}, means of 3", *means),
        *(
            Row(f"{name}: largest difference {what}", value, "nats", noise, None, "lower")
            for what, value in found.items()
        ),
    ]


def gpu_rows(tokens: Path, gpus: int, *, deterministic: bool) -> list[Row]:
    """Compare one GPU with several."""
    order = ["runtime.deterministic=true"] if deterministic else []
    one, several = (
        train(tokens, f"gpus-{n}", 196_608, [f"runtime.processes={n}", *order]) for n in (1, gpus)
    )
    speed = several.tokens_per_second / one.tokens_per_second
    apart, them = largest(several.losses, one.losses), f"{gpus} x {device_name()}"
    them += ", deterministic" * deterministic
    return [
        *curve_rows(f"{them}, one", several.losses, one.losses),
        Row(
            f"{them}: tokens/s",
            several.tokens_per_second,
            "tokens/s",
            one.tokens_per_second,
            None,
            "higher",
        ),
        Row(f"{them}: times the speed of one", speed, "", None, 0.95 * gpus, "higher"),
        Row(f"{them}: largest difference of the loss", apart, "nats", None, 1e-3, "lower"),
    ]


def budget_rows(tokens: Path) -> list[Row]:
    """Train for BUDGET_SECONDS, calibration's reserve included."""
    changes = [f"train.budget_seconds={BUDGET_SECONDS}", "train.checkpoint_every=0"]
    content = build(RECIPE, assignments([*UNREAD, *changes]))
    _, metrics = trained(tokens, "budget", content)
    figure = f"{RECIPE}, {BUDGET_SECONDS} s"
    return [
        Row(figure, metrics["val_bpb"], "bits/byte", PUBLISHED_BPB, WANTED_BPB, "lower"),
        Row(f"{figure}: tokens", metrics["tokens"], "tokens", None, None, "higher"),
        Row(f"{figure}: tokens/s", metrics["tokens_per_second"], "tokens/s", None, None, "higher"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=Path, help="folder of shards, as data/tokens")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--gpus", type=count, help="compare one GPU with so many")
    parser.add_argument("--deterministic", action="store_true", help="with --gpus: in fixed orders")
    what.add_argument("--budget", action="store_true", help=f"train {BUDGET_SECONDS} s")
    options = parser.parse_args()
    if options.deterministic and not options.gpus:
        parser.error("--deterministic compares --gpus")
    need_gpus(options.gpus or 1)
    if options.gpus:
        rows = gpu_rows(options.tokens, options.gpus, deterministic=options.deterministic)
    elif options.budget:
        rows = budget_rows(options.tokens)
    else:
        rows = kernel_rows(options.tokens)
    write_results("train_speed", rows)


if __name__ == "__main__":
    with exit_on_fault():
        main()
