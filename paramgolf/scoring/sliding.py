"""Score a fixed model by a sliding window: each target once, after as much past as fits."""

from __future__ import annotations

from paramgolf.model.network import Network, Pass
from paramgolf.scoring.config import SlidingConfig
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.scorer import Scorer
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text, find_documents
from paramgolf.scoring.windows import ScoringWindows, document_windows, sliding_windows

# what is scored between two looks at the scores: the device waits a little for each look
PARTS = 32
LEAST_PASSES = 16  # forward passes, on all processes together


def score_text(network: Network, text: Text, config: SlidingConfig, session: Session) -> Ledger:
    """Score every target by the windows of `mode`, with the mixture; return the ledger, full."""
    windows, options = plan_windows(network, text, config)
    rows = config.batch_windows
    scorer = Scorer(
        network,
        text,
        session,
        length=windows.length,
        rows=rows,
        mixing=config.mixture,
        options=options,
    )
    session.run(scorer, cut(windows, rows), "score")
    return scorer.ledger


def cut(windows: ScoringWindows, rows: int) -> list[ScoringWindows]:
    """Return the windows in about PARTS parts of whole forward passes, `rows` windows each."""
    return windows.parts(rows * max(LEAST_PASSES, -(-len(windows) // (rows * PARTS))))


def plan_windows(
    network: Network, text: Text, config: SlidingConfig
) -> tuple[ScoringWindows, Pass]:
    """Return the windows of `mode`, and the options of a pass over them.

    strided: what the published evaluations do, T / S passes over each token for context of at
    least T - S. documents: context that ends at documents, as packed training rows have it; only
    documents longer than a window cost more than one pass. windowed: attention itself is bounded
    by `window`, so that long rows give each token its context in about one pass; the first window
    of a row is read for context alone, and the row before has scored it.
    """
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
