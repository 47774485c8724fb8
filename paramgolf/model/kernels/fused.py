"""The network's operations by fused kernels."""

from __future__ import annotations

from paramgolf.model.kernels.heads import split_heads
from paramgolf.model.kernels.loss import nll
from paramgolf.model.kernels.mix_norm import mix_norm
from paramgolf.model.kernels.mlp import mlp
from paramgolf.model.kernels.own_value import finish_heads
from paramgolf.model.operations import Operations

FUSED = Operations(mix_norm, split_heads, finish_heads, mlp, nll)
