"""What all ways of scoring share, and the plainest: windows of a stream, weights as they are.

Shapes: B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from paramgolf.model.attention import BOUNDS_MULTIPLE
from paramgolf.model.head import cross_entropy
from paramgolf.model.network import Network, Pass, Positions, segments_of
from paramgolf.runtime import Runtime, send, share
from paramgolf.scoring.config import MixtureConfig
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.mixture import build_mixture
from paramgolf.scoring.text import Text
from paramgolf.scoring.timing import Timing
from paramgolf.scoring.windows import Windows

Drawn = TypeVar("Drawn")
AHEAD = 4  # forward passes launched before a score is waited for, so that the device never waits
BOUNDS_EVERY = 512  # tokens: documents have more on average, so that all batches have one shape
State = dict[str, Any]  # tensors and plain values


class Batch(NamedTuple):
    """A forward pass: inputs and targets int64 [B, T], the targets that rows begin with int64 [B].

    The targets of `part` are scored, a slice or places [k].
    """

    inputs: Tensor
    targets: Tensor
    first: Tensor
    options: Pass
    part: Positions

    @property
    def numbers(self) -> Tensor:
        """The number of each target of `part`, int64 [B, k]."""
        places = torch.arange(self.inputs.shape[1], device=self.first.device)
        return self.first[:, None] + places[self.part]


class Rehearsal(NamedTuple):
    """The shape of passes to come, and whether they are learned from."""

    rows: int
    length: int
    part: slice
    options: Pass
    learns: bool = False


class Host(Protocol):
    """What a scorer asks of the session that drives it."""

    runtime: Runtime
    timing: Timing

    def examine(self, scorer: Scorer, batch: Batch) -> Callable[[Tensor], None] | None:
        """Look at a batch before it is scored; what is returned is then shown its scores."""


class Scorer:
    """A network, its text, what is mixed in, and the ledger of the scores.

    This one scores windows, `rows` in a forward pass; the weights stay as they are. `length` is
    that of the longest row, and `order` that of the targets where it is not the text's.
    """

    def __init__(
        self,
        network: Network,
        text: Text,
        session: Host,
        *,
        length: int,
        rows: int,
        mixing: MixtureConfig | None = None,
        options: Pass | None = None,
        order: np.ndarray | None = None,
    ) -> None:
        self.network, self.text, self.session, self.runtime = (
            network,
            text,
            session,
            session.runtime,
        )
        self.rows, self.order, self.mixing = rows, order, mixing
        self.options = options or Pass(network.config.orders[-1])
        self.ledger = Ledger(len(text))
        self.tokens = text.rows_source(length, self.runtime.device)
        self.mixture = None
        if mixing is not None:
            with session.timing.part("mixture"):
                device = self.runtime.device
                self.mixture = build_mixture(
                    text, mixing, self.ledger, order=order, padding=length, device=device
                )

    def run(self, item: Any) -> None:
        """Score what Windows `item` tell to score, neighbours in the text, and enter it.

        Processes share the batches of `rows` windows, not the windows: a batch is the same whoever
        runs it, so their number cannot change a score.
        """
        with self.session.timing.part("score"):
            batches = list(split_batches(item, self.rows))
            mine = [batches[i] for i in share(len(batches), self.runtime)]
            with torch.no_grad(), self.network.frozen():
                launched = ((batch, start_copy(self.score_windows(batch))) for batch in mine)
                scored = ((batch, scores()) for batch, scores in lag(launched, AHEAD))
                self.enter(item.targets, scored)

    def enter(self, targets: range, scored: Iterable[tuple[Windows, np.ndarray]]) -> None:
        """Enter the scores [B, k] of batches of windows, and what the other processes scored."""
        both = torch.zeros(2, len(targets), dtype=torch.float64)
        nats, times = both.numpy()
        for batch, scores in scored:
            add_scores(nats, times, batch, scores, targets.start)
        self.runtime.sum(both)
        self.ledger.score(targets.start, nats, times)

    def rehearsals(self, items: Sequence[Any]) -> Iterator[Rehearsal]:
        """Yield the shapes of the passes that `items` need."""
        offsets = {batch.offset for item in items for batch in split_batches(item, self.rows)}
        for offset in sorted(offsets):
            yield Rehearsal(self.rows, items[0].length, slice(offset, None), self.options)

    def state(self) -> State:
        """Return what all processes hold alike, to go on from after a crash; all call it."""
        return {"ledger": self.ledger.state()}

    def own_state(self) -> State:
        """Return what this process alone holds."""
        return {}

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned, and `own_state` with it."""
        self.ledger.load_state(state["ledger"])

    def score_windows(self, batch: Windows) -> Tensor:
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
        run: Callable[[Batch], tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the network's nats of the rows that begin at `starts` [B], and their scores.

        Both are float32 [B, k], of the targets in `part` of the `length`, and come from `nats`, or
        from `run`.
        """
        options = self.parted(starts[:, None] + np.arange(length), options)
        batch = Batch(*take_rows(self.tokens, starts, length), options, part)
        show = self.session.examine(self, batch)
        nats, scores = (run or self.nats)(batch)
        if show is not None:
            show(scores)
        return nats, scores

    def parted(self, places: np.ndarray, options: Pass) -> Pass:
        """Return `options` with the parts that attention keeps to, found on the host.

        `places` [B, T] are those of the inputs in the text; past its end there is padding.
        """
        if options.document_tokens is None and options.window is None:
            return options
        inputs = self.text.tokens[np.minimum(places, len(self.text))]
        return self.with_segments(torch.from_numpy(inputs.astype(np.int64)), options)

    def with_segments(self, inputs: Tensor, options: Pass) -> Pass:
        """Return `options` with the parts of `inputs` [B, T], which are the host's.

        The device is not waited for, and the bounds have one shape.
        """
        multiple = BOUNDS_MULTIPLE + inputs.numel() // BOUNDS_EVERY
        segments = segments_of(inputs, options, multiple=multiple)
        if segments is None or segments.bounds is None:
            return options
        bounds = send(segments.bounds, self.runtime.device)
        return dataclasses.replace(options, segments=segments._replace(bounds=bounds))

    def nats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the network's nats of a batch, which can be learned from, and the mixture's."""
        network, mixture, part = self.network, self.mixture, batch.part
        wanted = batch.targets[:, part]
        if mixture is None or mixture.hint is None:
            nats = network.nll(batch.inputs, wanted, batch.options, part=part)
            scores = nats.detach()
            if mixture is not None and mixture.chance is not None:
                scores = mixture.mixed(scores, mixture.chance[batch.numbers], batch.numbers)
            return nats, scores
        logits = network.logits(batch.inputs, batch.options, part=part)
        nats = cross_entropy(logits, wanted)
        of_hint = cross_entropy(logits.detach(), mixture.favoured(batch.numbers))
        return nats, mixture.tilted(nats.detach(), of_hint, wanted, batch.numbers)


def split_batches(windows: Windows, rows: int) -> Iterator[Windows]:
    """Yield batches of at most `rows` windows that can share a forward pass.

    They begin to score at the same offset. Where that is early in the window all can share: scores
    that nobody wants cost less than a pass.
    """
    offsets = windows.first - windows.start
    groups = [windows]
    if offsets.max() > windows.length // 4:
        groups = [windows[offsets == offset] for offset in np.unique(offsets)]
    for group in groups:
        for begin in range(0, len(group), rows):
            yield group[begin : begin + rows]


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


def add_scores(
    nats: np.ndarray, times: np.ndarray, batch: Windows, scores: np.ndarray, origin: int
) -> None:
    """Add a batch's scores [B, k] to the sums of the targets from `origin` on, and count them."""
    offset = batch.length - scores.shape[1]
    bounds = np.stack([batch.start + offset, batch.first, batch.stop], axis=1).tolist()
    for (begin, first, stop), row in zip(bounds, scores, strict=True):
        scored = slice(first - origin, stop - origin)
        nats[scored] += row[first - begin : stop - begin]
        times[scored] += 1


def start_copy(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy `tensor` to the host; the function returned waits for that copy alone.

    Work queued on the device in between goes on. float64.
    """
    host = tensor.to("cpu", non_blocking=True)
    copied = torch.cuda.Event() if tensor.is_cuda else None
    if copied is not None:
        copied.record()

    def wait() -> np.ndarray:
        if copied is not None:
            copied.synchronize()
        return host.double().numpy()

    return wait
