"""When one process scores a text sooner than several; told without torch, before any is started."""

from __future__ import annotations

from pathlib import Path

from paramgolf.data.manifests import read_tokens_manifest
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring.config import SlidingConfig

# Four GPUs start some 10 s later than one, which reads 20 million tokens meanwhile, if it is an
# H100. Another five, and they have caught up.
SHORT = 25_000_000
DOCUMENT_READS = 5  # of each token of documents as long as the contest's: few exceed a window


def sooner_alone(config: SlidingConfig, machine: RuntimeConfig, tokens: Path) -> bool:
    """Tell whether the text is so short that one process finishes before several would.

    False if the user set the number of processes.
    """
    targets = read_tokens_manifest(tokens).val.tokens
    if config.max_tokens is not None:
        targets = min(targets, config.max_tokens)
    by_mode = {"strided": config.window / config.stride, "documents": DOCUMENT_READS, "windowed": 1}
    return machine.processes == 0 and targets * by_mode[config.mode] < SHORT
