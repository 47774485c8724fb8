"""Muon: momentum, then an orthogonalized update, for stacks of matrices; shared over processes.

Of the singular value decomposition of the (Nesterov) direction G = U S V^T Muon steps along U V^T.
That is steepest descent where a step is measured by its largest singular value, how far it can
change a layer's output, and not by the squares of its entries as in SGD. Gradients of matrices have
a few large singular values and many small ones; now all directions move alike, so that what is rare
in the data is learned sooner. The update's size no longer depends on the gradient's, and one
learning rate serves all shapes, up to the factor sqrt(max(1, rows / cols)).

It is not for what is no linear map of dense inputs: embeddings and heads, whose rows are seen one
at a time, hashed tables, vectors and scalars. Those take AdamW (training/state.py).

Why not torch.optim.Muon, which came with torch 2.9: it takes matrices one at a time, where ours are
stacked over layers and share shapes with their transposes, so that a step is a few batched
products; it does not share the iterations over processes; and it has no row normalization
(MuonEq-R, pg#1260), which divides each row of the direction by its length before the iteration.

Source: Keller Jordan et al. (2024), kellerjordan.github.io/posts/muon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paramgolf.optim.orthogonal import Coefficients, orthogonalize
from paramgolf.runtime import Runtime

# torch 2.13 gave it another name, and warns of the older one
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Variant(NamedTuple):
    """Where Muon departs from its plain form.

    Attributes:
        cautious: decay acts on those entries alone that the update brings nearer to 0.
        rows: so many rows of a parameter at a time are a matrix of their own; 0: all of them.
    """

    cautious: bool = False
    rows: Mapping[str, int] = MappingProxyType({})


PLAIN = Variant()


class Muon:
    """Optimizer of parameters [n, out, in] or [out, in].

    `normalize_rows` divides each row of the direction by its length first; `row_floor` is added to
    the row's sum of squares (pg#1392). `dtype` is that of gradients and momentum.

    All processes hold all momentum and share the iterations. The updates of one group of parameters
    are gathered while the next group is iterated.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        polynomials: tuple[Coefficients, ...],
        runtime: Runtime,
        *,
        normalize_rows: bool,
        row_floor: float = 0.0,
        dtype: torch.dtype = torch.float32,
        variant: Variant = PLAIN,
    ) -> None:
        self._parameters = dict(parameters)
        self._polynomials = polynomials
        self._runtime = runtime
        self._normalize_rows = normalize_rows
        self._row_floor = row_floor
        self._variant = variant
        self.momentum = {
            name: torch.zeros_like(self._stack(name, p), dtype=dtype)
            for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def step(
        self, *, lr: float, decay: float, momentum: float, during_gather: Callable[[], object]
    ) -> None:
        """Update every parameter that has a gradient: p <- (1 - lr decay) p - lr update.

        `during_gather` is called while updates are gathered; it must leave these parameters alone.
        """
        # all groups are under way before the first is waited for
        begun = []
        for names in self._groups():
            stack = torch.cat([self._direction(name, momentum) for name in names])
            begun.append((names, *self._orthogonalize(stack)))
        during_gather()
        for names, updates, gathering in begun:
            if gathering:
                gathering.wait()
            counts = [len(self.momentum[name]) for name in names]
            for name, update in zip(names, updates[: sum(counts)].split(counts), strict=True):
                self._apply(name, update, lr, decay)

    def _groups(self) -> list[list[str]]:
        """Name the parameters of each shape, transposes of one another together.

        The largest group comes first: the others' iterations take longer than to gather it.
        """
        # (rows, cols) sorted: a matrix and another one's transpose go in one stack
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, p in self._parameters.items():
            if p.grad is None:  # no pass uses it yet
                continue
            groups.setdefault(tuple(sorted(self.momentum[name].shape[-2:])), []).append(name)
        sizes = {n: p.numel() for n, p in self._parameters.items()}
        return sorted(groups.values(), key=lambda names: -sum(sizes[n] for n in names))

    def _direction(self, name: str, momentum: float) -> Tensor:
        """Return the Nesterov direction [n, rows, cols], rows <= cols, in the compute dtype.

        With the gradient g and the buffer m <- mu m + g it is g + mu m.
        """
        buffer, gradient = self.momentum[name], self._parameters[name].grad
        assert gradient is not None
        grad = self._stack(name, gradient).to(buffer.dtype)
        # a buffer is a sum, not a mean: the iteration divides its length out anyway
        direction = grad.add(buffer.mul_(momentum).add_(grad), alpha=momentum)
        if self._normalize_rows:
            length = direction.norm(dim=-1, keepdim=True)
            floor = torch.full_like(length, self._row_floor**0.5)
            # hypot(|row|, sqrt(floor)) is sqrt(|row|^2 + floor)
            direction /= torch.hypot(length, floor).clamp_min(1e-7)
        if direction.shape[-2] > direction.shape[-1]:
            direction = direction.mT
        # bfloat16 on a GPU: tensor cores, and half of what is gathered
        return direction.to(self._runtime.compute_dtype)

    def _orthogonalize(self, G: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Orthogonalize a stack, each process a part; begin to gather the parts, of equal length.

        Returns the updates, followed by padding, and what to wait for before they are read.
        """
        runtime = self._runtime
        if runtime.world == 1:
            return orthogonalize(G, self._polynomials), None
        # ceil(n / processes): equal parts, as the collective wants them; the last may be padding
        each = -(-len(G) // runtime.world)
        part = G[each * runtime.rank : each * (runtime.rank + 1)]
        padded = G.new_zeros(each, *G.shape[1:])
        padded[: len(part)] = orthogonalize(part, self._polynomials)
        whole = G.new_empty(each * runtime.world, *G.shape[1:])
        return whole, all_gather(whole, padded, async_op=True)

    def _apply(self, name: str, update: Tensor, lr: float, decay: float) -> None:
        p = self._parameters[name]
        rows, cols = self.momentum[name].shape[-2:]
        if rows > cols:  # it was iterated as its transpose
            update = update.mT
        update = update.reshape(p.shape).to(p.dtype)
        if self._variant.cautious:
            p.addcmul_(p, (update * p > 0).to(p.dtype), value=-lr * decay)
        else:
            p.mul_(1 - lr * decay)
        # a tall matrix has its updates scaled up: U V^T has rows of length sqrt(cols / rows) then
        p.add_(update, alpha=-lr * max(1, rows / cols) ** 0.5)

    def _stack(self, name: str, x: Tensor) -> Tensor:
        """Return a view of x, shaped as a parameter, as a stack of the matrices that it holds."""
        return x.detach().view(-1, self._variant.rows.get(name) or x.shape[-2], x.shape[-1])
