"""What changes while training: weights, optimiser moments, averaged weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramgolf.model.network import Network
from paramgolf.model.shapes import MATRICES, TABLES
from paramgolf.optim.muon import Muon
from paramgolf.optim.orthogonal import coefficients
from paramgolf.optim.schedule import Point, ema_decay, lr_multiplier, muon_momentum
from paramgolf.runtime import Ranks
from paramgolf.training.config import TrainConfig

Tensors = dict[str, Tensor]


class TrainState:
    """Network, optimisers and the exponential average of the weights, updated by one `step`.

    Matrices of the blocks take Muon; tables, and vectors with scalars, take AdamW at rates of
    their own. All ranks hold the same state.
    """

    def __init__(self, network: Network, config: TrainConfig, ranks: Ranks) -> None:
        self.network = network
        self._config = config
        self._ranks = ranks
        self._parameters = dict(network.named_parameters())
        steps = coefficients(config.muon_coefficients, config.muon_iterations)
        matrices = {name: self._parameters[name] for name in MATRICES}
        self._muon = Muon(matrices, steps, ranks, normalise_rows=config.muon_normalise_rows)
        self._adam = self._make_adam()
        self.average: Tensors = {n: p.detach().clone() for n, p in self._parameters.items()}

    def _make_adam(self) -> torch.optim.AdamW:
        c = self._config
        tables = [p for name, p in self._parameters.items() if name in TABLES]
        rest = [p for name, p in self._parameters.items() if name not in (*TABLES, *MATRICES)]
        groups = [
            {"params": tables, "peak_lr": c.token_lr, "weight_decay": c.token_decay},
            {"params": rest, "peak_lr": c.scalar_lr, "weight_decay": c.scalar_decay},
        ]
        return torch.optim.AdamW(
            groups, betas=(c.adam_beta1, c.adam_beta2), eps=c.adam_eps, fused=True
        )

    def zero_grad(self) -> None:
        """Set all gradients to zero; a parameter that a pass does not use keeps a zero gradient."""
        for p in self._parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()

    def step(self, at: Point) -> float:
        """Sum gradients over ranks, clip, update weights and average; return the rate's share."""
        self._reduce_gradients()
        if self._config.clip_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._config.clip_norm)
        multiplier = lr_multiplier(self._config, at)
        for group in self._adam.param_groups:
            group["lr"] = group["peak_lr"] * multiplier
        self._adam.step()
        self._muon.step(
            lr=self._config.matrix_lr * multiplier,
            decay=self._config.matrix_decay,
            momentum=muon_momentum(self._config, at.step),
        )
        self._update_average(ema_decay(self._config, at.step))
        return multiplier

    def _reduce_gradients(self) -> None:
        if self._ranks.world == 1:
            return
        grads = [p.grad for p in self._parameters.values() if p.grad is not None]
        flat = self._ranks.sum(torch.cat([g.flatten() for g in grads]))
        parts = flat.split([g.numel() for g in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        weights: list[Tensor] = list(self._parameters.values())
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def begin_recurrence(self) -> None:
        """Give untied repeats their layers' MLPs, in the weights and in the average."""
        self.network.untie_repeats()
        first = self.network.config.layers
        for name in ("up", "down"):
            self.average[name][first:].copy_(self._parameters[name].detach()[first:])

    def load_average(self) -> None:
        """Replace the weights by their average, for validation and the final model."""
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.copy_(self.average[name])

    def state(self) -> dict[str, object]:
        """Return all that `load` needs to go on as if nothing had happened."""
        return {
            "weights": {name: p.detach() for name, p in self._parameters.items()},
            "average": self.average,
            "momentum": self._muon.momentum,
            "adam": self._adam.state_dict(),
        }

    def load(self, state: dict[str, dict]) -> None:
        """Take over what `state` returned."""
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
            for name, buffer in self._muon.momentum.items():
                buffer.copy_(state["momentum"][name])
        self._adam.load_state_dict(state["adam"])
