"""How long the evaluations will take, from the forward passes that each scored token costs."""

from __future__ import annotations

from paramgolf.estimate.speed import Machine
from paramgolf.model.config import ModelConfig
from paramgolf.model.flops import forward_flops
from paramgolf.scoring.config import SlidingConfig, TttConfig

# Measured in forward passes, at Device.utilisation, on one H100 and documents as long as the
# contest's (benchmarks/results/scoring.md): 189,000 tokens/s of documents, 21,000 of lora_stream,
# 28,000 of lora_documents. Compilation, mixtures and lora_documents' phases are not counted.
DOCUMENTS_SHARE = 0.5  # of the overlap that windows within documents have: most are shorter
STREAM_PASSES = 4  # to score a window, and to learn from it
DOCUMENT_PASSES = 2  # the same of a document's chunk: most see less context than `window`
UPDATE_PASSES = 3  # forward, and backward at twice the cost


def sliding_passes(config: SlidingConfig) -> float:
    """Return the forward passes of a token that the sliding window scores."""
    match config.mode:
        case "windowed":
            return config.row_windows / (config.row_windows - 1)
        case "documents":
            return max(1.0, DOCUMENTS_SHARE * config.window / config.stride)
        case "strided":
            return config.window / config.stride


def ttt_passes(config: TttConfig, layers: int) -> float:
    """Return the forward passes, of `layers`, of a token that is scored and then learned from."""
    overlap = config.window / config.stride
    match config.mode:
        case "none":
            return 0.0
        case "sgd":
            return overlap + UPDATE_PASSES * config.epochs
        case "lora_stream":
            return STREAM_PASSES * overlap
        case "lora_documents":
            upper = min(layers, config.adapter.last_layers or layers)
            return DOCUMENT_PASSES * config.window / config.documents.chunk_tokens * upper / layers


def scored_per_second(
    model: ModelConfig, vocab_size: int, config: SlidingConfig | TttConfig, machine: Machine
) -> float | None:
    """Return the tokens that an evaluation scores in a second; None where it scores none."""
    order = max(model.orders, key=len)
    if isinstance(config, SlidingConfig):
        passes = sliding_passes(config)
    else:
        passes = ttt_passes(config, len(order))
    flops = passes * forward_flops(model, vocab_size, order, config.window)
    return machine.rate / flops if flops else None
