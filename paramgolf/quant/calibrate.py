"""Calibration: choose the text, gather Hessians on it, and write them.

The text is windows of the training tokens, or text that the model generates itself; validation
tokens are never opened (rule R5). Which text is used depends on the seed alone, not on the number
of processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from paramgolf.data.shards import ShardStream
from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.data.tokenizer.token_mask import mask_of
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_bytes, write_json
from paramgolf.model.network import Network
from paramgolf.model.token_mask import network_mask
from paramgolf.progress import say, track
from paramgolf.quant.config import CalibrateConfig
from paramgolf.quant.generate import generate
from paramgolf.quant.hessian import gather
from paramgolf.quant.sensitivity import measure
from paramgolf.quant.trained import MASK, TEXTS, Trained, load_trained
from paramgolf.runtime import Runtime, synchronize

HESSIANS_PATH = Path("artifacts/calibrate/hessians.safetensors")
METRICS_PATH = Path("artifacts/metrics/calibrate.json")
# texts; in bfloat16 a token of one takes 17 KB at 17 passes of 4 heads of 64 channels
WRITTEN_TOGETHER = 128


def calibrate(config: CalibrateConfig, runtime: Runtime) -> None:
    """Write the Hessians of the trained model (artifacts/calibrate) and the stage's metrics."""
    trained, tokens = load_trained(), open_tokens()
    start = time.perf_counter()
    hessians, count = collect(trained, tokens, config, runtime)
    synchronize(runtime.device)
    seconds = time.perf_counter() - start
    if runtime.is_main:
        on_cpu = {family: hessian.cpu().contiguous() for family, hessian in hessians.items()}
        write_bytes(HESSIANS_PATH, safetensors.torch.save(on_cpu))
        metrics = {"seconds": seconds, "tokens": count, "source": config.source}
        write_json(METRICS_PATH, metrics)


def collect(
    trained: Trained, tokens: TokenSet, config: CalibrateConfig, runtime: Runtime
) -> tuple[dict[str, Tensor], int]:
    """Return the Hessians, float32 by family, and the number of tokens that they are means over.

    The dictionary also holds the texts of all processes, int32 [N, T], on which quantize adjusts
    and tests its result, the mask of a network that was trained under one, and the sensitivities if
    the config asks for them (see `measure`).
    """
    _check_vocabulary(trained, tokens)
    runtime = replace(runtime, compile=False)  # compiled code calls no taps
    if trained.token_mask:
        trained = replace(trained, mask=network_mask(mask_of(tokens)))
    network = trained_network(trained, runtime)
    seed = trained.seed if config.seed is None else config.seed
    length = trained.sequence_length
    if config.source == "train":
        stream = tokens.train()
        starts = window_starts(len(stream), length, config.sequences, seed)
        sequences, numbers = len(starts), deal(len(starts), runtime)
        texts_NT = read_windows(stream, starts[numbers], length).to(runtime.device)
    else:
        sequences, numbers = config.sequences, deal(config.sequences, runtime)
        texts_NT = generate_texts(network, numbers, length, config, seed=seed, show=runtime.is_main)
    batches = texts_NT.split(config.batch_sequences) if len(texts_NT) else ()
    shown = track(batches, "calibrate", total=len(batches), show=runtime.is_main)
    hessians = gather(load_network(trained, config.network).on(runtime), shown, runtime)
    if config.sensitivity_sequences:
        measured = numbers[: int(np.searchsorted(numbers, config.sensitivity_sequences))]
        pairs = _with_draws(texts_NT, measured, seed)
        shown_pairs = track(pairs, "sensitivity", total=len(measured), show=runtime.is_main)
        hessians |= measure(network, shown_pairs, hessians, runtime)
    texts = torch.zeros(sequences, length, dtype=torch.int32, device=runtime.device)
    texts[torch.from_numpy(numbers).to(runtime.device)] = texts_NT.int()
    # each row is 0 in all processes but one, so that the sum gathers them
    hessians[TEXTS] = runtime.sum(texts)
    if trained.mask is not None:
        fields = trained.mask._asdict().items()
        hessians |= {MASK + name: torch.as_tensor(value) for name, value in fields}
    return hessians, sequences * length


def _check_vocabulary(trained: Trained, tokens: TokenSet) -> None:
    if tokens.vocab_size != trained.vocab_size:
        raise ParamGolfError(
            "the tokens are not those the model was trained on",
            where=tokens.folder,
            expected=f"vocabulary of {trained.vocab_size}",
            found=tokens.vocab_size,
            fix="dvc repro train",
        )


def trained_network(trained: Trained, runtime: Runtime) -> Network:
    """Return the trained network on this process's device, under the mask it was trained under.

    It never learned how unlikely the tokens are that the mask leaves out.
    """
    network = load_network(trained, "trained").on(runtime)
    return network if trained.mask is None else network.with_mask(trained.mask)


def load_network(trained: Trained, kind: Literal["trained", "plain"]) -> Network:
    """Return the trained network, or a plain one with its weights (see calibrate.network)."""
    model = trained.model
    if kind == "plain":
        model = replace(model, recurrence=(), parallel="none", skip_rows=model.skip_count)
    network = Network(model, trained.vocab_size)
    network.load_state_dict({name: trained.state[name] for name in network.state_dict()})
    return network


def deal(count: int, runtime: Runtime) -> np.ndarray:
    """Return the numbers of this process's share of `count` sequences, in rising order.

    Sequences are dealt round-robin: sensitivities are measured on the first ones only, and this
    spreads them evenly over the processes.
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
    """Choose windows of `length` tokens that do not overlap; return their starts, int64, sorted.

    The windows lie on a grid with a random offset, and `sequences` of them are drawn without
    replacement; both follow from the seed. If there are fewer windows, all are taken and the log
    says so.
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


def generate_texts(
    network: Network,
    numbers: Iterable[int],
    length: int,
    config: CalibrateConfig,
    *,
    seed: int,
    show: bool = False,
) -> Tensor:
    """Generate the sequences with these numbers, int64 [len(numbers), length], on the device.

    Each begins with BOS, or with a random token; every further token is sampled from the model at
    `config.temperature`. The random numbers of a sequence depend on the seed and on its own number,
    not on the sequences that are generated in the same batch.
    """
    device = next(network.parameters()).device
    rows = [np.random.default_rng([seed, number]).random(length) for number in numbers]
    draws_NT = torch.from_numpy(np.array(rows).reshape(-1, length)).to(device)
    parts = draws_NT.split(WRITTEN_TOGETHER) if rows else ()
    texts = [torch.empty(0, length, dtype=torch.int64, device=device)]
    for draws in track(parts, "writing text", total=len(parts), show=show):
        first = torch.full_like(draws[:, 0], BOS, dtype=torch.int64)
        if config.first_token == "random":
            first = (draws[:, 0] * network.vocab_size).long()
        texts.append(
            generate(
                network,
                first,
                draws,
                temperature=config.temperature,
                rope_follows_length=config.rope_follows_length,
            )
        )
    return torch.cat(texts)
