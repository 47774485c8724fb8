"""An adapter set that learns: fresh adapters, AdamW on them, rows dropped when they are done."""

from __future__ import annotations

import torch

from paramgolf.model.adapters import AdapterSet, adapter_shapes
from paramgolf.model.network import Network, Pass
from paramgolf.scoring.config import AdapterConfig


class Learner:
    """A fresh set of adapters for `rows` rows of a network whose own weights stay as they are.

    AdamW is elementwise, so each row learns from its own loss alone.
    """

    def __init__(self, network: Network, config: AdapterConfig, rows: int) -> None:
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
        self.optimiser = self._adamw()

    def options(self) -> Pass:
        """Return the options of a pass through these adapters."""
        return Pass(self._order, adapters=self.adapters.pairs())

    def step(self) -> None:
        """Take one step along the gradients of the leaves, and clear them."""
        self.optimiser.step()
        self.optimiser.zero_grad()

    def keep(self, rows: int) -> None:
        """Forget all but the first `rows` rows, those of the optimiser's state too."""
        before, state = self.adapters.parameters(), self.optimiser.state
        self.adapters.keep(rows)
        self.optimiser = self._adamw()
        for old, new in zip(before, self.adapters.parameters(), strict=True):
            if old in state:
                self.optimiser.state[new] = {
                    name: value if name == "step" else value[:, :rows].clone()
                    for name, value in state[old].items()
                }

    def _adamw(self) -> torch.optim.AdamW:
        config = self._config
        return torch.optim.AdamW(
            self.adapters.parameters(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.decay,
            fused=self._device.type == "cuda",
        )
