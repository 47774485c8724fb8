"""Forward and backward of a pass as a CUDA graph: hundreds of launches become one.

A graph holds addresses. So a batch is copied into the graph's own tensors, weights and gradients
stay where they are, and whatever changes what is computed (layer order, sizes) is another graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor | None, ...]  # a NamedTuple of them
WARM_UPS = 2  # passes before a capture: allocations and choices of the libraries settle


class Replay:
    """Graphs of passes that add to gradients and return tensors, by key."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Batch, Any]] = {}

    def capture(
        self,
        key: Hashable,
        work: Callable[[Any], Any],
        batch: Batch,
        *,
        warm_ups: int = WARM_UPS,
    ) -> None:
        """Record `work` on batches shaped like `batch`. Gradients must exist, and are spoilt."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_ups):
                work(batch)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()  # a graph's memory is apart from what the warm-up left
        graph = torch.cuda.CUDAGraph()
        pool = next((graph.pool() for graph, *_ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            result = work(batch)
        self._graphs[key] = (graph, batch, result)

    def fits(self, key: Hashable, batch: Batch) -> bool:
        """Tell whether a graph was captured for this key and batches of these shapes."""
        if key not in self._graphs:
            return False
        own = self._graphs[key][1]
        return [x.shape for x in own if x is not None] == [x.shape for x in batch if x is not None]

    def __call__(self, key: Hashable, batch: Batch) -> Any:
        """Run a graph on a batch that fits; the next call overwrites the result."""
        graph, own, result = self._graphs[key]
        for mine, given in zip(own, batch, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given, non_blocking=True)
        graph.replay()
        return result
