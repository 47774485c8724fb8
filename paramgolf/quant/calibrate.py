"""Calibration: which text the Hessians see, and the files that come of it.

The text is windows of the training tokens, or text that the model writes itself; validation
tokens are never opened (rule R5). The choice of text is a function of the seed alone, whatever the
number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from paramgolf.data.shards import ShardStream
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_bytes, write_json
from paramgolf.model.network import Network
from paramgolf.progress import say, track
from paramgolf.quant.config import CalibrateConfig
from paramgolf.quant.generate import write
from paramgolf.quant.hessian import gather
from paramgolf.quant.sensitivity import measure
from paramgolf.quant.trained import Trained, load_trained
from paramgolf.runtime import Runtime, synchronize

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
    network = network.on(replace(runtime, compile=False))  # taps defeat compilation
    length = trained.sequence_length
    if config.source == "train":
        stream = tokens.train()
        starts = window_starts(len(stream), length, config.sequences, config.seed)
        sequences = len(starts)
        numbers = deal(sequences, runtime)
        texts_NT = read_windows(stream, starts[numbers], length).to(runtime.device)
    else:
        sequences = config.sequences
        numbers = deal(sequences, runtime)
        texts_NT = _generate(network, numbers, length, tokens.bos, config, runtime)
    batches = texts_NT.split(config.batch_sequences) if len(texts_NT) else ()
    shown = track(batches, "calibrate", total=len(batches), show=runtime.is_main)
    hessians = gather(network, shown, runtime)
    if config.sensitivity_sequences:
        measured = numbers[: int(np.searchsorted(numbers, config.sensitivity_sequences))]
        pairs = _with_draws(texts_NT, measured, config.seed)
        shown = track(pairs, "sensitivity", total=len(measured), show=runtime.is_main)
        hessians |= measure(network, shown, hessians, runtime)
    return hessians, sequences * length


def deal(count: int, runtime: Runtime) -> np.ndarray:
    """Return the numbers of this process's sequences, in rising order, of `count`.

    Sequences are dealt like cards: the first ones, which alone show sensitivities, fall to all
    processes alike.
    """
    return np.arange(runtime.rank, count, runtime.world)


def _with_draws(
    texts_NT: Tensor, numbers: np.ndarray, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the text [1, T] of each number, and draws [T, 1] that follow from seed and number."""
    for text_T, number in zip(texts_NT, numbers, strict=False):
        draws = np.random.default_rng([seed, number, 1]).random((len(text_T), 1))
        yield text_T.unsqueeze(0), torch.from_numpy(draws).to(text_T.device)


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


def read_windows(stream: ShardStream, starts: np.ndarray, length: int) -> Tensor:
    """Return the windows that begin at `starts`, int64 [len(starts), length]."""
    rows = [stream.read(int(start), int(start) + length) for start in starts]
    return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(-1, length))


def write_text(
    network: Network, numbers: Iterable[int], length: int, bos: int, config: CalibrateConfig
) -> Tensor:
    """Let the model write sequences `numbers`, int64 [len(numbers), length] on the model's device.

    Each begins with BOS; every next token is drawn from the model at `config.temperature`. The
    draws of a sequence depend on the seed and its number, not on its batch.
    """
    device = next(network.parameters()).device
    draws = [np.random.default_rng([config.seed, number]).random(length) for number in numbers]
    return write(network, torch.from_numpy(np.stack(draws)).to(device), bos, config.temperature)


def _generate(
    network: Network,
    numbers: np.ndarray,
    length: int,
    bos: int,
    config: CalibrateConfig,
    runtime: Runtime,
) -> Tensor:
    """Return the texts of `numbers`, int64 [N, length], written some at a time."""
    some = range(0, len(numbers), WRITTEN_TOGETHER)
    texts = [torch.empty(0, length, dtype=torch.int64, device=runtime.device)]
    for start in track(some, "writing text", total=len(some), show=runtime.is_main):
        part = numbers[start : start + WRITTEN_TOGETHER]
        texts.append(write_text(network, part, length, bos, config))
    return torch.cat(texts)
