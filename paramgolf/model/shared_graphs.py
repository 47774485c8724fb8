"""One compiled graph for passes whose rows and tokens differ.

A block is compiled with every size fixed, which makes the fastest code and is what training and
windows want. Documents come in many shapes, and a graph costs seconds: theirs share one a kind of
block. Sizes of weights, heads and runtime stay fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from paramgolf.model.block import Context, Kind, State, Weights
from paramgolf.model.head import Head
from paramgolf.model.network import Network


def share_graphs(network: Network) -> None:
    """Let passes with adapters, a row each, share a compiled network's graphs from now on.

    Their rows and tokens may differ. A pass of one row has graphs of its own: PyTorch tells 1 apart
    from all other sizes.
    """
    blend, run, nll = network._blend, network._block, network._nll

    def blend_marked(e: Tensor, tokens_BT: Tensor, *others: Any) -> Tensor:
        tokens_BT = _own(tokens_BT)
        _mark((e, tokens_BT), 0, 1)
        return blend(e, tokens_BT, *others)

    def run_marked(state: State, weights: Weights, context: Context, kind: Kind) -> State:
        c = context
        if c.adapters is not None:  # without, the whole model learns, from passes of one shape
            _mark((state, c.x0, c.value_extra, c.first_values, c.entering), 0, 1)
            _mark((c.cos, c.sin, c.adapters), 0)
        return run(state, weights, c, kind)

    def nll_marked(lanes: State, targets: Tensor, head: Head, how: Callable[..., Tensor]) -> Tensor:
        lanes, targets = tuple(map(_own, lanes)), _own(targets)
        _mark((lanes, targets), 0, 1)
        _mark(head.adapter, 0)
        return nll(lanes, targets, head, how)

    network._blend, network._block, network._nll = blend_marked, run_marked, nll_marked


def _own(x: Tensor) -> Tensor:
    """Return x, or a copy where it is part of another tensor, whose sizes graphs would tell."""
    return x.clone(memory_format=torch.contiguous_format) if x._is_view() else x


def _mark(tree: Any, *dimensions: int) -> None:
    """Make these dimensions of the tensors in `tree` symbols of the graphs that read them."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            torch._dynamo.maybe_mark_dynamic(leaf, dimensions)
