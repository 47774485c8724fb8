"""CUDA graphs: work that was recorded once is launched as a whole, for hundreds of launches.

A graph holds addresses. So inputs are copied into the graph's own tensors, what else it reads or
writes (weights, gradients) must stay where it is, and other shapes are another graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

Inputs = tuple[Tensor | None, ...]  # or a NamedTuple of them
Result = TypeVar("Result")
WARM_UPS = 2  # runs before a recording: allocations and choices of the libraries settle


def record(
    work: Callable[[], Result], *, warm_ups: int = WARM_UPS, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return a graph of `work` and the result that each replay overwrites.

    `work` runs `warm_ups` times, on a stream of its own as a recording must, and is then recorded
    without being run. Graphs that never run at the same time may share the memory `pool` of one.
    """
    # on a side stream, as PyTorch asks: autograd remembers the stream of a leaf's first gradient
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):  # it frees what the warm-up left
        result = work()
    return graph, result


class CudaGraphs:
    """Graphs of functions of tensors, by key; they share their memory."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Inputs, Any]] = {}

    def capture(
        self,
        key: Hashable,
        work: Callable[[Any], Any],
        inputs: Inputs,
        *,
        warm_ups: int = WARM_UPS,
    ) -> None:
        """Record `work` on inputs shaped like `inputs`, which become the graph's own.

        What `work` adds to, such as gradients, must exist, and is spoilt.
        """
        # one pass runs at a time, so that graphs can use the same memory for what they throw away
        pool = next((graph.pool() for graph, *_ in self._graphs.values()), None)
        graph, result = record(lambda: work(inputs), warm_ups=warm_ups, pool=pool)
        self._graphs[key] = (graph, inputs, result)

    def fits(self, key: Hashable, inputs: Inputs) -> bool:
        """Tell whether a graph was captured for this key and inputs of these shapes."""
        if key not in self._graphs:
            return False
        captured_inputs = self._graphs[key][1]
        return _shapes(captured_inputs) == _shapes(inputs)

    def __call__(self, key: Hashable, inputs: Inputs) -> Any:
        """Run a graph on inputs that fit; the next call overwrites the result."""
        graph, captured_inputs, result = self._graphs[key]
        for target, source in zip(captured_inputs, inputs, strict=True):
            if target is not None and source is not None:
                # into the addresses that the graph knows
                target.copy_(source, non_blocking=True)
        graph.replay()
        return result


def _shapes(inputs: Inputs) -> list[torch.Size]:
    return [x.shape for x in inputs if x is not None]
