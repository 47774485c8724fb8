"""Muon: momentum, then an orthogonalised update, for stacks of matrices; shared out over processes.

The method is for matrices inside the blocks; tables, vectors and scalars take AdamW. Source:
Jordan et al. (2024); row normalisation is MuonEq-R (#1260).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paramgolf.optim.orthogonal import Coefficients, orthogonalise
from paramgolf.runtime import Runtime


class Muon:
    """Optimiser of parameters [n, out, in] or [out, in].

    `normalise_rows` divides each row of the update by its length first; `row_floor` is added to the
    row's sum of squares (pg#1392). `dtype` is that of gradients and momentum.

    All processes hold all momentum and share the iterations. What one group comes to is
    gathered while the next is iterated.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        steps: tuple[Coefficients, ...],
        runtime: Runtime,
        *,
        normalise_rows: bool,
        row_floor: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._parameters = dict(parameters)
        self._steps = steps
        self._runtime = runtime
        self._normalise_rows = normalise_rows
        self._row_floor = row_floor
        self.momentum = {
            name: torch.zeros_like(_stack(p), dtype=dtype) for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def step(
        self, *, lr: float, decay: float, momentum: float, meanwhile: Callable[[], object]
    ) -> None:
        """Update every parameter that has a gradient: p <- (1 - lr decay) p - lr update.

        `meanwhile` is called while updates are gathered; it must leave these parameters alone.
        """
        begun = []
        for names in self._groups():
            wide = torch.cat([self._direction(name, momentum) for name in names])
            begun.append((names, *self._orthogonalise(wide)))
        meanwhile()
        for names, whole, gathering in begun:
            if gathering:
                gathering.wait()
            counts = [len(self.momentum[name]) for name in names]
            for name, update in zip(names, whole[: sum(counts)].split(counts), strict=True):
                self._apply(self._parameters[name], update, lr, decay)

    def _groups(self) -> list[list[str]]:
        """Name the parameters of each shape, transposes of one another together.

        The largest group comes first: the others' iterations take longer than to gather it.
        """
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, p in self._parameters.items():
            if p.grad is None:  # no pass uses it yet
                continue
            groups.setdefault(tuple(sorted(p.shape[-2:])), []).append(name)
        sizes = {n: p.numel() for n, p in self._parameters.items()}
        return sorted(groups.values(), key=lambda names: -sum(sizes[n] for n in names))

    def _direction(self, name: str, momentum: float) -> Tensor:
        """Return the Nesterov direction, rows <= cols, in the dtype of the iteration."""
        buffer, found = self.momentum[name], self._parameters[name].grad
        assert found is not None
        grad = _stack(found).to(buffer.dtype)
        buffer.mul_(momentum).add_(grad)
        direction = grad.add(buffer, alpha=momentum)
        if self._normalise_rows:
            length = direction.norm(dim=-1, keepdim=True)
            floor = torch.full_like(length, self._row_floor**0.5)
            direction /= torch.hypot(length, floor).clamp_min(1e-7)
        if direction.shape[-2] > direction.shape[-1]:
            direction = direction.mT
        return direction.to(self._runtime.compute_dtype)

    def _orthogonalise(self, G: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Orthogonalise a stack, each rank a part; begin to gather the parts, of equal length.

        Returns the updates, followed by padding, and what to wait for before they are read.
        """
        runtime = self._runtime
        if runtime.world == 1:
            return orthogonalise(G, self._steps), None
        each = -(-len(G) // runtime.world)
        part = G[each * runtime.rank : each * (runtime.rank + 1)]
        mine = G.new_zeros(each, *G.shape[1:])
        mine[: len(part)] = orthogonalise(part, self._steps)
        whole = G.new_empty(each * runtime.world, *G.shape[1:])
        return whole, dist.all_gather_into_tensor(whole, mine, async_op=True)

    def _apply(self, p: nn.Parameter, update: Tensor, lr: float, decay: float) -> None:
        rows, cols = p.shape[-2:]
        if rows > cols:
            update = update.mT
        update = update.reshape(p.shape)
        p.mul_(1 - lr * decay).add_(update.to(p.dtype), alpha=-lr * max(1, rows / cols) ** 0.5)


def _stack(x: Tensor) -> Tensor:
    """Return a view of x with three dimensions: one matrix is a stack of one."""
    return x.detach().view(-1, *x.shape[-2:])
