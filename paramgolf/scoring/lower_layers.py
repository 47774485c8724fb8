"""The layers below all adapters, run once for each token of the documents being scored.

If adapters begin in an upper layer, nothing below it depends on what is learned. So each token
passes the lower layers once, and the pass over a chunk starts from their stored output.

A document's first `window` tokens are one pass. The following ones come in blocks of a quarter of a
window, each in a pass over the `window` tokens that end with the block. So each token sees at least
three quarters of a window, or all earlier tokens of its document. Its context depends only on its
position in the document, not on the chunk that is scored or on the document's length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramgolf.model.gradients import distinct
from paramgolf.model.network import Midway, Network
from paramgolf.scoring.scorer import take_rows

BLOCKS = 4  # of a window
ROUND = 64  # tokens: kernels are compiled anew for lengths that are no multiple of 16


def rescales(network: Network, window: int) -> bool:
    """Tell whether the rotary base depends on the length of rows up to `window`."""
    trained = network.config.rope_trained_length
    return trained is not None and trained < window


class LowerLayers:
    """The first `steps` layers' work for a batch of `rows` documents, a window and a block of each.

    What is kept stays where it is in memory: of token t of a document in place t modulo `places`.
    So new tokens take the places of those that no chunk will read again.
    """

    def __init__(
        self, network: Network, tokens: Tensor, steps: int, *, rows: int, window: int, chunk: int
    ) -> None:
        self._network, self._tokens, self._steps = network, tokens, steps
        self._rows, self._window = rows, window
        self._block = -(-window // BLOCKS)
        self.places = window + self._block + chunk
        self._start = self._stop = np.zeros(rows, dtype=np.int64)
        self._known = 0  # tokens of each document
        # other documents must not change what a row's length decides
        self._rescales = rescales(network, window)

    def begin(self, start: np.ndarray, stop: np.ndarray) -> None:
        """Go on to the documents with the targets start[i]..stop[i], int64 [rows]."""
        self._start, self._stop, self._known = start, stop, 0

    def cover(self, rows: int, end: int) -> None:
        """Run the lower layers as far as token `end` of the first `rows` documents."""
        longest = int((self._stop - self._start).max())
        while self._known < min(end, longest):
            if self._known:
                known = self._known + self._block
                self._keep(rows, known - self._window, self._window, self._block)
            else:
                known = self._window
                length = known if self._rescales else min(-(-longest // ROUND) * ROUND, known)
                self._keep(rows, 0, length, length)
            self._known = known

    def at(self, places: Tensor, length: int) -> Midway:
        """Return the stored output of `length` tokens of document i from places[i], int64 [B], on.

        Tokens that were not computed yet have arbitrary finite values. Lanes require a gradient if
        gradients are enabled, as in all other layers, so that one graph serves all layers.
        """
        device, shape = places.device, (len(places), length)
        slots = (places[:, None] + torch.arange(length, device=device)) % self.places
        slots += self.places * torch.arange(len(places), device=device)[:, None]

        def take(kept: Tensor) -> Tensor:
            taken = kept.new_empty(*shape, *kept.shape[2:])  # no view, of which graphs ask more
            torch.index_select(kept.flatten(0, 1), 0, slots.flatten(), out=taken.flatten(0, 1))
            return taken

        state: Midway = over_tensors(take, self._kept)
        if torch.is_grad_enabled():
            lanes = tuple(distinct(lane.requires_grad_()) for lane in state.lanes)
            state = state._replace(lanes=lanes)
        return state

    @functools.cached_property
    def _kept(self) -> Midway:
        """All that is kept, [rows, places, ...]; begun by a pass over no text."""
        some = self._pass(torch.zeros_like(self._tokens[:1]).expand(self._rows, self._window))
        repeats = -(-self.places // self._window)
        # finite values: attention multiplies masked entries by 0, and 0 x NaN is NaN
        kept: Midway = over_tensors(
            lambda x: torch.cat([x] * repeats, dim=1)[:, : self.places].clone(), some
        )
        return kept

    def _keep(self, rows: int, begin: int, length: int, new: int) -> None:
        """Read `length` tokens of each document from token `begin` on; keep the last `new`."""
        starts = np.minimum(self._start + begin, self._stop)[:rows]
        found = self._pass(take_rows(self._tokens, starts, length)[0])
        end = begin + length
        slots = torch.arange(end - new, end, device=self._tokens.device) % self.places

        def put(kept: Tensor, x: Tensor) -> None:
            kept[:rows, slots] = x[:, length - new :]

        over_tensors(put, self._kept, found)

    @torch.no_grad()
    def _pass(self, tokens: Tensor) -> Midway:
        order = self._network.config.orders[-1]
        return self._network.midway(tokens.long(), order, self._steps)


def over_tensors(work: Callable[..., Any], *trees: Any) -> Any:
    """Return nested tuples with `work` of the tensors that stand at one place in each of `trees`.

    Numbers and None are those of the first.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return work(*trees)
    if not isinstance(first, tuple):
        return first
    parts = [over_tensors(work, *some) for some in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
