"""The network's operations by fused kernels."""

from __future__ import annotations

from paramgolf.kernels.heads import split_heads
from paramgolf.kernels.loss import nll
from paramgolf.kernels.mix_norm import mix_norm
from paramgolf.kernels.mlp import mlp
from paramgolf.kernels.own_value import finish_heads
from paramgolf.model.operations import Operations

FUSED = Operations(mix_norm, split_heads, finish_heads, mlp, nll)
