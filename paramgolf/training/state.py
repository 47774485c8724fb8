"""What changes while training: weights, optimizer moments, averaged weights."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from paramgolf.model.network import Network
from paramgolf.model.plan import rows_by_phase
from paramgolf.model.shapes import FROZEN, MATRICES, MLP, PROJECTIONS, TABLES
from paramgolf.optim.muon import Muon, Variant
from paramgolf.optim.orthogonal import coefficients
from paramgolf.runtime import Runtime
from paramgolf.training.config import TrainConfig
from paramgolf.training.schedule import (
    Point,
    decay_multiplier,
    ema_decay,
    lr_multiplier,
    muon_momentum,
)

Tensors = dict[str, Tensor]
ALIGNED = 64  # numbers, by which a gradient begins: 256 bytes, as kernels for float32 like it


class Part(NamedTuple):
    """Rows of a parameter as an optimizer steps them: a leaf over the same memory."""

    name: str
    rows: slice
    phase: int  # the first phase of the layer orders that uses the rows
    leaf: nn.Parameter

    @property
    def key(self) -> str:
        """A name of its own."""
        return f"{self.name}.{self.phase}"


class TrainState:
    """Network, optimizers and the exponential average of the weights, updated by one `step`.

    Matrices of the blocks take Muon; tables, and vectors with scalars, take AdamW at rates of
    their own. All processes hold the same state.
    """

    def __init__(self, network: Network, config: TrainConfig, runtime: Runtime) -> None:
        self.network = network
        self._config = config
        self._runtime = runtime
        self._parameters = dict(network.named_parameters())
        self._mixes: dict[str, nn.Parameter] = {}
        if config.head_mixing:
            self._mix_heads()
        self._gradient, self._gradients = one_block(self._parameters)
        self._phase = 0
        self._parts = [part for name in self._parameters for part in self._parts_of(name)]
        self._matrices = MATRICES if config.muon_blocks_only else (*MATRICES, *PROJECTIONS)
        self._muon = Muon(
            {part.key: part.leaf for part in self._parts if part.name in self._matrices},
            coefficients(config.muon_coefficients, config.muon_iterations),
            runtime,
            normalize_rows=config.muon_normalise_rows,
            row_floor=config.muon_row_floor,
            dtype=getattr(torch, config.muon_dtype),
            variant=Variant(
                cautious=config.cautious_decay,
                rows=dict.fromkeys(
                    (part.key for part in self._parts if part.name in ("k", "v")),
                    config.muon_kv_heads * network.config.head_dim,
                ),
            ),
        )
        self._adam = self._make_adam()
        self.average: Tensors = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._averaged = 0  # weights that swa has taken

    def _mix_heads(self) -> None:
        """Let the passes see mixed heads, whose mixes are trained with the other parameters."""
        from paramgolf.training.head_mixing import identities, mixed_heads

        self._mixes = identities(self.network.config, self._runtime.device)
        self._parameters |= {f"{name}_mix": mix for name, mix in self._mixes.items()}
        mix_heads = functools.partial(mixed_heads, self._mixes)
        backend = dataclasses.replace(self.network.backend, mix_heads=mix_heads)
        self.network = self.network.with_backend(backend)

    def _parts_of(self, name: str) -> Iterator[Part]:
        """Yield what the optimizers see of a parameter: itself, or its rows by phase of training.

        Rows that no pass uses yet have no gradient, and so no optimizer step. With a zero gradient
        weight decay would shrink them to a few per cent before they are first used (pg#1204).
        """
        p = self._parameters[name]
        whole = slice(0, len(p)), 0
        for rows, phase in rows_by_phase(self.network.config).get(name, (whole,)):
            leaf = p if (rows, phase) == whole else nn.Parameter(p.detach()[rows])
            yield Part(name, rows, phase, leaf)

    def _make_adam(self) -> torch.optim.AdamW:
        c = self._config
        others = (*TABLES, *self._matrices, *FROZEN)
        tables = [part.leaf for part in self._parts if part.name in TABLES]
        rest = [part.leaf for part in self._parts if part.name not in others]
        betas = c.adam_beta1, c.adam_beta2
        scalar_betas = betas if c.scalar_beta2 is None else (c.adam_beta1, c.scalar_beta2)
        groups = [
            {"params": tables, "peak_lr": c.token_lr, "weight_decay": c.token_decay},
            {"params": rest, "peak_lr": c.scalar_lr, "weight_decay": c.scalar_decay}
            | {"betas": scalar_betas},
        ]
        return torch.optim.AdamW(groups, betas=betas, eps=c.adam_eps, fused=True)

    def zero_grad(self) -> None:
        """Set all gradients to zero; a parameter that a pass does not use keeps a zero gradient."""
        self._gradient.zero_()
        for name, p in self._parameters.items():
            p.grad = self._gradients[name]

    def step(self, at: Point, *, factor: float = 1.0) -> float:
        """Sum gradients over processes, clip, update; return the multiplier of the rates.

        It is that of the schedule times `factor`.
        """
        if self._config.clip_scope == "process":
            # a part of 1 / world of the mean gradient is clipped as if it were the whole
            self._clip(self._config.clip_norm / self._runtime.world)
        # one collective: each of forty would wait for all processes, and most are small
        self._runtime.sum(self._gradient)
        if self._config.clip_scope == "global":
            self._clip(self._config.clip_norm)
        for part in self._parts:
            grad = self._parameters[part.name].grad
            if part.leaf.grad is not grad and grad is not None:
                part.leaf.grad = grad[part.rows] if part.phase <= self._phase else None
        multiplier = lr_multiplier(self._config, at) * factor
        for group in self._adam.param_groups:
            group["lr"] = group["peak_lr"] * multiplier
        self._muon.step(
            lr=self._config.matrix_lr * multiplier,
            decay=self._config.matrix_decay * decay_multiplier(self._config, at),
            momentum=muon_momentum(self._config, at.step),
            during_gather=self._adam.step,
        )
        self._update_average(at, multiplier)
        return multiplier

    def network_at(self, at: Point) -> Network:
        """Return the network of the passes at `at`: one of rounded matrices where late QAT is due.

        Its parameters are those of `network`.
        """
        multiplier = lr_multiplier(self._config, at)
        if multiplier >= self._config.qat_below:
            return self.network
        fake_quant = self._rounding(multiplier)
        backend = dataclasses.replace(self.network.backend, fake_quant=fake_quant)
        return self.network.with_backend(backend)

    def _rounding(self, multiplier: float) -> Callable[[str, Tensor], Tensor]:
        from paramgolf.optim.fake_quant import soft_round, straight_through

        c = self._config
        sharpness = 16 ** (1 - multiplier / c.qat_below)  # 1 at the start, 16 at the end
        hard = c.qat_rounding == "ste"

        def rounded(name: str, w: Tensor) -> Tensor:
            bits = c.qat_mlp_bits if name in MLP else c.qat_bits
            return straight_through(w, bits) if hard else soft_round(w, bits, sharpness)

        return rounded

    def _clip(self, norm: float) -> None:
        if norm > 0:
            nn.utils.clip_grad_norm_(self._parameters.values(), norm)

    @torch.no_grad()
    def _update_average(self, at: Point, multiplier: float) -> None:
        if self._config.average == "ema":
            for decay, names in self._ema_groups().items():
                update = swa_utils.get_ema_multi_avg_fn(ema_decay(self._config, at.step, decay))
                averages = [self.average[name] for name in names]
                update(averages, [self._parameters[name] for name in names], None)
        elif multiplier < self._config.swa_below and at.step % self._config.swa_every == 0:
            averages, weights = list(self.average.values()), list(self._parameters.values())
            swa_utils.get_swa_multi_avg_fn()(averages, weights, self._averaged)
            self._averaged += 1

    def _ema_groups(self) -> dict[float, list[str]]:
        """Return the names of the parameters whose averages decay alike, by their decay."""
        c, groups = self._config, defaultdict[float, list[str]](list)
        for name in self._parameters:
            others = c.token_ema_decay if name in TABLES else c.scalar_ema_decay
            own = None if name in self._matrices else others
            groups[c.ema_decay if own is None else own].append(name)
        return groups

    def enter_phase(self, phase: int) -> None:
        """Begin a phase of the layer orders: rows that it uses learn, untied repeats are copied."""
        if self._phase == 0 < phase and self.network.config.untied_repeats:
            self.network.untie_repeats()
        self._phase = phase

    def load_average(self) -> None:
        """Replace the weights by their average, for validation and the final model.

        Mixes of heads are folded into them.
        """
        # a rate that never fell so far: the last weights are the model
        if self._config.average != "swa" or self._averaged > 0:
            with torch.no_grad():
                for name, p in self._parameters.items():
                    p.copy_(self.average[name])
        if self._mixes:
            from paramgolf.training.head_mixing import fold

            fold(self._mixes, self._parameters)

    def state(self) -> dict[str, object]:
        """Return all that `load` needs for an exact resume."""
        return {
            "weights": {name: p.detach() for name, p in self._parameters.items()},
            "average": self.average,
            "momentum": self._muon.momentum,
            "adam": self._adam.state_dict(),
            "averaged": self._averaged,
            "phase": self._phase,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
            for name, buffer in self._muon.momentum.items():
                buffer.copy_(state["momentum"][name])
        self._adam.load_state_dict(state["adam"])
        self._averaged = state["averaged"]
        self._phase = state["phase"]


def one_block(parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensors]:
    """Return zeros, and views of them that are shaped as the parameters, which do not overlap."""
    sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in parameters.values()]
    block = next(iter(parameters.values())).new_zeros(sum(sizes))
    pairs = zip(parameters.items(), block.split(sizes), strict=True)
    return block, {name: part[: p.numel()].view_as(p) for (name, p), part in pairs}
