"""Generate text with the model itself, with a key-value cache.

The network is the one of training, with a backend whose attention keeps keys and values. Each step
passes the newest token and the two before it, because smearing needs the embedding of the token
before, and with bigrams that embedding needs one token more. All else but attention looks at a
single position. Every step has the same shapes and none waits for the device, so that on a GPU the
step is recorded once and replayed.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from paramgolf.model.attention import Segments, rotary_table
from paramgolf.model.backend import REFERENCE
from paramgolf.model.cuda_graph import record
from paramgolf.model.network import Network, Pass
from paramgolf.model.operations import rotate

SEEN = 3  # tokens of a pass
SLICES = 2.0**40  # probabilities are rounded down to multiples of 1 / SLICES
WARM_UPS = 3  # steps before a recording, as CUDA graphs ask for


class KeyValueCache:
    """Attention that keeps the keys and values of each of its calls in a pass.

    The newest token attends to all positions up to its own, `position` (0-dimensional, int64). The
    network rotates its query and key as at position SEEN - 1, the last of the pass. Rotations add
    up, so here both are rotated by the difference to `position`.
    """

    def __init__(self, network: Network, length: int, position: Tensor) -> None:
        config = network.config
        self._length, self._position, self._dtype = length, position, network.backend.dtype
        self._keys: list[Tensor] = []  # [B, K, T, D] of each call, made at the first pass
        self._values: list[Tensor] = []
        self._call = 0
        self._positions = torch.arange(length, device=position.device)
        trained, base = config.rope_trained_length, config.rope_base

        def table(size: int) -> Tensor:
            cos, sin = rotary_table(
                size, config.rope_dims, base, trained_length=trained, device=position.device
            )
            return torch.complex(cos, sin)

        missing = table(length) * table(SEEN)[-1].conj()
        self._cos, self._sin = missing.real.contiguous(), missing.imag.contiguous()

    def begin(self) -> None:
        """Begin a pass: the next call is that of its first layer."""
        self._call = 0

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Segments | None = None,
        *,
        own_term: bool = True,
    ) -> Tensor:
        """Return attention [B, SEEN, H, D]: that of the newest position, at all of them.

        Without the own term it is what attend_to_others gives.
        """
        assert segments is None
        if self._call == len(self._keys):
            batch, _, heads, channels = k.shape
            shape = batch, heads, self._length, channels
            self._keys.append(torch.zeros(shape, dtype=self._dtype, device=k.device))
            self._values.append(torch.zeros_like(self._keys[-1]))
        keys, values = self._keys[self._call], self._values[self._call]
        self._call += 1
        at = self._position.view(1)
        cos, sin = self._cos.index_select(0, at), self._sin.index_select(0, at)
        query, key = rotate(q[:, -1:], cos, sin), rotate(k[:, -1:], cos, sin)
        keys.index_copy_(2, at, key.transpose(1, 2).to(keys.dtype))
        values.index_copy_(2, at, v[:, -1:].transpose(1, 2).to(values.dtype))
        grouped = query.reshape(len(q), keys.shape[1], -1, q.shape[-1])
        scores = (grouped @ keys.mT).float() * q.shape[-1] ** -0.5
        scores = scores.masked_fill(self._positions > self._position, -torch.inf)
        weights = torch.softmax(scores, dim=-1)
        if not own_term:
            weights = weights.masked_fill(self._positions == self._position, 0.0)
        y = weights.to(values.dtype) @ values
        return y.reshape(len(q), 1, *q.shape[2:]).expand_as(q).contiguous()


@torch.no_grad()
def generate(
    network: Network,
    first_B: Tensor,
    draws_BT: Tensor,
    *,
    temperature: float,
    rope_follows_length: bool = False,
) -> Tensor:
    """Return texts that begin with given tokens, int64 [B, T] on the network's device.

    `draws_BT`, float64 in 0..1, choose the tokens; the first of each row is not read. The rotary
    base is that of T tokens. With `rope_follows_length` it is that of the tokens so far, as in
    published code that passes the whole text again for each new token (pg#1204). Beyond the trained
    length each new base changes all keys, and so the whole text is passed again here too.
    """
    text = torch.zeros(draws_BT.shape, dtype=torch.int64, device=draws_BT.device)
    text[:, 0] = first_B
    kept, trained_length = text.shape[1], network.config.rope_trained_length
    if rope_follows_length and trained_length is not None:
        kept = min(kept, trained_length)
    _generate_with_cache(network, text[:, :kept], draws_BT, temperature)
    for t in range(kept, text.shape[1]):
        token = _next(network, text[:, :t], t - 1, draws_BT[:, t : t + 1], temperature)
        text[:, t] = token[:, 0]
    return text


def _generate_with_cache(network: Network, text: Tensor, draws: Tensor, temperature: float) -> None:
    """Fill `text` but for its first tokens, in place."""
    position = torch.zeros((), dtype=torch.int64, device=text.device)
    cache = KeyValueCache(network, text.shape[1], position)
    # fused kernels are made for long rows
    backend = dataclasses.replace(
        network.backend,
        attend=cache,
        attend_to_others=functools.partial(cache, own_term=False),
        operations=REFERENCE,
    )
    network = network.with_backend(backend)
    offsets = torch.arange(1 - SEEN, 1, device=text.device)

    def step() -> None:
        cache.begin()
        seen = text.index_select(1, (position + offsets).clamp_min(0))
        after = (position + 1).view(1)
        token = _next(network, seen, SEEN - 1, draws.index_select(1, after), temperature)
        text.index_copy_(1, after, token)
        position.add_(1)

    if text.device.type == "cuda" and text.shape[1] > WARM_UPS + 1:
        graph, _ = record(step, warm_ups=WARM_UPS)
        position.zero_()  # what the warm-up wrote is written over
        step = graph.replay
    for _ in range(text.shape[1] - 1):
        step()


def _next(
    network: Network, seen: Tensor, newest: int, draws_B1: Tensor, temperature: float
) -> Tensor:
    """Return the token after position `newest` of each row of `seen`, int64 [B, 1]."""
    options = Pass(order=network.config.orders[-1])
    logits = network.logits(seen, options, part=slice(newest, newest + 1))[:, 0]
    return draw_tokens(torch.softmax(logits.double() / temperature, dim=-1), draws_B1)


def draw_tokens(probabilities_BV: Tensor, draws_B1: Tensor) -> Tensor:
    """Return for each row the token [B, 1] whose part of the cumulative sum holds its draw."""
    # sums of integers do not depend on their order; a GPU's cumulative sums of floats are not
    # deterministic
    sums = (probabilities_BV * SLICES).long().cumsum(-1)
    found = torch.searchsorted(sums, (draws_B1 * sums[:, -1:]).long(), right=True)
    return found.clamp_max(sums.shape[1] - 1)
