"""Calibration: which text the Hessians see, and the files that come of it.

The text is windows of the training tokens, or text that the model writes itself; validation
tokens are never opened (rule R5). The choice of text is a function of the seed alone, whatever the
number of processes.
"""

from __future__ import annotations

import time
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
from paramgolf.model.network import Network, Pass
from paramgolf.model.place import place
from paramgolf.progress import say, track
from paramgolf.quant.config import CalibrateConfig
from paramgolf.quant.hessian import gather
from paramgolf.quant.trained import Trained, load_trained
from paramgolf.runtime import Ranks, share, synchronize

OUT_PATH = Path("artifacts/calibrate/hessians.safetensors")
METRICS_PATH = Path("artifacts/metrics/calibrate.json")


def calibrate(config: CalibrateConfig, ranks: Ranks) -> None:
    """Write the Hessians of the trained model (artifacts/calibrate) and the stage's metrics."""
    trained, tokens = load_trained(), open_tokens()
    start = time.perf_counter()
    hessians, count = collect(trained, tokens, config, ranks)
    synchronize(ranks.device)
    seconds = time.perf_counter() - start
    if ranks.is_main:
        on_cpu = {family: hessian.cpu().contiguous() for family, hessian in hessians.items()}
        write_bytes(OUT_PATH, safetensors.torch.save(on_cpu))
        metrics = {"seconds": seconds, "tokens": count, "source": config.source}
        write_json(METRICS_PATH, metrics)


def collect(
    trained: Trained, tokens: TokenSet, config: CalibrateConfig, ranks: Ranks
) -> tuple[dict[str, Tensor], int]:
    """Return the Hessians, float32 by family, and the number of tokens that they saw."""
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
    place(network, replace(ranks, compile=False))  # taps and growing texts defeat compilation
    length = trained.sequence_length
    if config.source == "train":
        stream = tokens.train()
        starts = window_starts(len(stream), length, config.sequences, config.seed)
        sequences = len(starts)
        mine = _batches(share(sequences, ranks), config.batch_sequences)
        batches = (read_windows(stream, starts[i.start : i.stop], length) for i in mine)
    else:
        sequences = config.sequences
        mine = _batches(share(sequences, ranks), config.batch_sequences)
        batches = (write_text(network, i, length, tokens.bos, config) for i in mine)
    shown = track(batches, "calibrate", total=len(mine), show=ranks.is_main)
    hessians = gather(network, (batch.to(ranks.device) for batch in shown), ranks)
    return hessians, sequences * length


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


@torch.no_grad()
def write_text(
    network: Network, numbers: range, length: int, bos: int, config: CalibrateConfig
) -> Tensor:
    """Let the model write sequences `numbers`, int64 [len(numbers), length] on the model's device.

    Each begins with BOS; every next token is drawn from the model at `config.temperature`. The
    draws of a sequence depend on the seed and its number, not on its batch.
    """
    device = next(network.parameters()).device
    options = Pass(order=network.config.orders[-1])
    draws = [np.random.default_rng([config.seed, number]).random(length) for number in numbers]
    draws_BT = torch.from_numpy(np.stack(draws)).to(device)
    text_BT = torch.full((len(numbers), length), bos, dtype=torch.int64, device=device)
    for position in range(1, length):
        logits = network.logits(text_BT[:, :position], options, part=slice(-1, None))[:, -1]
        chances = torch.softmax(logits.double() / config.temperature, dim=-1)
        text_BT[:, position] = _draw(chances, draws_BT[:, position])
    return text_BT


def _draw(chances_BV: Tensor, draws_B: Tensor) -> Tensor:
    """Return, for each row, the token whose slice of the cumulated chances holds its draw."""
    sums = chances_BV.cumsum(-1)
    targets = (draws_B * sums[:, -1]).unsqueeze(1)
    return torch.searchsorted(sums, targets, right=True).squeeze(1).clamp_max(sums.shape[1] - 1)


def _batches(mine: range, size: int) -> list[range]:
    """Cut a process's share of the sequences into batches of `size`, the last one smaller."""
    return [range(i, min(i + size, mine.stop)) for i in range(mine.start, mine.stop, size)]
