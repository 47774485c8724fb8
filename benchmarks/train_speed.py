"""Speed of a training step at the records' shapes, on one GPU: `python benchmarks/train_speed.py`.

Prints tokens per second before and after recurrence, the time of the optimiser, the start of the
process to the first timed step (cold, and with what it compiled in the cache) and the memory, each
beside its reference: the published pr1493 script, measured on one H100 80GB with torch 2.11 and
FlashAttention-3. With several recipes the later ones are compared with the first; with --plain the
first is also timed by plain PyTorch operations (runtime.kernels: reference).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from tables import Row, write_results

from paramgolf.clock import seconds_since_start
from paramgolf.model.attention import BOUNDS_MULTIPLE, find_segments
from paramgolf.model.network import BOS, Network, Pass
from paramgolf.model.place import place
from paramgolf.optim.schedule import Point
from paramgolf.recipes import check, compose
from paramgolf.runtime import Ranks
from paramgolf.training.batches import BOUNDS_EVERY, Batch
from paramgolf.training.profile import time_split
from paramgolf.training.replay import Replay
from paramgolf.training.state import TrainState

VOCAB = 8192
DOCUMENT = 1000  # tokens, on average
FULL, SMALL = 786_432, 196_608  # tokens a step: the records', and one for a single GPU
START = Point(0, 0.0, 1e9)
REPEATS = 8
PUBLISHED = {(FULL, 0): 1.00e6, (FULL, 1): 0.65e6, (SMALL, 0): 0.76e6, (SMALL, 1): 0.57e6}
TARGETS = {(FULL, 0): 1.25e6, (FULL, 1): 0.83e6, (SMALL, 0): 1.17e6, (SMALL, 1): None}
VARIANT_SHARE = 0.93  # of the first recipe's target that later ones must reach


class Trainer:
    """Network, optimisers and captured passes of a recipe, on random tokens."""

    def __init__(self, recipe: str, kernels: str) -> None:
        params = check(compose(recipe), where=recipe)
        self.train, self.model = params.train, params.model
        ranks = Ranks(0, 1, torch.device("cuda"), compile=True, kernels=kernels)
        torch.backends.cuda.matmul.allow_tf32 = True
        self.network = place(Network(self.model, VOCAB, seed=1), ranks)
        self.state = TrainState(self.network, self.train, ranks)
        self.batch = self._random_batch()
        self.replay = Replay()
        for phase in (0, -1):
            self.state.zero_grad()
            self.replay.capture(phase, functools.partial(self._backward, phase=phase), self.batch)
        self.state.zero_grad()

    def _random_batch(self) -> Batch:
        packed = self.train.loader == "documents"
        tokens, length = self.train.micro_batch_tokens, self.train.sequence_length
        rows = 1 if packed else tokens // length
        batch = torch.randint(BOS + 1, VOCAB, (rows, tokens // rows + 1))
        batch[torch.rand(batch.shape) < 1 / DOCUMENT] = BOS
        bounds = None
        if packed:
            multiple = BOUNDS_MULTIPLE + tokens // BOUNDS_EVERY + tokens // length
            bounds = find_segments(batch[:, :-1], BOS, length, multiple=multiple).bounds.cuda()
        return Batch(batch.cuda(), bounds)

    def _backward(self, batch: Batch, phase: int) -> torch.Tensor:
        longest = self.train.sequence_length if batch.bounds is not None else None
        options = Pass(
            self.model.orders[phase], document_tokens=longest, segments=batch.segments(longest)
        )
        nll = self.network.nll(batch.tokens[:, :-1], batch.tokens[:, 1:], options)
        loss = nll.sum() / self.train.batch_tokens
        loss.backward()
        return loss.detach()

    def passes(self, phase: int, tokens: int) -> None:
        """Run forward and backward of a step of so many tokens."""
        self.state.zero_grad()
        for _ in range(tokens // self.train.micro_batch_tokens):
            self.replay(phase, self.batch)

    def optimise(self) -> None:
        """Clip, update weights and average."""
        self.state.step(START)

    def step(self, phase: int, tokens: int) -> None:
        """Run a whole step."""
        self.passes(phase, tokens)
        self.optimise()


def median_seconds(work: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(recipe: str, kernels: str, *, whole: bool) -> dict:
    """Measure a recipe in this process; only its start unless `whole`."""
    trainer = Trainer(recipe, kernels)
    trainer.step(0, trainer.train.micro_batch_tokens)
    torch.cuda.synchronize()
    found: dict = {"startup": seconds_since_start()}
    if whole:
        for tokens in (FULL, SMALL):
            for phase in (0, -1):
                seconds = median_seconds(lambda t=tokens, p=phase: trainer.step(p, t))
                found[f"{tokens} {-phase}"] = tokens / seconds
        found["optimiser"] = median_seconds(trainer.optimise)
        found["memory"] = torch.cuda.max_memory_allocated()
        found["split"] = [
            time_split(lambda p=phase: trainer.passes(p, SMALL), trainer.optimise)
            for phase in (0, -1)
        ]
    return found


def measure_apart(recipe: str, kernels: str, cache: str, *, whole: bool) -> dict:
    """Measure in a process of its own, with `cache` for what is compiled."""
    command = [sys.executable, __file__, "--child", kernels, "--recipes", recipe]
    caches = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
    environment = {**os.environ, **caches, "WHOLE": str(int(whole))}
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def rows_of(recipe: str, found: dict, warm: float | None, share: float) -> list[Row]:
    rows = []
    for (tokens, after), published in PUBLISHED.items():
        target = TARGETS[tokens, after]
        name = "after" if after else "before"
        figure = f"{recipe}, {name} recurrence, {tokens:,} tokens a step"
        wanted = None if target is None else share * target
        value = found[f"{tokens} {after}"]
        rows.append(Row(figure, value, "tokens/s", published, wanted, "higher"))
    milliseconds = 1000 * found["optimiser"]
    rows.append(
        Row(f"{recipe}, optimiser, clipping, averaging", milliseconds, "ms", 60.0, 8.0, "lower")
    )
    cold = f"{recipe}, start to first timed step, cold"
    rows.append(Row(cold, found["startup"], "s", 195.0, 45.0, "lower"))
    if warm is not None:
        rows.append(Row(f"{recipe}, the same, warm", warm, "s", None, 15.0, "lower"))
    memory = found["memory"] / 2**30
    rows.append(Row(f"{recipe}, peak memory, 98,304 tokens", memory, "GiB", None, 45.0, "lower"))
    for name, split in zip(("before", "after"), found["split"], strict=True):
        for kind, value in split.items():
            figure = f"{recipe}, {name} recurrence, {SMALL:,} tokens: {kind}"
            rows.append(Row(figure, value, "ms", None, None, "lower"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["pr1493", "pr1855"])
    parser.add_argument("--plain", action="store_true", help="time plain operations as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        whole = os.environ["WHOLE"] == "1"
        print(json.dumps(measure(options.recipes[0], options.child, whole=whole)))
        return
    table = []
    with tempfile.TemporaryDirectory() as cache:
        for index, recipe in enumerate(options.recipes):
            # each recipe starts cold: what it shares with another counts for neither
            folder = f"{cache}/{recipe}"
            found = measure_apart(recipe, "auto", folder, whole=True)
            warm = measure_apart(recipe, "auto", folder, whole=False)["startup"]
            table += rows_of(recipe, found, warm, VARIANT_SHARE if index else 1.0)
        if options.plain:
            recipe = options.recipes[0]
            found = measure_apart(recipe, "reference", f"{cache}/plain", whole=True)
            table += rows_of(f"{recipe}, plain operations", found, None, 1.0)[:4]
    command = f"python benchmarks/train_speed.py --recipes {' '.join(options.recipes)}"
    write_results("train_speed", table, command + " --plain" * options.plain)


if __name__ == "__main__":
    main()
