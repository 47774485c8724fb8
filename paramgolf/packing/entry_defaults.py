"""Defaults of train_gpt.py's options: those of recipes/base.yaml. Needs no torch."""

from __future__ import annotations

from typing import Any

# the window is the model's sequence length
RUNTIME: dict[str, Any] = {
    "device": "auto",
    "processes": 0,
    "attention": "auto",
    "kernels": "auto",
    "compile": "auto",
    "workers": 0,
}
STRIDE = 64
MIXTURE = {
    "contexts": [15],
    "min_count": 1,
    "weight": 0.1,
    "min_share": 0.8,
    "beta": 2.625,
}
COMMON = {"stride": STRIDE, "batch_windows": 32, "max_tokens": None}
SLIDING = {**COMMON, "row_windows": 16}
ADAPT: dict[str, Any] = {
    **COMMON,
    "chunk_tokens": 32768,
    "epochs": 3,
    "batch_sequences": 16,
    "lr": 0.005,
    "momentum": 0.9,
    "clip_norm": 1.0,
    "adapter": {
        "targets": ["q", "k", "v", "o", "mlp", "head"],
        "rank": 96,
        "alpha": 96.0,
        "seed": 0,
        "lr": 1e-4,
        "beta1": 0.0,
        "beta2": 0.999,
        "eps": 1e-10,
        "decay": 0.5,
        "reset_chunks": 0,
    },
    "documents": {
        "order": "length",
        "batch_documents": 64,
        "lanes": 8,
        "chunk_tokens": 48,
        "short_chunks": [],
        "warm_a": False,
        "phases": 0,
        "prefix_documents": 2000,
    },
}
