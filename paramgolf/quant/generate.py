"""Text that the model writes itself, with every layer's keys and values kept.

The network is the one of training; its backend has another attention, one that remembers. Each
step passes the newest token and the two before it: smearing looks one token back, at an embedding
that with bigrams looks one further; all else in the network looks at one position alone. Shapes are
the same at each step, and nothing waits for the device: on a GPU the step is recorded once and
replayed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgolf.model.attention import Segments, rotary_table
from paramgolf.model.backend import REFERENCE
from paramgolf.model.cuda_graph import record
from paramgolf.model.network import Network, Pass
from paramgolf.model.operations import rotate

SEEN = 3  # tokens of a pass
WARM_UPS = 3  # steps before a recording, as CUDA graphs ask for


@dataclass(frozen=True, slots=True)
class Writer:
    """The state of B texts of up to T tokens; all on the network's device.

    `text` [B, T] int64, `place` the position of the newest token (0-dimensional, int64), `draws`
    [B, T] float64 in 0..1: by draws[t] the token at t is chosen.
    """

    network: Network
    text: Tensor
    place: Tensor
    draws: Tensor
    temperature: float

    def step(self) -> None:
        """Write the next token of each text, and go there."""
        places = self.place + torch.arange(1 - SEEN, 1, device=self.text.device)
        seen = self.text.index_select(1, places.clamp_min(0))
        options = Pass(order=self.network.config.orders[-1])
        logits = self.network.logits(seen, options, part=slice(-1, None))[:, 0]
        chances = torch.softmax(logits.double() / self.temperature, dim=-1)
        self.place.add_(1)
        draw = self.draws.index_select(1, self.place.view(1))
        self.text.index_copy_(1, self.place.view(1), pick(chances, draw))


class Memory:
    """Attention that remembers the keys and values of each of its calls in a pass.

    It attends to every position up to the newest, which by the network's reckoning is position
    SEEN - 1: the turn that is missing is added to both query and key.
    """

    def __init__(self, network: Network, batch: int, length: int, place: Tensor) -> None:
        config, device = network.config, place.device
        calls = len(network.config.orders[-1])
        shape = calls, batch, config.kv_heads, length, config.head_dim
        self._keys = torch.zeros(shape, dtype=network.backend.dtype, device=device)
        self._values = torch.zeros_like(self._keys)
        self._place, self._calls = place, 0
        self._positions = torch.arange(length, device=device)
        trained, base = config.rope_trained_length, config.rope_base

        def table(size: int) -> Tensor:
            cos, sin = rotary_table(
                size, config.rope_dims, base, trained_length=trained, device=device
            )
            return torch.complex(cos, sin)

        turns = table(length) * table(SEEN)[-1].conj()
        self._cos, self._sin = turns.real.contiguous(), turns.imag.contiguous()

    def begin(self) -> None:
        """Tell that a pass begins."""
        self._calls = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
        """Return attention [B, SEEN, H, D]: that of the newest position, at all of them."""
        assert segments is None
        keys, values = self._keys[self._calls], self._values[self._calls]
        self._calls += 1
        at = self._place.view(1)
        cos, sin = self._cos.index_select(0, at), self._sin.index_select(0, at)
        query, key = rotate(q[:, -1:], cos, sin), rotate(k[:, -1:], cos, sin)
        keys.index_copy_(2, at, key.transpose(1, 2).to(keys.dtype))
        values.index_copy_(2, at, v[:, -1:].transpose(1, 2).to(values.dtype))
        grouped = query.reshape(len(q), keys.shape[1], -1, q.shape[-1])
        scores = (grouped @ keys.mT).float() * q.shape[-1] ** -0.5
        scores = scores.masked_fill(self._positions > self._place, -torch.inf)
        y = torch.softmax(scores, dim=-1).to(values.dtype) @ values
        return y.reshape(len(q), 1, *q.shape[2:]).expand_as(q).contiguous()


@torch.no_grad()
def write(network: Network, draws: Tensor, bos: int, temperature: float) -> Tensor:
    """Return texts of T tokens, int64 [B, T] on the network's device, which begin with `bos`.

    `draws` [B, T] float64 choose the tokens; the first of each row is not read.
    """
    batch, length = draws.shape
    device = draws.device
    text = torch.full((batch, length), bos, dtype=torch.int64, device=device)
    place = torch.zeros((), dtype=torch.int64, device=device)
    memory = Memory(network, batch, length, place)
    # fused kernels are made for long rows
    backend = dataclasses.replace(network.backend, attend=memory, operations=REFERENCE)
    writer = Writer(network.with_backend(backend), text, place, draws, temperature)

    def step() -> None:
        memory.begin()
        writer.step()

    if device.type == "cuda" and length > WARM_UPS + 1:
        graph, _ = record(step, warm_ups=WARM_UPS)
        place.zero_()  # what the warm-up wrote is written over
        step = graph.replay
    for _ in range(length - 1):
        step()
    return text


def pick(chances_BV: Tensor, draws_B1: Tensor) -> Tensor:
    """Return for each row [B, 1] the token whose slice of the summed chances holds its draw."""
    sums = chances_BV.cumsum(-1)
    found = torch.searchsorted(sums, draws_B1 * sums[:, -1:], right=True)
    return found.clamp_max(sums.shape[1] - 1)
