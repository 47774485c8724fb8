"""How much the loss minds errors in the rows of each matrix, measured on calibration text.

Let w be a row, e a small error in it, and g the gradient of a token's loss with respect to w. To
second order the expected loss grows by e F e^T / 2, with F = E[g g^T] the row's Fisher information
(targets drawn from the model itself, for which the first order vanishes). A row's output y = w x
gives g = d x, with d = dL/dy, and if d and x do not depend on each other (K-FAC, arXiv 1503.05671),

    F = E[d^2] E[x x^T] = E[d^2] H,    so that    E[|g|^2] = E[d^2] tr(H).

What an error costs is then e H e^T times E[|g|^2] / (2 tr(H)): the row's sensitivity. Errors e and
f in rows i and j cost e H f^T E[d_i d_j] together, beside what each costs alone. So with S_ij the
root of the product of two sensitivities, times the correlation of d_i and d_j, all errors E of a
matrix cost tr(S E H E^T). The diagonal is best told by gradients of rows, which leave out little of
F; the correlations need d at every token: a text has one gradient, and many tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from paramgolf.model.network import Network, Pass
from paramgolf.quant.generate import draw_tokens
from paramgolf.quant.trained import SENSITIVITY, families, stacked
from paramgolf.runtime import Runtime

SMALLEST = torch.finfo(torch.float32).tiny


def measure(
    network: Network,
    rows: Iterable[tuple[Tensor, Tensor]],
    hessians: dict[str, Tensor],
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Return what errors' E H E^T cost, S in nats per token: float32 [layers, rows, rows].

    Keys are NAME.sensitivity; of the embedding there is the diagonal alone, [1, rows]. `rows` are
    pairs of text [1, T] int64 and draws [T, 1] in 0..1, on the device, by which targets are chosen.
    Rows of the embedding share its whole in proportion to how likely the model finds their tokens:
    of most tokens a text this short holds none.
    """
    known = families(dict(network.named_parameters()))
    parameters = {name: network.get_parameter(name) for names in known.values() for name in names}
    sums = {name: torch.zeros_like(stacked(p)[..., 0]) for name, p in parameters.items()}
    likely = torch.zeros(network.vocab_size, device=runtime.device)
    tokens = torch.zeros((), dtype=torch.float64, device=runtime.device)
    outputs = OutputGradients(parameters, known)
    plain = Pass(order=network.config.orders[-1])
    for text, draws in rows:
        # one text at a time: gradients of several would add up before they are squared
        with torch.no_grad():
            chances = torch.softmax(network.logits(text, plain)[0], dim=-1)
            likely += chances.sum(0)
            targets = draw_tokens(chances.double(), draws)
        # the square of a sum over tokens: in expectation the sum of squares, as the gradients of
        # drawn targets have mean 0 given the text before them
        with outputs:
            shown = Pass(order=plain.order, tap=outputs.tap)
            loss = network.nll(text, targets.T, shown).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += stacked(gradient.float()).square().sum(-1)
        tokens += text.numel()
    total = runtime.sum(tokens).item()
    found = {name: runtime.sum(value) / total for name, value in sums.items()}
    likely = runtime.sum(likely) / total
    found["embedding"] = found["embedding"].sum() * likely.unsqueeze(0)
    costs = {
        name: found[name] / 2 / trace(hessians[family]).unsqueeze(1)
        for family, names in known.items()
        for name in names
    }
    for name, products in outputs.products.items():
        costs[name] = _coupled(costs[name], runtime.sum(products))
    return {f"{name}{SENSITIVITY}": cost for name, cost in costs.items()}


class OutputGradients(TorchFunctionMode):
    """Sums of d d^T over tokens and passes, d the gradients of matrices' outputs.

    A pass inside the block, whose tap this is, makes them as it is differentiated.

    Attributes:
        products: the sums by parameter, [layers, rows, rows]; not of the embedding.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], known: Mapping[str, tuple[str, ...]]
    ) -> None:
        super().__init__()
        self._known, self._next = known, ("", 0, torch.empty(0))
        self._parameters = {name: p.detach() for name, p in parameters.items()}
        self.products = {
            name: p.new_zeros(*p.shape[:2], p.shape[1])
            for name, p in self._parameters.items()
            if name != "embedding"
        }

    def tap(self, family: str, index: int, x: Tensor) -> None:
        """Note whose input comes next (model.network.Pass)."""
        self._next = family, index, x

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and watch the output of the product that the tap foretold."""
        y = func(*args, **(kwargs or {}))
        family, index, x = self._next
        if func is F.linear and args[0] is x:
            self._next = "", 0, torch.empty(0)
            names, weight = self._known[family], args[1].detach().float()
            if len(weight) < sum(self._parameters[name].shape[1] for name in names):
                names = names[-1:]  # values that have an input of their own
            y.register_hook(lambda d: self._add(names, index, weight, d))
        return y

    def _add(self, names: tuple[str, ...], index: int, weight: Tensor, d: Tensor) -> None:
        first = 0
        for name in names:
            own = self._parameters[name][index]
            part = slice(first, first + len(own))
            first += len(own)
            # a matrix's rows may be scaled: W' = diag(a) W, and its gradient is that of W' times a
            scale = (weight[part] * own).sum(1) / own.square().sum(1).clamp_min(SMALLEST)
            rows = d.flatten(0, -2)[:, part].float() * scale
            self.products[name][index].addmm_(rows.T, rows)


def _coupled(costs_NR: Tensor, products_NRR: Tensor) -> Tensor:
    """Return S of sensitivities and of the sums of d d^T."""
    roots = products_NRR.diagonal(dim1=1, dim2=2).sqrt().clamp_min(SMALLEST)
    correlation = products_NRR / roots.unsqueeze(2) / roots.unsqueeze(1)
    correlation.diagonal(dim1=1, dim2=2).fill_(1)
    each = costs_NR.sqrt()
    return each.unsqueeze(2) * each.unsqueeze(1) * correlation


def trace(hessian_NCC: Tensor) -> Tensor:
    """Return the trace of each Hessian, at least the smallest positive number."""
    traces = hessian_NCC.diagonal(dim1=1, dim2=2).sum(1)
    return traces.clamp_min(torch.finfo(traces.dtype).tiny)
