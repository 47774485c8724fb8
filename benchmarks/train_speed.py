"""Speed of a training step at the records' shapes, on one GPU: `python benchmarks/train_speed.py`.

Prints tokens per second before and after recurrence, the time of the optimiser, the start of the
process to the first timed step and the memory, each beside its reference. The references are the
published pr1493 script's, measured on one H100 80GB with torch 2.11 and FlashAttention-3.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tables import Row, write_results

from paramgolf.clock import seconds_since_start
from paramgolf.model.network import Network, Pass
from paramgolf.model.place import place
from paramgolf.optim.schedule import Point
from paramgolf.recipes import check, compose
from paramgolf.runtime import Ranks
from paramgolf.training.state import TrainState

VOCAB = 8192


def median_seconds(work: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="pr1493")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    params = check(compose(options.recipe), where=options.recipe)
    train, model = params.train, params.model
    ranks = Ranks(0, 1, torch.device("cuda"), compile=True)
    network = place(Network(model, VOCAB, seed=1), ranks)
    state = TrainState(network, train, ranks)
    rows, length = train.micro_batch_tokens // train.sequence_length, train.sequence_length
    batch = torch.randint(VOCAB, (rows, length + 1), device=ranks.device)

    def step(order: tuple[int, ...], micro_batches: int) -> None:
        state.zero_grad()
        for _ in range(micro_batches):
            nll = network.nll(batch[:, :-1], batch[:, 1:], Pass(order))
            (nll.sum() / train.batch_tokens).backward()
        state.step(Point(0, 0.0, 1e9))

    for order in (model.orders[0], model.orders[-1]):
        step(order, 1)
    torch.cuda.synchronize()
    startup = seconds_since_start()
    published = {0: (1.00e6, 0.76e6), -1: (0.65e6, 0.57e6)}
    targets = {0: (1.25e6, 1.17e6), -1: (0.83e6, None)}
    table = []
    for index, name in ((0, "before recurrence"), (-1, "after recurrence")):
        for column, tokens in enumerate((786_432, 196_608)):
            count = tokens // train.micro_batch_tokens
            seconds = median_seconds(
                lambda n=count, i=index: step(model.orders[i], n), options.repeats
            )
            figure = f"{name}, {tokens:,} tokens a step"
            reference, target = published[index][column], targets[index][column]
            table.append(Row(figure, tokens / seconds, "tokens/s", reference, target, "higher"))
    optimiser = median_seconds(lambda: state.step(Point(0, 0.0, 1e9)) and None, options.repeats)
    table.append(Row("optimiser, clipping, averaging", 1000 * optimiser, "ms", 60.0, 8.0, "lower"))
    table.append(Row("start to first timed step", startup, "s", 195.0, 45.0, "lower"))
    memory = torch.cuda.max_memory_allocated() / 2**30
    table.append(Row("peak memory, 98,304 tokens", memory, "GiB", None, 45.0, "lower"))
    write_results(
        "train_speed", table, f"python benchmarks/train_speed.py --recipe {options.recipe}"
    )


if __name__ == "__main__":
    main()
