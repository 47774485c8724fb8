"""One compiled graph for passes whose rows and tokens differ.

A block is compiled with every size fixed, which makes the fastest code and is what training and
windows want. Documents come in many shapes, and a graph costs seconds: theirs share one a kind of
block. Sizes of weights, heads and ranks stay fixed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from paramgolf.model.block import Context, Kind, State, Weights
from paramgolf.model.head import Head
from paramgolf.model.network import Network


def share_graphs(network: Network) -> None:
    """Let passes of a compiled network share graphs from now on, whatever their rows and tokens.

    A pass of one row has graphs of its own: PyTorch tells 1 apart from all other sizes.
    """
    run, nll = network._block, network._nll

    def run_marked(state: State, weights: Weights, context: Context, kind: Kind) -> State:
        c = context
        _mark((state, c.x0, c.value_extra, c.first_values, c.entering), 0, 1)
        _mark((c.cos, c.sin, c.adapters, c.segments), 0)
        return run(state, weights, c, kind)

    def nll_marked(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        # part of a row keeps its row's stride, which would be one more size
        hidden, targets = hidden.contiguous(), targets.contiguous()
        _mark((hidden, targets), 0, 1)
        _mark(head.adapter, 0)
        return nll(hidden, targets, head)

    network._block, network._nll = run_marked, nll_marked


def _mark(tree: Any, *dimensions: int) -> None:
    """Make these dimensions of the tensors in `tree` symbols of the graphs that read them."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            torch._dynamo.maybe_mark_dynamic(leaf, dimensions)
