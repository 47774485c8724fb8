"""The two evaluations, from a package and a folder of tokens to metrics and scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paramgolf.bits_per_byte import Tally
from paramgolf.clock import seconds_since_start
from paramgolf.codec.container import Package, load_package
from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import open_tokens
from paramgolf.model.backend import uncompiled
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.scorer import with_segments
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import ChunkScorer
from paramgolf.scoring.sliding import score_text
from paramgolf.scoring.text import Text, load_text
from paramgolf.scoring.windows import sliding_windows, split_chunks
from paramgolf.training.validate import plain_nats


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Metrics, and the nats of each target of the text (float64 [N]), the same on every process."""

    metrics: dict[str, Any]
    text: Text
    nats: np.ndarray


def load_network(package: str | Path, runtime: Runtime) -> Network:
    """Rebuild the network from model.bin: float32 parameters on this process's device."""
    return build_network(load_package(package), runtime)


def build_network(packed: Package, runtime: Runtime) -> Network:
    """Return a network of a decoded package, which stays as it is."""
    network = Network(packed.model, packed.vocab_size)
    network.load_state_dict(packed.state)
    return network.on(runtime)


def score_sliding(
    package: str | Path, tokens: str | Path, config: SlidingConfig, session: Session
) -> ScoredText:
    """Score a packed model on the validation text in folder `tokens`; every process joins in."""
    network, text = _load(package, tokens, config, session)
    plain = plain_score(network, text, config, session)
    ledger = score_text(network, text, config, session)
    return ScoredText(_summary(text, ledger, plain, session), text, ledger.nats)


def score_adaptive(
    package: str | Path, tokens: str | Path, config: TttConfig, session: Session
) -> ScoredText:
    """Score a packed model that adapts as it goes; every process joins in.

    The metrics' plain score is of the weights as they were packed.
    """
    network, text = _load(package, tokens, config, session)
    packed = network
    if config.mode == "lora_documents":  # whose passes would share no graph with the plain score's
        packed = network.with_backend(uncompiled(network.backend))
    plain = plain_score(packed, text, config, session)
    ledger = score_and_adapt(network, text, config, session)
    metrics = _summary(text, ledger, plain, session)
    metrics |= {"updates": metrics["ledger"]["updates"], "mode": config.mode}
    if config.mode == "lora_documents":
        metrics["order"] = config.documents.order
    return ScoredText(metrics, text, ledger.nats)


def plain_score(
    network: Network, text: Text, config: SlidingConfig | TttConfig, session: Session
) -> float:
    """Return bits per byte without overlap, adaptation or mixture, as training validates."""
    runtime, options = session.runtime, Pass(network.config.orders[-1])
    window, rows = config.window, config.batch_windows
    if config.mode == "documents" and runtime.compile:
        # code that is compiled for documents serves here too, if each row is one
        rows_alone = torch.full((rows, window), BOS + 1)
        options = replace(options, document_tokens=window)
        options = with_segments(rows_alone, options, runtime.device)
    sizes = {"length": window, "batch_windows": rows}

    def make() -> float:
        with session.timed("compile"):
            if runtime.compile:  # a batch for each process, of one token over and over
                dummy = np.ones(runtime.world * rows * window + 1, dtype=np.int64)
                plain_nats(network, dummy, options, runtime, **sizes)
        with session.timed("plain"):
            mine, nats = plain_nats(network, text.tokens, options, runtime, **sizes)
            tally = Tally.of(nats, text.byte_counts[mine.start : mine.stop]).over(runtime)
        return tally.bits_per_byte

    return session.once("plain", make)


def score_and_adapt(network: Network, text: Text, config: TttConfig, session: Session) -> Ledger:
    """Score every target, adapting in the way of `mode`; return the ledger, full.

    The network's weights change in mode sgd, and in phases of lora_documents.
    """
    if config.mode == "lora_documents":
        from paramgolf.scoring.lora_documents import score_documents  # see packing/code.py

        return score_documents(network, text, config, session)
    if config.mode == "lora_stream":
        from paramgolf.scoring.lora_stream import score_stream  # see packing/code.py

        return score_stream(network, text, config, session)
    windows = sliding_windows(len(text), config.window, config.stride)
    scorer = ChunkScorer(network, text, config, session)
    session.run(scorer, list(split_chunks(windows, config.chunk_tokens)), "score, adapt")
    return scorer.ledger


def _load(
    package: str | Path, tokens: str | Path, config: SlidingConfig | TttConfig, session: Session
) -> tuple[Network, Text]:
    """Load what an evaluation reads; the clock has run since the command started."""
    # imports and torch's start took so long; the rules count them
    session.seconds["start"] += seconds_since_start()
    with session.timed("load"):
        network = load_network(package, session.runtime)
        primer = config.mixture.training_tokens
        text = load_text(tokens, network.vocab_size, config.max_tokens, primer_tokens=primer)
        if config.token_mask:
            from paramgolf.model.token_mask import masked  # see packing/code.py

            network = masked(network, open_tokens(tokens), text.tokens)
        return network, text


def _summary(text: Text, ledger: Ledger, plain: float, session: Session) -> dict[str, Any]:
    """Close the ledger and return the metrics; `plain` is without overlap and adaptation.

    `seconds` counts from the start of the process: imports, decompression and compilation are in.
    """
    verdict = ledger.close()
    tally = Tally.of(ledger.nats, text.byte_counts)
    return {
        "val_bpb": tally.bits_per_byte,
        "val_loss": tally.loss,
        "val_bpb_plain": plain,
        "tokens_scored": tally.tokens,
        "bytes_scored": tally.byte_count,
        "train_tokens_read": len(text.primer),
        "ledger": verdict,
        **session.metrics,
    }
