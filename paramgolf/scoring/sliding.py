"""Score a fixed model by a sliding window: each target once, after as much past as fits."""

from __future__ import annotations

from pathlib import Path

from paramgolf.bits_per_byte import Tally
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import SlidingConfig
from paramgolf.scoring.evaluation import Evaluation, begin, summary
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.scorer import Scorer
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text, find_documents
from paramgolf.scoring.windows import Windows, document_windows, sliding_windows

# what is scored between two looks at the scores: the device waits a little for each look
PARTS = 32
LEAST_PASSES = 16  # forward passes, on all processes together


def score_sliding(
    package: str | Path,
    tokens: str | Path,
    config: SlidingConfig,
    runtime: Runtime,
    session: Session | None = None,
) -> Evaluation:
    """Score a packed model on the validation text in folder `tokens`; every process joins in."""
    session = session or Session(runtime)
    network, text = begin(package, tokens, config.max_tokens, session)
    plain = plain_score(network, text, config.window, config.batch_windows, session)
    ledger = score_text(network, text, config, session)
    return Evaluation(summary(text, ledger, plain, session), text, ledger.nats)


def plain_score(network: Network, text: Text, window: int, rows: int, session: Session) -> float:
    """Return bits per byte without overlap, adaptation or mixture."""

    def make() -> float:
        inner = Session(session.runtime)
        ledger = score_fixed(network, text, inner, window=window, stride=window, rows=rows)
        ledger.close()
        session.timing.seconds["compile"] += inner.timing.seconds["compile"]
        session.timing.seconds["plain"] += inner.timing.seconds["score"]
        return Tally.of(ledger.nats, text.byte_counts).bits_per_byte

    return session.once("plain", make)


def score_fixed(
    network: Network, text: Text, session: Session, *, window: int, stride: int, rows: int
) -> Ledger:
    """Score every target with weights that stay as they are; return the ledger, full.

    `rows` is the number of windows in a forward pass; stride = window is scoring without overlap.
    """
    scorer = Scorer(network, text, session, length=window, rows=rows)
    windows = sliding_windows(len(text), window, stride)
    session.run(scorer, cut(windows, rows), "score")
    return scorer.ledger


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


def cut(windows: Windows, rows: int) -> list[Windows]:
    """Return the windows in about PARTS parts of whole forward passes, `rows` windows each."""
    size = rows * max(LEAST_PASSES, -(-len(windows) // (rows * PARTS)))
    return [windows[begin : begin + size] for begin in range(0, len(windows), size)]


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
