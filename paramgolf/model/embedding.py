"""What enters the first block: token embedding, hashed bigrams, smearing, value embeddings.

All take the parameters as a mapping of tensors in the compute dtype. BOS-masked: nothing of one
document enters the next one's embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.shapes import GATE_CHANNELS

Tensors = Mapping[str, Tensor]


def previous(x: Tensor) -> Tensor:
    """Return x [B, T, ...] moved one position to the right, zeros first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def bigram_ids(tokens_BT: Tensor, buckets: int, bos: int) -> Tensor:
    """Return the bucket of (token, token before): (36313 t XOR 27191 s) mod (buckets - 1).

    The first position of a row and BOS, which have no past, take the last bucket. int64.
    """
    hashed = ((36313 * tokens_BT) ^ (27191 * previous(tokens_BT))) % (buckets - 1)
    starts = tokens_BT == bos
    starts[:, 0] = True
    return torch.where(starts, buckets - 1, hashed)


def embed(tokens_BT: Tensor, tensors: Tensors, *, smear: str, bos: int) -> Tensor:
    """Return the normalised embeddings x0 [B, T, d]."""
    e = F.embedding(tokens_BT, tensors["embedding"])
    if "bigram_table" in tensors:
        table = tensors["bigram_table"]
        bigrams = F.embedding(bigram_ids(tokens_BT, len(table), bos), table)
        e = e + tensors["bigram_scale"] * F.linear(bigrams, tensors["bigram_proj"])
    continues = (tokens_BT != bos).unsqueeze(-1)
    if smear == "token":  # #1667, before the norm
        gate = torch.sigmoid(e[..., :GATE_CHANNELS] @ tensors["smear_weight"]).unsqueeze(-1)
        e = e + tensors["smear_scale"] * gate * continues * previous(e)
    e = F.rms_norm(e, (e.shape[-1],))
    if smear == "channel":  # #1019, after the norm
        gate = torch.sigmoid(tensors["smear_gate"])
        e = (1 - gate) * e + gate * continues * previous(e)
    return e


def value_embedding(tokens_BT: Tensor, tensors: Tensors) -> Tensor | None:
    """Return the value embedding [B, T, kv], not scaled for a layer; None without a table."""
    if "value_table" not in tensors:
        return None
    looked_up = F.embedding(tokens_BT, tensors["value_table"])
    return tensors["value_scale"] * F.linear(looked_up, tensors["value_proj"])
