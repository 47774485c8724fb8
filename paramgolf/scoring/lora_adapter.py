"""An adapter set that learns: fresh adapters, AdamW on them, rows dropped when they are done."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paramgolf.model.adapters import AdapterSet, adapter_shapes
from paramgolf.model.network import Network, Pass
from paramgolf.scoring.config import LoraConfig


class LoraTrainer:
    """A fresh set of adapters for `rows` rows of a network whose own weights stay as they are.

    AdamW is elementwise, so each row learns from its own loss alone. Adapters, gradients and
    moments stay where they are in memory, of however many rows.
    """

    def __init__(self, network: Network, config: LoraConfig, rows: int) -> None:
        self._config, self._order = config, network.config.orders[-1]
        self._device = next(network.parameters()).device
        shapes = adapter_shapes(network.config, network.vocab_size, self._order, config.targets)
        self.adapters = AdapterSet(
            shapes,
            rank=config.rank,
            alpha=config.alpha,
            rows=rows,
            seed=config.seed,
            device=self._device,
        )
        leaves = self.adapters.parameters()
        # the gradient and both moments of each leaf, for all rows
        self._state = [[torch.zeros_like(leaf) for _ in range(3)] for leaf in leaves]
        self._steps = 0
        self._use_leaves()

    def options(self) -> Pass:
        """Return the options of a pass through these adapters."""
        return Pass(self._order, adapters=self.adapters.pairs())

    def step(self) -> None:
        """Take one step along the gradients of the leaves, and clear them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # they stay in their place
        self._steps += 1

    def keep(self, rows: int) -> None:
        """Go on with the first `rows` rows alone."""
        self.adapters.keep(rows)
        self._use_leaves()

    def renew(self, a: Mapping[str, Tensor] | None = None) -> None:
        """Begin anew with all rows, fresh or with the first matrices `a` of another set."""
        self.adapters.renew(a)
        for tensor in itertools.chain(*self._state):
            tensor.zero_()
        self._steps = 0
        self._use_leaves()

    def state(self) -> dict[str, Any]:
        """Return the adapters and their moments."""
        leaves = [leaf.detach() for leaf in self.adapters.parameters()]
        return {"leaves": leaves, "moments": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            for leaf, saved in zip(self.adapters.parameters(), state["leaves"], strict=True):
                leaf.copy_(saved)
        self.optimizer.load_state_dict(state["moments"])

    def _use_leaves(self) -> None:
        """Let a new optimizer step the present leaves, with gradients and moments as they are."""
        config, leaves = self._config, self.adapters.parameters()
        self.optimizer = torch.optim.AdamW(
            leaves,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.decay,
            fused=self._device.type == "cuda",
        )
        for leaf, state in zip(leaves, self._state, strict=True):
            leaf.grad, mean, square = (tensor[: len(leaf)] for tensor in state)
            step = torch.full((), float(self._steps), device=self._device)
            self.optimizer.state[leaf] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
