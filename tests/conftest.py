"""Fixtures that several packages share: the sample recipe's parameters and a tiny set of tokens."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores

import numpy as np
import pytest
import torch
from recipe_case import TINY_MODEL, recipe
from shard_files import write_token_set

from paramgolf.cli import main
from paramgolf.data.special_tokens import BOS
from paramgolf.model.config import ModelConfig
from paramgolf.recipes import Params
from paramgolf.schema import parse

# shells ignore Ctrl-C for what they run in the background, and programs under test would inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--picture", help="write the README's picture of a report to this file")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # first, or processes end up waiting for the one that makes the project they all copy
    items.sort(key=lambda item: "pipeline" not in item.keywords)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA GPU")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def sample() -> Params:
    """The sample recipe, checked."""
    return recipe("sample")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command of `paramgolf` that ends with `code`; return its output, or the error of 2."""

    def call(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*words])
        captured = capsys.readouterr()
        assert ended.value.code == code, captured.err
        return captured.err if code == 2 else captured.out

    return call


@pytest.fixture
def tiny_model(sample: Params) -> Callable[..., ModelConfig]:
    """Make a configuration of 4 layers and width 32, with changes."""

    def make(**changes: object) -> ModelConfig:
        content = dataclasses.asdict(sample.model) | TINY_MODEL
        tiny = parse(ModelConfig, content, "model")
        return dataclasses.replace(tiny, **changes)

    return make


def write_tokens(
    folder: Path, *, vocab_size: int = 64, train: int = 20_000, val: int = 3_000
) -> None:
    """Write a folder of tokens as retokenize does: noisy ascending runs in documents of 200."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        steps = generator.integers(1, 4, count).cumsum() % (vocab_size - 4)
        return np.where(np.arange(count) % 200 == 0, BOS, steps + 4).astype(np.uint16)

    trained, scored = draw(train), draw(val)
    byte_counts = np.where(scored == BOS, 0, 1 + scored % 3).astype(np.uint16)
    write_token_set(
        folder, train=[trained], val=[scored], val_bytes=[byte_counts], vocab_size=vocab_size
    )


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


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of moto's S3 server on 127.0.0.1."""
    fsspec = pytest.importorskip("fsspec")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"golf-{os.urandom(4).hex()}"  # what the server holds outlives it, in this process
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}/runs"
    server.stop()
