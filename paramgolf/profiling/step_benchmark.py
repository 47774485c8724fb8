"""A recipe's training step on random tokens: what `paramgolf profile` and the benchmark time."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from paramgolf.data.special_tokens import BOS
from paramgolf.model.cuda_graph import CudaGraphs
from paramgolf.model.network import Network
from paramgolf.recipes import Params
from paramgolf.runtime import Runtime
from paramgolf.training.batches import Batch, batch_of
from paramgolf.training.micro_batch import choose_micro_batch
from paramgolf.training.passes import backward
from paramgolf.training.schedule import Point
from paramgolf.training.state import TrainState
from paramgolf.training.time_split import time_split

DOCUMENT_TOKENS = 1000  # of a document, on average: about FineWeb's
START = Point(0, 0.0, 1e9)
REPEATS = 8


class StepBenchmark:
    """Network, optimizers and captured passes of a recipe on one GPU.

    A `phase` is 0, the model's first layer order on batches of the first sizes, or -1, the last.
    """

    def __init__(self, params: Params, runtime: Runtime) -> None:
        self.model, vocab_size = params.model, params.tokenizer.vocab_size
        network = Network(self.model, vocab_size, seed=params.train.seed, device=runtime.device)
        self._network = network.on(runtime)
        self.train = params.train
        tokens = params.train.micro_batch_tokens
        if tokens == "auto":
            tokens = choose_micro_batch(self._network, self.train, runtime)
        self.micro_batch_tokens = tokens
        self._state = TrainState(self._network, self.train, runtime)
        self._network = self._state.network
        self._batches: dict[int, Batch] = {}
        self._graphs = CudaGraphs()
        weight = self.train.second_token_weight
        self._second_weight = torch.tensor(weight, device=runtime.device) if weight else None
        for phase in (0, -1):
            self._state.zero_grad()
            batch = self._random_batch(phase, vocab_size, runtime.device)
            work = functools.partial(self._backward, phase=phase)
            work(batch)
            self._graphs.capture(phase, work, batch)
            self._batches[phase] = batch
        self._state.zero_grad()

    def _random_batch(self, phase: int, vocab_size: int, device: torch.device) -> Batch:
        sizes = self.train.batch_sizes[phase]
        longest = self.train.document_tokens(sizes)
        rows = self.micro_batch_tokens // sizes.sequence_length if longest is None else 1
        drawn = torch.randint(BOS + 1, vocab_size, (rows, self.micro_batch_tokens // rows + 1))
        drawn[torch.rand(drawn.shape) < 1 / DOCUMENT_TOKENS] = BOS
        return batch_of(drawn, longest, device)

    def _backward(self, batch: Batch, phase: int) -> Tensor:
        sizes = self.train.batch_sizes[phase]
        return backward(
            self._network,
            batch,
            self.model.orders[phase],
            longest=self.train.document_tokens(sizes),
            batch_tokens=sizes.batch_tokens,
            precision=self.train.precision,
            second_weight=self._second_weight,
        )

    def passes(self, phase: int, batch_tokens: int) -> None:
        """Run forward and backward of a step of so many tokens."""
        self._state.zero_grad()
        for _ in range(batch_tokens // self.micro_batch_tokens):
            self._graphs(phase, self._batches[phase])

    def optimize(self) -> None:
        """Clip, update weights and average."""
        self._state.step(START)

    def step_seconds(self, phase: int, batch_tokens: int) -> float:
        """Return the median time of a whole step."""

        def step() -> None:
            self.passes(phase, batch_tokens)
            self.optimize()

        return median_seconds(step)

    def split(self, phase: int, batch_tokens: int) -> dict[str, float] | None:
        """Return where the milliseconds of a step go, by kind of kernel."""
        return time_split(lambda: self.passes(phase, batch_tokens), self.optimize)

    def optimizer_seconds(self) -> float:
        """Return the median time of clipping, updates and averaging."""
        return median_seconds(self.optimize)


def median_seconds(work: Callable[[], None]) -> float:
    """Return the median time of `work` on the GPU."""
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
