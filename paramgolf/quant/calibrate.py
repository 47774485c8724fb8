"""Calibration: which text the Hessians see, and the files that come of it.

The text is windows of the training tokens, or text that the model writes itself; validation
tokens are never opened (rule R5). The choice of text is a function of the seed alone, whatever the
number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from paramgolf.data.shards import Stream
from paramgolf.data.tokens import TokenSet, open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_bytes, write_json
from paramgolf.model.backend import place
from paramgolf.model.network import Network
from paramgolf.progress import say, track
from paramgolf.quant.config import CalibrateConfig
from paramgolf.quant.generate import write
from paramgolf.quant.hessian import gather
from paramgolf.quant.sensitivity import measure
from paramgolf.quant.trained import Trained, load_trained
from paramgolf.runtime import Runtime, share, synchronize

OUT_PATH = Path("artifacts/calibrate/hessians.safetensors")
METRICS_PATH = Path("artifacts/metrics/calibrate.json")
WRITTEN_TOGETHER = 128  # texts; a token of one takes 35 KB at 17 passes of 4 heads of 64 channels


def calibrate(config: CalibrateConfig, runtime: Runtime) -> None:
    """Write the Hessians of the trained model (artifacts/calibrate) and the stage's metrics."""
    trained, tokens = load_trained(), open_tokens()
    start = time.perf_counter()
    hessians, count = collect(trained, tokens, config, runtime)
    synchronize(runtime.device)
    seconds = time.perf_counter() - start
    if runtime.is_main:
        on_cpu = {family: hessian.cpu().contiguous() for family, hessian in hessians.items()}
        write_bytes(OUT_PATH, safetensors.torch.save(on_cpu))
        metrics = {"seconds": seconds, "tokens": count, "source": config.source}
        write_json(METRICS_PATH, metrics)


def collect(
    trained: Trained, tokens: TokenSet, config: CalibrateConfig, runtime: Runtime
) -> tuple[dict[str, Tensor], int]:
    """Return the Hessians, float32 by family, and the number of tokens that they saw.

    Where sensitivities are asked for they are among them (see `measure`).
    """
    if tokens.vocab_size != trained.vocab_size:
        raise ParamGolfError(
            "the tokens are not those the model was trained on",
            where=tokens.folder,
            expected=f"vocabulary of {trained.vocab_size}",
            found=tokens.vocab_size,
            fix="dvc repro train",
        )
    network = Network(trained.model, trained.vocab_size)
    network.load_state_dict(trained.state)
    place(network, replace(runtime, compile=False))  # taps defeat compilation
    length = trained.sequence_length
    batches: Iterator[Tensor]
    if config.source == "train":
        stream = tokens.train()
        starts = window_starts(len(stream), length, config.sequences, config.seed)
        sequences = len(starts)
        mine = _batches(share(sequences, runtime), config.batch_sequences)
        batches = (read_windows(stream, starts[i.start : i.stop], length) for i in mine)
    else:
        sequences = config.sequences
        mine = _batches(share(sequences, runtime), config.batch_sequences)
        batches = _written(network, mine, length, tokens.bos, config)
    shown = track(batches, "calibrate", total=len(mine), show=runtime.is_main)
    texts: list[Tensor] = []
    hessians = gather(network, (_kept(batch.to(runtime.device), texts) for batch in shown), runtime)
    if config.sensitivity_sequences:
        some = share(min(config.sensitivity_sequences, sequences), runtime)
        rows = torch.cat(texts)[: len(some)]
        pairs = track(
            _drawn(rows, some, config), "sensitivity", total=len(rows), show=runtime.is_main
        )
        hessians |= measure(network, pairs, hessians, runtime)
    return hessians, sequences * length


def _kept(batch: Tensor, texts: list[Tensor]) -> Tensor:
    texts.append(batch)
    return batch


def _drawn(
    rows: Tensor, numbers: range, config: CalibrateConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each text [1, T], and draws [T, 1] that depend on the seed and its number."""
    for row, number in zip(rows, numbers, strict=False):
        draws = np.random.default_rng([config.seed, number, 1]).random((len(row), 1))
        yield row.unsqueeze(0), torch.from_numpy(draws).to(rows.device)


def window_starts(tokens: int, length: int, sequences: int, seed: int) -> np.ndarray:
    """Choose windows of `length` tokens that do not overlap; int64 first positions, in order.

    The grid of windows begins at a seeded offset, and `sequences` of it are drawn without
    repetition. A stream with fewer windows than that gives all it has, and the log says so.
    """
    if tokens < length:
        raise ParamGolfError(
            "the training tokens do not fill one sequence",
            expected=f"at least {length} tokens",
            found=tokens,
            fix="lower train.sequence_length, or take more text",
        )
    generator = np.random.default_rng(seed)
    offset = generator.integers(tokens % length + 1)
    windows = tokens // length
    if windows < sequences:
        say(f"calibrate: the training tokens hold {windows} sequences, not {sequences}; using all")
    chosen = generator.permutation(windows)[:sequences]
    return offset + np.sort(chosen) * length


def read_windows(stream: Stream, starts: np.ndarray, length: int) -> Tensor:
    """Return the windows that begin at `starts`, int64 [len(starts), length]."""
    rows = [stream.read(int(start), int(start) + length) for start in starts]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def write_text(
    network: Network, numbers: range, length: int, bos: int, config: CalibrateConfig
) -> Tensor:
    """Let the model write sequences `numbers`, int64 [len(numbers), length] on the model's device.

    Each begins with BOS; every next token is drawn from the model at `config.temperature`. The
    draws of a sequence depend on the seed and its number, not on its batch.
    """
    device = next(network.parameters()).device
    draws = [np.random.default_rng([config.seed, number]).random(length) for number in numbers]
    return write(network, torch.from_numpy(np.stack(draws)).to(device), bos, config.temperature)


def _written(
    network: Network, mine: list[range], length: int, bos: int, config: CalibrateConfig
) -> Iterator[Tensor]:
    """Yield the texts of each batch; those of several are written together."""
    texts: Tensor | None = None
    for batch in mine:
        if texts is None or len(texts) == 0:
            most = max(WRITTEN_TOGETHER // config.batch_sequences, 1) * config.batch_sequences
            numbers = range(batch.start, min(batch.start + most, mine[-1].stop))
            texts = write_text(network, numbers, length, bos, config)
        yield texts[: len(batch)]
        texts = texts[len(batch) :]


def _batches(mine: range, size: int) -> list[range]:
    """Cut a process's share of the sequences into batches of `size`, the last one smaller."""
    return [range(i, min(i + size, mine.stop)) for i in range(mine.start, mine.stop, size)]
