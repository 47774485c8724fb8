"""Score a fixed model by a sliding window: each target once, with as much past as the window holds.

Shapes: B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from paramgolf.model.network import Network, Pass
from paramgolf.progress import track
from paramgolf.runtime import Ranks, share
from paramgolf.scoring.config import SlidingConfig
from paramgolf.scoring.evaluation import Evaluation, load_network, summary
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.mixture import Mixture, build_mixture, score_tokens
from paramgolf.scoring.text import Text, find_documents, load_text
from paramgolf.scoring.timing import Timing
from paramgolf.scoring.windows import Windows, document_windows, sliding_windows


def score_sliding(
    package: str | Path, tokens: str | Path, config: SlidingConfig, ranks: Ranks
) -> Evaluation:
    """Score a packed model on the validation text in folder `tokens`; every process joins in."""
    timing = Timing(ranks.device)
    window, rows = config.window, config.batch_windows
    with timing.part("load"):
        network = load_network(package, ranks)
        text = load_text(tokens, network.vocab_size, config.max_tokens)
    with timing.part("plain"):
        plain = score_fixed(network, text, ranks, window=window, stride=window, rows=rows)
    ledger = score_text(network, text, config, ranks, timing)
    return Evaluation(summary(text, ledger, plain, timing), text, ledger.nats)


def score_fixed(
    network: Network, text: Text, ranks: Ranks, *, window: int, stride: int, rows: int
) -> Ledger:
    """Score every target with weights that stay as they are; return the ledger, full.

    `rows` is the number of windows in a forward pass; stride = window is scoring without overlap.
    """
    ledger = Ledger(len(text))
    tokens = text.rows_source(window, ranks.device)
    windows = sliding_windows(len(text), window, stride)
    score_windows(network, tokens, windows, ranks, ledger, rows=rows, show=True)
    return ledger


def score_text(
    network: Network, text: Text, config: SlidingConfig, ranks: Ranks, timing: Timing
) -> Ledger:
    """Score every target by the windows of `mode`, with the mixture; return the ledger, full."""
    ledger = Ledger(len(text))
    windows, options = plan_windows(network, text, config)
    length = windows.length
    tokens = text.rows_source(length, ranks.device)
    with timing.part("mixture"):
        mixture = build_mixture(text, config.mixture, ledger, padding=length, device=ranks.device)
    with timing.part("score"):
        score_windows(
            network,
            tokens,
            windows,
            ranks,
            ledger,
            rows=config.batch_windows,
            options=options,
            mixture=mixture,
            show=True,
        )
    return ledger


def plan_windows(network: Network, text: Text, config: SlidingConfig) -> tuple[Windows, Pass]:
    """Return the windows of `mode`, and the options of a pass over them."""
    order, window, stride = network.config.orders[-1], config.window, config.stride
    match config.mode:
        case "documents":
            windows = document_windows(*find_documents(text), window, stride)
            return windows, Pass(order, document_tokens=window)
        case "windowed":
            length = window * config.row_windows
            windows = sliding_windows(len(text), length, length - window)
            return windows, Pass(order, window=window)
    return sliding_windows(len(text), window, stride), Pass(order)


def score_windows(
    network: Network,
    tokens: torch.Tensor,
    windows: Windows,
    ranks: Ranks,
    ledger: Ledger,
    *,
    rows: int,
    options: Pass | None = None,
    mixture: Mixture | None = None,
    show: bool = False,
) -> None:
    """Score what `windows` tell to score and enter it in the ledger.

    `tokens` is what Text.rows_source gives, `options` are those of each pass. Processes share the
    batches of `rows` windows, not the windows: a batch is the same whoever runs it, so their number
    cannot change a score.
    """
    targets = windows.targets
    nats, times = np.zeros((2, len(targets)))
    batches = list(split_batches(windows, rows))
    mine = [batches[i] for i in share(len(batches), ranks)]
    # kept on the device until the end, so that no batch waits for the one before it
    options = options or Pass(network.config.orders[-1])
    scores = [
        score_batch(network, tokens, batch, options, rows=rows, mixture=mixture)
        for batch in track(mine, "score", total=len(mine), show=show and ranks.is_main)
    ]
    for batch, score in zip(mine, scores, strict=True):
        add_scores(nats, times, batch, score.double().cpu().numpy(), targets.start)
    both = ranks.sum(torch.from_numpy(np.stack([nats, times])).to(ranks.device)).cpu().numpy()
    ledger.score(targets.start, both[0], both[1])


def split_batches(windows: Windows, rows: int) -> Iterator[Windows]:
    """Yield batches of at most `rows` windows that begin to score at the same offset."""
    offsets = windows.first - windows.start
    for offset in np.unique(offsets):
        group = windows[offsets == offset]
        for begin in range(0, len(group), rows):
            yield group[begin : begin + rows]


def score_batch(
    network: Network,
    tokens: torch.Tensor,
    batch: Windows,
    options: Pass,
    *,
    rows: int,
    mixture: Mixture | None = None,
) -> torch.Tensor:
    """Return nats [B, T - offset] of the targets from the batch's offset to the windows' end.

    Every forward pass has `rows` rows, the last window standing in for those that are missing.
    """
    starts = np.pad(batch.start, (0, rows - len(batch)), mode="edge")
    part = slice(int(batch.first[0] - batch.start[0]), None)
    first = torch.from_numpy(starts).to(tokens.device)
    with torch.no_grad():
        inputs, targets = take_rows(tokens, starts, batch.length)
        _, nats = score_tokens(
            network, inputs, targets, options, part=part, mixture=mixture, first=first
        )
    return nats[: len(batch)]


def take_rows(
    tokens: torch.Tensor, starts: np.ndarray, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets, int64 [B, T] each, of the rows that begin at `starts` [B]."""
    first = torch.from_numpy(starts).to(tokens.device)
    index = first[:, None] + torch.arange(length + 1, device=tokens.device)
    rows = tokens[index].long()
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def add_scores(
    nats: np.ndarray, times: np.ndarray, batch: Windows, scores: np.ndarray, origin: int
) -> None:
    """Add a batch's scores [B, k] to the sums of the targets from `origin` on, and count them."""
    targets = batch.first[:, None] + np.arange(scores.shape[1])
    scored = targets < batch.stop[:, None]
    np.add.at(nats, targets[scored] - origin, scores[scored])
    np.add.at(times, targets[scored] - origin, 1)
