"""The evaluations that are killed and resumed."""

import dataclasses

from scoring_case import MIXTURE, make_config, make_lora_config

from paramgolf.scoring.adapt import score_adaptive
from paramgolf.scoring.config import MixtureConfig, SlidingConfig
from paramgolf.scoring.sliding import score_sliding

SLIDING = SlidingConfig(
    mode="strided",
    window=16,
    stride=4,
    batch_windows=5,
    row_windows=2,
    max_tokens=None,
    mixture=MixtureConfig(**{**MIXTURE, "kind": "tilt"}),
)
PHASES = {"phases": 2, "prefix_documents": 6, "batch_documents": 2, "warm_a": True}
CASES = {
    "strided": (SLIDING, score_sliding),
    "documents": (dataclasses.replace(SLIDING, mode="documents", batch_windows=2), score_sliding),
    "windowed": (dataclasses.replace(SLIDING, mode="windowed", batch_windows=1), score_sliding),
    "sgd": (make_config(), score_adaptive),
    "lora_stream": (
        make_lora_config("lora_stream", {"reset_chunks": 3}, chunk_tokens=16),
        score_adaptive,
    ),
    "lora_documents": (
        make_lora_config("lora_documents", documents={"batch_documents": 2}),
        score_adaptive,
    ),
    "phases": (
        make_lora_config("lora_documents", documents=PHASES, chunk_tokens=16, epochs=1),
        score_adaptive,
    ),
}
