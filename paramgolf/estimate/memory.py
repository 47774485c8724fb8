"""Bytes of one device's memory while it trains.

The peak is where the backward pass begins: every block has left there what its own backward pass
will read, and the head holds the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from paramgolf.estimate.speed import Machine
from paramgolf.model.config import ModelConfig
from paramgolf.model.plan import VirtualLayer, plan
from paramgolf.model.shapes import MATRICES, PROJECTIONS, shapes
from paramgolf.training.config import TrainConfig

FLOAT32 = 4
DTYPE_BYTES = {"float32": FLOAT32, "bfloat16": 2}
# What the fused kernels keep of a block's lanes, in widths per token, by the way the block runs:
# always, and more where a skip enters. A lane that is mixed with x0 is kept, and its norm; lanes
# that are added as they are leave their norm alone, which the MLP reads. Sublayers' outputs are
# kept where a learned weight multiplies them.
LANE_WIDTHS = {
    "none": (3, 0),  # the block's input, attention's norm, the MLP's norm
    "single": (2, 0),  # the input, and one norm for both
    "merge": (3, 1),  # attention's lane, its norm, the norm of the MLP's lane
    "routed": (8, 2),  # both lanes before and after the first write, two norms, two outputs
    "mixed": (6, 2),  # two lanes, two norms, two outputs
    "lanes": (6, 1),  # the same
}
# Of the embedding: the sum of the tables' rows and its norm; with smearing, what it was before. Of
# the head: the last lane, its norm, and the gradients of both.
EMBEDDING_WIDTHS, SMEARED_WIDTHS, HEAD_WIDTHS = 2, 1, 4
# Without the kernels plain operations keep more. Of the width, in a block: the input, its mix with
# x0, its norm, q before and after norm and rotation, attention's output before and after XSA and
# projected, the second residual, its norm, the MLP's output and the block's. Of the key/value
# width: k before and after its norm, v, and v's direction. Of the MLP: before and after the
# activation. The sample on a CPU keeps 107,480 bytes per token, of which this counts 106,496.
PLAIN_WIDTHS, PLAIN_KV_WIDTHS, PLAIN_MLP_WIDTHS = 12, 4, 2
PLAIN_HEAD_BYTES = 16  # per token and word: float32 caps and log-softmax, and both gradients


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Expected bytes at the peak of a step on each device, as torch counts what it allocated.

    Not counted: the libraries' contexts (1 to 2 GB on a GPU), and what the allocator holds back,
    above all beside the memory of CUDA graphs, which only a replay may use.
    """

    weights: int  # float32, and their copy in the dtype of computation
    gradients: int
    optimizer: int  # Muon: momentum, one or more averages; AdamW: two moments
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def training_memory(
    model: ModelConfig, train: TrainConfig, vocab_size: int, machine: Machine
) -> TrainingMemory:
    """Return the memory of one of a machine's devices, in the longest layer order."""
    device = machine.device
    sizes = {name: math.prod(shape) for name, shape in shapes(model, vocab_size).items()}
    parameters = sum(sizes.values())
    muon_names = MATRICES if train.muon_blocks_only else (*MATRICES, *PROJECTIONS)
    muon = sum(size for name, size in sizes.items() if name in muon_names)
    copy = device.compute_bytes if device.compute_bytes < FLOAT32 else 0
    tokens = pass_tokens(train, machine.count)
    each = _fused_bytes if device.fused_kernels else _plain_bytes
    return TrainingMemory(
        weights=(FLOAT32 + copy) * parameters,
        gradients=FLOAT32 * parameters,
        optimizer=DTYPE_BYTES[train.muon_dtype] * muon + 2 * FLOAT32 * (parameters - muon),
        average=FLOAT32 * parameters,
        activations=tokens * each(model, vocab_size, device.compute_bytes)
        + tokens * _own_term_bytes(model, train, device.compute_bytes)
        + tokens * _short_bytes(model, train),
    )


def pass_tokens(train: TrainConfig, count: int) -> int:
    """Return the tokens of the largest pass of one of `count` devices."""
    tokens = -(-max(sizes.batch_tokens for sizes in train.batch_sizes) // count)
    return tokens if train.micro_batch_tokens == "auto" else min(train.micro_batch_tokens, tokens)


def _fused_bytes(model: ModelConfig, vocab_size: int, compute_bytes: int) -> int:
    """Return the activations per token, bytes, that the fused kernels leave at the peak.

    The logits are in the dtype of computation, and their gradient is written over them.
    """
    order = max(model.orders, key=len)
    values = sum(block_values(model, layer) for layer in plan(model, order)) + vocab_size
    widths = EMBEDDING_WIDTHS + HEAD_WIDTHS + SMEARED_WIDTHS * (model.smear != "none")
    return compute_bytes * (values + widths * model.width)


def block_values(model: ModelConfig, layer: VirtualLayer) -> int:
    """Return the values per token that one block's fused kernels keep for its backward pass."""
    kind = model.parallel if layer.parallel else "none"
    if kind == "none" and not layer.attention:
        kind = "single"
    lanes, entering = LANE_WIDTHS[kind]
    widths = lanes + entering * (layer.skip_row is not None)
    values = model.mlp_hidden  # the activation; what it was made of is found in it
    if layer.attention:
        kv = 2 * model.kv_heads * model.head_dim
        values += model.width + kv  # the packed projection
        values += model.width + layer.kv_copies * kv  # q, k and v as attention reads them
        values += 2 * model.heads  # attention's sums, float32
        widths += 1  # attention's output
        widths += layer.xsa or model.head_gate != "none"  # which the projection does not read
    return values + widths * model.width


def _own_term_bytes(model: ModelConfig, train: TrainConfig, compute_bytes: int) -> int:
    """Return the bytes per token of attention's weights, where it keeps them (own_term).

    They are T numbers for each head, in float32 and in the dtype of computation.
    """
    if model.xsa_form != "own_term":
        return 0
    length = max(sizes.sequence_length for sizes in train.batch_sizes)
    layers = sum(layer.xsa for layer in plan(model, max(model.orders, key=len)))
    return layers * model.heads * length * (FLOAT32 + compute_bytes)


def _short_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Return the bytes per token that products in FP8 keep beside the others.

    Of each pass through an MLP: its input, transposed, and the signs of its hidden channels. The
    activation and its transpose, a byte each, take the place of two.
    """
    if train.precision == "bf16":
        return 0
    return max(map(len, model.orders)) * (model.width + model.mlp_hidden // 8)


def _plain_bytes(model: ModelConfig, vocab_size: int, compute_bytes: int) -> int:
    """Return the activations per token, bytes, that plain operations leave at the peak."""
    kv_width = model.kv_heads * model.head_dim
    values = PLAIN_WIDTHS * model.width + PLAIN_KV_WIDTHS * kv_width
    values += PLAIN_MLP_WIDTHS * model.mlp_hidden
    passes = max(map(len, model.orders))
    return compute_bytes * passes * values + PLAIN_HEAD_BYTES * vocab_size
