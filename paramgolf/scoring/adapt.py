"""Score text, then learn from it: score-first test-time training (#461, #1413, #1499, #1530)."""

from __future__ import annotations

from pathlib import Path

from paramgolf.model.network import Network
from paramgolf.progress import track
from paramgolf.runtime import Ranks
from paramgolf.scoring.config import AdaptConfig
from paramgolf.scoring.evaluation import Evaluation, load_network, summary
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.lora_documents import score_documents
from paramgolf.scoring.lora_stream import score_stream
from paramgolf.scoring.mixture import build_mixture
from paramgolf.scoring.sgd import SgdAdapter
from paramgolf.scoring.sliding import score_fixed, score_windows
from paramgolf.scoring.text import Text, load_text
from paramgolf.scoring.timing import Timing
from paramgolf.scoring.windows import sliding_windows, split_chunks


def score_adaptive(
    package: str | Path, tokens: str | Path, config: AdaptConfig, ranks: Ranks
) -> Evaluation:
    """Score a packed model that adapts as it goes; every process joins in.

    The metrics' plain score is of the weights as they were packed.
    """
    timing = Timing(ranks.device)
    window, rows = config.window, config.batch_windows
    with timing.part("load"):
        network = load_network(package, ranks)
        text = load_text(tokens, network.vocab_size, config.max_tokens)
    with timing.part("plain"):
        plain = score_fixed(network, text, ranks, window=window, stride=window, rows=rows)
    ledger = score_and_adapt(network, text, config, ranks, timing)
    metrics = summary(text, ledger, plain, timing)
    metrics |= {"updates": metrics["ledger"]["updates"], "mode": config.mode}
    if config.mode == "lora_documents":
        metrics["order"] = config.documents.order
    return Evaluation(metrics, text, ledger.nats)


def score_and_adapt(
    network: Network, text: Text, config: AdaptConfig, ranks: Ranks, timing: Timing
) -> Ledger:
    """Score every target, adapting in the way of `mode`; return the ledger, full.

    The network's weights change in mode sgd, and in phases of lora_documents.
    """
    match config.mode:
        case "lora_stream":
            return score_stream(network, text, config, ranks, timing)
        case "lora_documents":
            return score_documents(network, text, config, ranks, timing)
    return score_chunks(network, text, config, ranks, timing)


def score_chunks(
    network: Network, text: Text, config: AdaptConfig, ranks: Ranks, timing: Timing
) -> Ledger:
    """Score each chunk with what was learned from the chunks before it (none: nothing).

    The last chunk is not learned from: nothing is left to score.
    """
    ledger = Ledger(len(text))
    tokens = text.rows_source(config.window, ranks.device)
    windows = sliding_windows(len(text), config.window, config.stride)
    chunks = list(split_chunks(windows, config.chunk_tokens))
    with timing.part("mixture"):
        padding, device = config.window, ranks.device
        mixture = build_mixture(text, config.mixture, ledger, padding=padding, device=device)
    adapter = SgdAdapter(network, tokens, config, ranks, ledger) if config.mode == "sgd" else None
    show = ranks.is_main
    for index, chunk in enumerate(track(chunks, "score, adapt", total=len(chunks), show=show)):
        with timing.part("score"):
            rows = config.batch_windows
            score_windows(network, tokens, chunk, ranks, ledger, rows=rows, mixture=mixture)
        with timing.part("adapt"):
            if adapter is not None and index + 1 < len(chunks):
                adapter.adapt(chunk.targets, progress=index / (len(chunks) - 1))
    return ledger
