"""Low-rank adapters (LoRA) trained by AdamW, one per row of a batch.

Only adapters are trained. So each document can have its own weights at the cost of a few low-rank
products, and to forget what was learned takes only a new A and a B of zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paramgolf.model.adapters import HEAD, AdapterSet, adapter_shapes
from paramgolf.model.block import Pair
from paramgolf.model.network import Midway, Network, Pass
from paramgolf.scoring.config import LoraConfig


class LoraTrainer:
    """A fresh set of adapters for `rows` rows of a network whose own weights stay as they are.

    AdamW is elementwise, so each row learns from its own loss alone. Adapters, gradients and
    moments keep their place in memory when rows are dropped. `steps` counts the steps since the
    adapters were fresh. The first `below` layers of the order have no adapters.

    All rows start from the same A, where the published systems draw one for each row: a document's
    scores must not depend on its row or on the other documents of the batch.
    """

    def __init__(self, network: Network, config: LoraConfig, rows: int) -> None:
        self._config, self._order = config, network.config.orders[-1]
        self._device = next(network.parameters()).device
        # the layers of the order that lie below all adapters
        self.below = max(0, len(self._order) - (config.last_layers or len(self._order)))
        owners = upper = self._order[self.below :]
        if config.per_layer:
            owners = tuple(sorted(set(upper)))
        shapes = adapter_shapes(network.config, network.vocab_size, owners, config.targets)
        # alpha / rank scales the output, so that a rank can be changed and the rate kept
        self.adapters = AdapterSet(
            shapes,
            rank=config.rank,
            alpha=config.alpha,
            rows=rows,
            seed=config.seed,
            device=self._device,
        )
        # a layer's pair is taken at each of its visits, so that its gradients are added
        self._visits = None
        if config.per_layer:
            visits = [owners.index(layer) for layer in upper]
            self._visits = torch.tensor(visits, device=self._device)
        self._first = self._draw_first()
        leaves = self.adapters.parameters()
        # the gradient and both moments of each leaf, for all rows
        self._state = [[torch.zeros_like(leaf) for _ in range(3)] for leaf in leaves]
        self.renew()

    def options(self, midway: Midway | None = None) -> Pass:
        """Return the options of a pass through these adapters, from `midway` on."""
        pairs = self.adapters.pairs()
        if self._visits is not None:
            pairs = {
                name: pair if name == HEAD else Pair(*(x[:, self._visits] for x in pair))
                for name, pair in pairs.items()
            }
        return Pass(self._order, adapters=pairs, midway=midway)

    def step(self) -> None:
        """Take one step along the gradients of the leaves, and clear them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # they stay in their place
        self.steps += 1

    def keep(self, rows: int) -> None:
        """Go on with the first `rows` rows alone."""
        self.adapters.keep(rows)
        self._use_leaves()

    def renew(self, a: Mapping[str, Tensor] | None = None) -> None:
        """Start afresh with all rows: B is zero, A is fresh or, if given, the matrices `a`.

        With B zero an adapter changes nothing until its first step, whatever A is. A warm A keeps
        directions that were useful before, but not what was learned along them.
        """
        self.adapters.renew(a or self._first)
        for tensor in itertools.chain(*self._state):
            tensor.zero_()
        self.steps = 0
        self._use_leaves()

    def state(self) -> dict[str, Any]:
        """Return the adapters and their moments."""
        leaves = [leaf.detach() for leaf in self.adapters.parameters()]
        return {"leaves": leaves, "moments": self.optimizer.state_dict(), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            for leaf, saved in zip(self.adapters.parameters(), state["leaves"], strict=True):
                leaf.copy_(saved)
        self.optimizer.load_state_dict(state["moments"])
        self.steps = state["steps"]

    def _draw_first(self) -> dict[str, Tensor] | None:
        """Return the A of one row where it is normal; the set itself draws uniform ones."""
        if self._config.init_std is None:
            return None
        generator = torch.Generator().manual_seed(self._config.seed)
        return {
            name: self._config.init_std * torch.randn(a[:1].shape, generator=generator).to(a.device)
            for name, a in self.adapters.a.items()
        }

    def _use_leaves(self) -> None:
        """Let a new optimizer step the present leaves, with gradients and moments as they are."""
        config, leaves = self._config, self.adapters.parameters()
        self.optimizer = torch.optim.AdamW(
            leaves,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.decay,
            fused=self._device.type == "cuda",  # one launch for all leaves
        )
        # recorded passes hold the addresses of gradients and read the leaves, so both are views of
        # tensors that are never allocated anew
        for leaf, state in zip(leaves, self._state, strict=True):
            leaf.grad, mean, square = (tensor[: len(leaf)] for tensor in state)
            step = torch.full((), float(self.steps), device=self._device)
            self.optimizer.state[leaf] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
