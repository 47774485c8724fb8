"""Targets from the quantized network's own inputs: what a quantizer of one matrix cannot see.

A matrix W is to make of its inputs x' in the quantized network what it made of its inputs x in the
trained one. Over the integers' matrix Q the mean of |W x - Q x'|^2 is least where, but for what
does not depend on Q, that of |(T - Q) x'|^2 is, with H' the mean of x' x'^T and

    T = W E[x x'^T] H'^-1 = W + W E[(x - x') x'^T] H'^-1        (arXiv 2603.04956 calls it drift)

Layers are solved group by group, from the first: of a layer that runs twice, the second pass sees
what its own group has left of the first as it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from paramgolf.codec.container import dequantized
from paramgolf.model.network import Network, Pass
from paramgolf.model.shapes import MATRICES
from paramgolf.quant.calibrate import load_network
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.fit import Solution
from paramgolf.quant.quantize import solve_model
from paramgolf.quant.solved import Family
from paramgolf.quant.trained import Trained
from paramgolf.runtime import Runtime

GROUPS = 4  # of layers: of 11 they are 0-2, 3-5, 6-8 and 9-10, as recurrence has them
TEXTS, AT_ONCE = 256, 8  # that show the inputs
DAMPING = 1e-3  # of H', as a share of its mean diagonal


def towards_drift(
    trained: Trained,
    families: list[Family],
    solution: Solution,
    texts_NT: Tensor,
    config: QuantizeConfig,
    runtime: Runtime,
) -> Solution:
    """Return a solution whose groups of layers, but for the first, are solved anew.

    `solution` is that of the families. Hessians stay: inputs differ by a percent or so.
    """
    tensors, reports = dict(solution[0]), solution[1]
    batches = texts_NT[:TEXTS].long().split(AT_ONCE)
    for group in np.array_split(np.arange(trained.model.layers), GROUPS)[1:]:
        start, state = int(group[0]), dequantized(tensors)
        state |= {n: torch.cat([state[n][:start], trained.state[n][start:]]) for n in MATRICES}
        moments = _moments(trained, state, batches, start, runtime)
        families = [_towards(family, moments, start, trained) for family in families]
        found = solve_model(trained, families, config)[0]
        for key, tensor in tensors.items():
            if key.partition(".")[0] in MATRICES:
                tensors[key] = torch.cat([tensor[:start], found[key][start:]])
    return tensors, reports


@torch.no_grad()
def _moments(
    trained: Trained,
    state: dict[str, Tensor],
    batches: tuple[Tensor, ...],
    start: int,
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Return E[(x - x') x'^T] and E[x' x'^T] of layers from `start`, by family [2, layers, C, C].

    x' are inputs where the network has the weights `state`. Means are over tokens times a number.
    """
    plain = replace(runtime, compile=False)
    right, found = (
        load_network(replace(trained, state=weights), "trained").on(plain)
        for weights in (trained.state, state)
    )
    sums: dict[str, Tensor] = {}
    for batch in batches:
        text = batch.to(runtime.device)
        pairs = zip(_inputs(right, text, start), _inputs(found, text, start), strict=True)
        for (family, layer, x), (_, _, drifted) in pairs:
            if family not in sums:
                shape = 2, trained.model.layers, x.shape[1], x.shape[1]
                sums[family] = torch.zeros(shape, device=x.device)
            rows = drifted.float()
            sums[family][0, layer].addmm_((x.float() - rows).T, rows)
            sums[family][1, layer].addmm_(rows.T, rows)
    return sums


def _inputs(network: Network, text_BT: Tensor, start: int) -> Iterator[tuple[str, int, Tensor]]:
    """Return (family, layer, inputs [tokens, C]) of each product of layers from `start`."""
    found: list[tuple[str, int, Tensor]] = []

    def tap(family: str, layer: int, x: Tensor) -> None:
        if family != "embedding" and layer >= start:
            found.append((family, layer, x.flatten(0, -2)))

    network.logits(text_BT, Pass(order=network.config.orders[-1], tap=tap))
    return iter(found)


def _towards(family: Family, moments: dict[str, Tensor], start: int, trained: Trained) -> Family:
    """Return the family with targets in place of the weights of layers from `start`."""
    if family.name not in moments:
        return family
    drift, hessian = moments[family.name][:, start:].double()
    size = hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    damped = hessian + DAMPING * size * torch.eye(hessian.shape[1], device=hessian.device)
    weights = {}
    for name, weight in family.weights.items():
        own = trained.state[name][start:].to(weight.device).double()
        more = torch.linalg.solve(damped, (own @ drift).mT).mT
        weights[name] = torch.cat([weight[:start], (own + more).float()])
    return replace(family, weights=weights)
