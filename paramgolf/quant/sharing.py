"""Families solved by several processes at a time, each its own.

GPTQ goes through a matrix column by column, and a trellis through each column row by row: a family
keeps a GPU waiting rather than busy, and several families take as long as the longest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from paramgolf.codec.dequantize import restore
from paramgolf.model.config import ModelConfig
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.scales import choose_precisions, searches
from paramgolf.quant.solved import Family, Solved, best_of, solve_family
from paramgolf.runtime import Runtime

CPU = torch.device("cpu")
Parts = tuple[tuple[int, ...], dict[str, Tensor], bool]  # bits, tensors and trellis of a Solved


def deal(families: list[Family], processes: int) -> dict[str, int]:
    """Return the process of each family: the largest first, to the one that has least so far."""
    sizes = {f.name: sum(w.numel() for w in f.weights.values()) for f in families}
    loads, owner = [0] * processes, {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += sizes[name]
    return owner


class FamilySolver:
    """Quantizes the matrices of all families, however often the main process asks for it.

    The other processes `serve` until it calls `end`. All hold all families: steps are balanced over
    all of them.
    """

    def __init__(self, families: list[Family], model: ModelConfig, runtime: Runtime) -> None:
        self.families, self._model, self._runtime = families, model, runtime
        owner = deal(families, runtime.world)
        self._mine = [family for family in families if owner[family.name] == runtime.rank]

    def __call__(self, config: QuantizeConfig) -> list[Solved]:
        """Return the solved parameters, in the order of the families; the main process calls it."""
        if self._runtime.world == 1:
            return self._solve(config)
        agreed(config, self._runtime)
        return self._gather(self._solve(config))

    def serve(self) -> None:
        """Solve this process's families for each configuration that the main one asks for."""
        while (config := agreed(None, self._runtime)) is not None:
            self._gather(self._solve(config))

    def end(self) -> None:
        """Let the other processes go."""
        agreed(None, self._runtime)

    def _solve(self, config: QuantizeConfig) -> list[Solved]:
        versions = []
        for percentiles in searches(config):
            precisions = choose_precisions(self.families, self._model, config, percentiles)
            found = [solve_family(family, precisions, config) for family in self._mine]
            versions.append([solved for of_family in found for solved in of_family])
        return [best_of(same) for same in zip(*versions, strict=True)]

    def _gather(self, mine: list[Solved]) -> list[Solved]:
        """Return what all processes have solved; other processes than the main one get nothing."""
        given: dict[str, Parts] = {
            one.name: (one.bits, on(CPU, one.tensors), one.trellis) for one in mine
        }
        every: Any = [None] * self._runtime.world if self._runtime.is_main else None
        dist.gather_object(given, every)
        if every is None:
            return []
        found = {name: parts for of_process in every for name, parts in of_process.items()}
        return [
            _rebuilt(family, name, found[name], self._runtime.device)
            for family in self.families
            for name in family.weights
        ]


def agreed(value: Any, runtime: Runtime) -> Any:
    """Return what the main process passes."""
    told = [value]
    if runtime.world > 1:
        dist.broadcast_object_list(told, src=0, device=CPU)
    return told[0]


def on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _rebuilt(family: Family, name: str, parts: Parts, device: torch.device) -> Solved:
    bits, tensors, trellis = parts
    tensors = on(device, tensors)
    return Solved(name, family, bits, tensors, restore(tensors, name), trellis)
