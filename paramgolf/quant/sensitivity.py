"""How much an error in each row of each matrix adds to the loss, measured on calibration text.

Let w be a row, e a small error in it, and g the gradient of a token's loss with respect to w. To
second order the expected loss grows by e F e^T / 2, with F = E[g g^T] the row's Fisher information
(targets drawn from the model itself, for which the first order vanishes). A row's output y = w x
gives g = (dL/dy) x, and if dL/dy and x do not depend on each other (K-FAC, arXiv 1503.05671),

    F = E[(dL/dy)^2] E[x x^T] = E[(dL/dy)^2] H,    so that    E[|g|^2] = E[(dL/dy)^2] tr(H).

What an error costs is then e H e^T times E[|g|^2] / (2 tr(H)): the row's sensitivity.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from paramgolf.model.head import cross_entropy
from paramgolf.model.network import Network, Pass
from paramgolf.quant.generate import draw_tokens
from paramgolf.quant.trained import FAMILIES, SENSITIVITY, stacked
from paramgolf.runtime import Runtime


def measure(
    network: Network,
    rows: Iterable[tuple[Tensor, Tensor]],
    hessians: dict[str, Tensor],
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Return what an error's e H e^T in each row costs, nats per token: float32 [layers, rows].

    Keys are NAME.sensitivity. `rows` are pairs of text [1, T] int64 and draws [T, 1] in 0..1, on
    the device, by which targets are sampled. The embedding's sum is shared among its rows by the
    mean probability of their tokens, since most tokens do not occur in texts this short.
    """
    options = Pass(order=network.config.orders[-1])
    parameters = {
        name: network.get_parameter(name) for names in FAMILIES.values() for name in names
    }
    sums = {name: torch.zeros_like(stacked(p)[..., 0]) for name, p in parameters.items()}
    likely = torch.zeros(network.vocab_size, device=runtime.device)
    tokens = torch.zeros((), dtype=torch.float64, device=runtime.device)
    for text, draws in rows:
        # one text at a time: gradients of several would add up before they are squared
        logits = network.logits(text, options)
        probabilities = torch.softmax(logits.detach()[0], dim=-1)
        likely += probabilities.sum(0)
        targets = draw_tokens(probabilities.double(), draws)
        # the square of a sum over tokens: in expectation the sum of squares, as the gradients of
        # drawn targets have mean 0 given the text before them
        loss = cross_entropy(logits, targets.T).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += stacked(gradient.float()).square().sum(-1)
        tokens += text.numel()
    total = runtime.sum(tokens).item()
    found = {name: runtime.sum(value) / total for name, value in sums.items()}
    likely = runtime.sum(likely) / total
    found["embedding"] = found["embedding"].sum() * likely.unsqueeze(0)
    return {
        f"{name}{SENSITIVITY}": found[name] / 2 / trace(hessians[family]).unsqueeze(1)
        for family, names in FAMILIES.items()
        for name in names
    }


def trace(hessian_NCC: Tensor) -> Tensor:
    """Return the trace of each Hessian, at least the smallest positive number."""
    traces = hessian_NCC.diagonal(dim1=1, dim2=2).sum(1)
    return traces.clamp_min(torch.finfo(traces.dtype).tiny)
