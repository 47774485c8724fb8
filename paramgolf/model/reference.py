"""The plain forms of the operations: the reference of every kernel, and what a CPU runs."""

from __future__ import annotations

from paramgolf.model.head import head_nll
from paramgolf.model.operations import Operations, finish_heads, mix_norm, mlp, split_heads

REFERENCE = Operations(mix_norm, split_heads, finish_heads, mlp, head_nll)
