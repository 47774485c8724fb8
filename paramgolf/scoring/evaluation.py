"""What the evaluators share: the model out of its package, and the metrics out of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.bits_per_byte import Tally
from paramgolf.clock import seconds_since_start
from paramgolf.codec.container import Package, load_package
from paramgolf.model.network import Network
from paramgolf.runtime import Runtime
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text, load_text


@dataclass(frozen=True, slots=True)
class Evaluation:
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


def begin(
    package: str | Path, tokens: str | Path, max_tokens: int | None, session: Session
) -> tuple[Network, Text]:
    """Load what an evaluation reads; the clock has run since the command started."""
    session.timing.seconds["start"] += seconds_since_start()
    with session.timing.part("load"):
        network = load_network(package, session.runtime)
        return network, load_text(tokens, network.vocab_size, max_tokens)


def summary(text: Text, ledger: Ledger, plain: float, session: Session) -> dict[str, Any]:
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
        "ledger": verdict,
        **session.metrics,
    }
