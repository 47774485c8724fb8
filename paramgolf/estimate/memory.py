"""Bytes of one device's memory while it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paramgolf.estimate.devices import Device
from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, PROJECTIONS, shapes
from paramgolf.training.config import TrainConfig

FLOAT32 = 4
# Activations that a compiled block keeps for its backward pass, values a token and pass. Of the
# width: the input, its mix with x0, its norm, q before and after norm and rotation, attention's
# output before and after XSA and projected, the second residual, its norm, the MLP's output and the
# block's. Of the key/value width: k before and after its norm, v, and v's direction. Of the MLP:
# before and after the activation. Measured on an H100 at d 512, kv 256, m 2048: 11,320 values,
# where this counts 11,264; parallel layers keep a little less.
WIDTH_VALUES, KV_VALUES, MLP_VALUES = 12, 4, 2
# The head, bytes a token and word: the softcap's float32 output, the log-softmax's, and two
# gradients of them at once. Measured on an H100 at 8,192 words: 15.2 to 16.1.
HEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class Memory:
    """Expected bytes at the peak, the last backward pass of a step, on each device.

    The optimiser's own scratch space comes when the activations are gone, and is not counted; nor
    are the libraries' contexts (1 to 2 GB on a GPU) and what the allocator cannot use.
    """

    weights: int  # float32, and their copy in the dtype of computation
    gradients: int
    optimiser: int  # Muon: one momentum; AdamW: two moments
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimiser + self.average + self.activations


def training_memory(
    model: ModelConfig, train: TrainConfig, vocab_size: int, device: Device, count: int
) -> Memory:
    """Return the memory of one of `count` devices, in the longest layer order."""
    sizes = {name: math.prod(shape) for name, shape in shapes(model, vocab_size).items()}
    parameters = sum(sizes.values())
    muon_names = MATRICES if train.muon_blocks_only else (*MATRICES, *PROJECTIONS)
    muon = sum(size for name, size in sizes.items() if name in muon_names)
    copy = device.compute_bytes if device.compute_bytes < FLOAT32 else 0
    return Memory(
        weights=(FLOAT32 + copy) * parameters,
        gradients=(FLOAT32 + copy) * parameters,
        optimiser=FLOAT32 * muon + 2 * FLOAT32 * (parameters - muon),
        average=FLOAT32 * parameters,
        activations=activation_bytes(model, train, vocab_size, device, count),
    )


def activation_bytes(
    model: ModelConfig, train: TrainConfig, vocab_size: int, device: Device, count: int
) -> int:
    """Return the bytes that a micro-batch's forward pass keeps, and the head's peak."""
    largest = max(sizes.batch_tokens for sizes in train.sizes)
    tokens = -(-largest // count)
    if train.micro_batch_tokens != "auto":
        tokens = min(train.micro_batch_tokens, tokens)
    kv_width = model.kv_heads * model.head_dim
    values = WIDTH_VALUES * model.width + KV_VALUES * kv_width + MLP_VALUES * model.mlp_hidden
    passes = max(map(len, model.orders))
    return tokens * (device.compute_bytes * passes * values + HEAD_BYTES * vocab_size)
