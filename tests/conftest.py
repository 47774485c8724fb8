"""Fixtures that several rooms share: the sample recipe's parameters and a tiny set of tokens."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores

import numpy as np
import pytest
import torch
from shard_files import write_shard

from paramgolf.files import write_json
from paramgolf.model.config import ModelConfig, RecurrencePhase
from paramgolf.recipes import Params, check, compose

ROOT = Path(__file__).parents[1]
BOS = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA GPU")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def sample() -> Params:
    """The sample recipe, checked."""
    return check(compose("sample", ROOT / "recipes"), where="sample")


@pytest.fixture
def tiny_model(sample: Params) -> Callable[..., ModelConfig]:
    """Make a configuration of 4 layers and width 32, with changes."""

    def make(**changes: object) -> ModelConfig:
        tiny = dataclasses.replace(
            sample.model,
            layers=4,
            width=32,
            heads=4,
            kv_heads=2,
            mlp_hidden=64,
            rope_dims=4,
            parallel_start=3,
            recurrence=(RecurrencePhase(at=0.5, order=(0, 1, 2, 1, 2, 3)),),
        )
        return dataclasses.replace(tiny, **changes)

    return make


def write_tokens(
    folder: Path, *, vocab_size: int = 64, train: int = 20_000, val: int = 3_000
) -> None:
    """Write a folder of tokens as retokenize does: noisy ascending runs in documents of 200."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict = {"schema": 1, "vocab_size": vocab_size, "bos": BOS, "tokenizer": None}
    for split, count in (("train", train), ("val", val)):
        steps = generator.integers(1, 4, count).cumsum() % (vocab_size - 4)
        tokens = np.where(np.arange(count) % 200 == 0, BOS, steps + 4).astype(np.uint16)
        name = f"{split}_000000.bin"
        write_shard(folder / name, tokens)
        manifest[split] = {"files": [{"name": name, "tokens": count}], "tokens": count}
        byte_counts = np.where(tokens == BOS, 0, 1 + tokens % 3).astype(np.uint16)
    write_shard(folder / "val_bytes_000000.bin", byte_counts)
    manifest["val_bytes"] = {"files": [{"name": "val_bytes_000000.bin"}]}
    manifest["val_bytes"]["bytes"] = int(byte_counts.sum())
    write_json(folder / "manifest.json", manifest)


@pytest.fixture
def tokens_folder(tmp_path: Path) -> Path:
    """A folder data/tokens under tmp_path."""
    folder = tmp_path / "data" / "tokens"
    write_tokens(folder)
    return folder


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
