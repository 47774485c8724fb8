"""What all ways of scoring share, and the plainest one: windows of a stream, fixed weights.

Shapes: B windows of a batch, T tokens of a window, k positions of a row that are scored, V
vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from paramgolf.model.attention import BOUNDS_MULTIPLE
from paramgolf.model.block import Positions
from paramgolf.model.head import cross_entropy
from paramgolf.model.network import Network, Pass, segments_of
from paramgolf.runtime import send, share, start_copy
from paramgolf.scoring.config import MixtureConfig
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import ScoringWindows, add_scores, split_batches

if TYPE_CHECKING:
    from paramgolf.scoring.session import Session  # which drives scorers

Drawn = TypeVar("Drawn")
AHEAD = 4  # forward passes launched before a score is waited for, so that the device never waits
BOUNDS_EVERY = 512  # tokens: documents have more on average, so that all batches have one shape
State = dict[str, Any]  # tensors and plain values


class ScoringBatch(NamedTuple):
    """A forward pass: inputs and targets int64 [B, T], the targets that rows begin with int64 [B].

    The targets of `part` are scored, a slice or positions [k].
    """

    inputs: Tensor
    targets: Tensor
    first: Tensor
    options: Pass
    part: Positions

    @property
    def numbers(self) -> Tensor:
        """The number of each target of `part`, int64 [B, k]."""
        positions = torch.arange(self.inputs.shape[1], device=self.first.device)
        return self.first[:, None] + positions[self.part]


class PassShape(NamedTuple):
    """The shape of passes to come, and whether they are learned from."""

    rows: int
    length: int
    part: Positions
    options: Pass
    learns: bool = False


class Scorer:
    """A network, its text, the mixture, and the ledger of the scores.

    This class scores windows, `rows` per forward pass, with fixed weights. `length` is the length
    of the longest row; `order` is the order of scoring, None for that of the text. Scores are of
    logits divided by `temperature`, the training loss is not. A probe runs the network `witness`.
    """

    def __init__(
        self,
        network: Network,
        text: Text,
        session: Session,
        *,
        length: int,
        rows: int,
        mixing: MixtureConfig | None = None,
        options: Pass | None = None,
        order: np.ndarray | None = None,
    ) -> None:
        self.network, self.text, self.session = network, text, session
        self.witness = network
        self.runtime = session.runtime
        self.rows, self.order, self.mixing = rows, order, mixing
        self.options = options or Pass(network.config.orders[-1])
        self.temperature = 1.0
        self.ledger = Ledger(len(text))
        self.tokens = text.padded_tokens(length, self.runtime.device)
        self.mixture = None
        if mixing is not None and mixing.kind != "none":
            from paramgolf.scoring.mixture import build_mixture  # see packing/code.py

            with session.timed("mixture"):
                device = self.runtime.device
                self.mixture = build_mixture(
                    text, mixing, self.ledger, order=order, padding=length, device=device
                )

    def run(self, item: Any) -> None:
        """Score the targets of `item`, ScoringWindows over a span of the text, and record them.

        Processes share whole batches of `rows` windows. A batch is the same in whichever process it
        runs, so the number of processes cannot change a score.
        """
        with self.session.timed("score"):
            batches = list(split_batches(item, self.rows))
            mine = [batches[i] for i in share(len(batches), self.runtime)]
            with torch.no_grad(), self.network.frozen():
                # launch passes ahead of reading scores, so that the device never waits
                launched = ((batch, start_copy(self.score_windows(batch))) for batch in mine)
                scored = ((batch, scores()) for batch, scores in lag(launched, AHEAD))
                self.record(item.targets, scored)

    def record(self, targets: range, scored: Iterable[tuple[ScoringWindows, np.ndarray]]) -> None:
        """Enter in the ledger the scores [B, k] of windows, and what other processes scored."""
        # float64, in the order of the text: the same sum however batches were shared
        both = torch.zeros(2, len(targets), dtype=torch.float64)
        nats, times = both.numpy()
        for batch, scores in scored:
            add_scores(nats, times, batch, scores, targets.start)
        self.runtime.sum(both)
        self.ledger.score(targets.start, nats, times)

    def pass_shapes(self, items: Sequence[Any]) -> Iterator[PassShape]:
        """Yield the shapes of the passes that `items` need, so that they can be compiled before."""
        offsets = {batch.offset for item in items for batch in split_batches(item, self.rows)}
        for offset in sorted(offsets):
            yield PassShape(self.rows, items[0].length, slice(offset, None), self.options)

    def state(self) -> State:
        """Return the state that all processes share, to resume from; all processes call it."""
        return {"ledger": self.ledger.state()}

    def own_state(self) -> State:
        """Return the state of this process alone."""
        return {}

    def load_state(self, state: State) -> None:
        """Continue from what `state` and `own_state` returned."""
        self.ledger.load_state(state["ledger"])

    def score_windows(self, batch: ScoringWindows) -> Tensor:
        """Return nats [B, T - offset] of the targets from the batch's offset to the windows' end.

        Every forward pass has `rows` rows, the last window standing in for those that are missing.
        """
        starts = np.pad(batch.start, (0, self.rows - len(batch)), mode="edge")
        part = slice(batch.offset, None)
        return self.score(starts, batch.length, part, self.options)[1][: len(batch)]

    def score(
        self,
        starts: np.ndarray,
        length: int,
        part: slice,
        options: Pass,
        run: Callable[[ScoringBatch], tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the network's nats of the rows that begin at `starts` [B], and their scores.

        Both are float32 [B, k], of the targets in `part` of the `length`, and come from `nats`, or
        from `run`.
        """
        options = self.segmented(starts[:, None] + np.arange(length), options)
        batch = ScoringBatch(*take_rows(self.tokens, starts, length), options, part)
        show = self.session.probe(self, batch)
        nats, scores = (run or self.nats)(batch)
        if show is not None:
            show(scores)
        return nats, scores

    def segmented(self, positions: np.ndarray, options: Pass) -> Pass:
        """Return `options` with the segments that attention keeps to, found on the host.

        `positions` [B, T] are those of the inputs in the text; past its end there is padding.
        """
        if options.document_tokens is None and options.window is None:
            return options
        # to find BOS on the device, the host would have to wait for all that is queued there
        inputs = self.text.tokens[np.minimum(positions, len(self.text))]
        return with_segments(
            torch.from_numpy(inputs.astype(np.int64)), options, self.runtime.device
        )

    def nats(self, batch: ScoringBatch) -> tuple[Tensor, Tensor]:
        """Return the network's nats of a batch, which can be learned from, and the mixture's.

        What is learned from is the network's own loss: gradients do not pass through the mixture.
        """
        network, mixture, part = self.network, self.mixture, batch.part
        wanted = batch.targets[:, part]
        # the fused loss never makes the logits; what compares tokens with one another needs them
        logits = None
        if self.temperature == 1 and (mixture is None or mixture.hint is None):
            nats = network.nll(batch.inputs, wanted, batch.options, part=part)
            scores = nats.detach()
        else:
            logits = network.logits(batch.inputs, batch.options, part=part)
            nats = cross_entropy(logits, wanted)
            logits = logits.detach() / self.temperature
            scores = cross_entropy(logits, wanted)
        if mixture is not None and mixture.said is not None:
            scores = mixture.mixed(scores, mixture.said[batch.numbers], batch.numbers)
        elif mixture is not None and logits is not None:
            of_hint = cross_entropy(logits, mixture.hinted(batch.numbers))
            scores = mixture.tilted(scores, of_hint, wanted, batch.numbers)
        return nats, scores


def with_segments(inputs: Tensor, options: Pass, device: torch.device) -> Pass:
    """Return `options` with the segments of `inputs` [B, T], which are the host's.

    This does not wait for the device, and the bounds always have the same shape.
    """
    multiple = BOUNDS_MULTIPLE + inputs.numel() // BOUNDS_EVERY
    segments = segments_of(inputs, options, multiple=multiple)
    if segments is None or segments.bounds is None:
        return options
    bounds = send(segments.bounds, device)
    return dataclasses.replace(options, segments=segments._replace(bounds=bounds))


def lag(items: Iterator[Drawn], count: int) -> Iterator[Drawn]:
    """Yield the items, each when `count` more have been drawn."""
    drawn: deque[Drawn] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > count:
            yield drawn.popleft()
    yield from drawn


def take_rows(tokens: Tensor, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs and targets, int64 [B, T] each, of the rows at `starts` [B], and these."""
    first = send(torch.from_numpy(starts), tokens.device)
    index = first[:, None] + torch.arange(length + 1, device=tokens.device)
    # two gathers, not two views: compiled code tells the strides of a single row apart
    return tokens[index[:, :-1]].long(), tokens[index[:, 1:]].long(), first
