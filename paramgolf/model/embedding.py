"""The input of the first block: token embedding, hashed bigrams, smearing, value embeddings.

All functions take the parameters as a mapping of tensors in the compute dtype. Each stops at BOS:
nothing of one document reaches the next one's embeddings.

Shapes: B rows, T tokens, d width, V vocabulary, kv the width of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.config import GATE_CHANNELS, ModelConfig
from paramgolf.model.operations import norm

Tensors = Mapping[str, Tensor]


def previous(x: Tensor) -> Tensor:
    """Return x [B, T, ...] moved one position to the right, zeros first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def bigram_ids(tokens_BT: Tensor, buckets: int, bos: int) -> Tensor:
    """Return the bucket of (token, token before): (36313 t XOR 27191 s) mod (buckets - 1).

    The first position of a row and BOS, which have no past, take the last bucket. int64.
    """
    # different odd factors, so that (a, b) and (b, a) fall into different buckets
    hashed = ((36313 * tokens_BT) ^ (27191 * previous(tokens_BT))) % (buckets - 1)
    starts = tokens_BT == bos
    starts[:, 0] = True
    return torch.where(starts, buckets - 1, hashed)


def embed(
    tokens_BT: Tensor,
    tensors: Tensors,
    config: ModelConfig,
    *,
    bos: int,
    smear: Callable[..., Tensor],
) -> Tensor:
    """Return the normalized embeddings x0 [B, T, d].

    `smear` is `smear_and_norm` or a compiled form of it; without smearing only the norm is left.
    """
    e = F.embedding(tokens_BT, tensors["embedding"])
    if config.bigram_buckets:
        table = tensors["bigram_table"]
        # a narrow table, made wide by a product: most of a bucket's bytes are saved
        bigrams = F.embedding(bigram_ids(tokens_BT, len(table), bos), table)
        e = e + tensors["bigram_scale"] * F.linear(bigrams, tensors["bigram_proj"])
    return norm(e) if config.smear == "none" else smear(e, tokens_BT, tensors, config, bos)


def smear_and_norm(
    e: Tensor, tokens_BT: Tensor, tensors: Tensors, config: ModelConfig, bos: int
) -> Tensor:
    """Return embeddings e [B, T, d] with a share of the one before added, normalized.

    With p the embedding before: token e + scale s(w . e) p before the norm, the gate a number per
    token (pg#1667); channel (1 - s(g)) e + s(g) p after it, a gate per channel (pg#1019).
    """
    if config.smear == "token":
        # the gate reads a few channels alone: it costs next to nothing
        gate = torch.sigmoid(e[..., :GATE_CHANNELS] @ tensors["smear_weight"]).unsqueeze(-1)
        e = e + tensors["smear_scale"] * gate * preceding(e, tokens_BT, bos)
    e = norm(e)
    if config.smear == "channel":
        gate = torch.sigmoid(tensors["smear_gate"])
        e = (1 - gate) * e + gate * preceding(e, tokens_BT, bos)
    return e


def preceding(e: Tensor, tokens_BT: Tensor, bos: int) -> Tensor:
    """Return the embedding before each position [B, T, d], zeros at BOS."""
    return previous(e) * (tokens_BT != bos).unsqueeze(-1)


def value_embedding(tokens_BT: Tensor, tensors: Tensors, config: ModelConfig) -> Tensor | None:
    """Return the value embedding [B, T, kv], not scaled for a layer; None without a table."""
    if not config.value_embedding_layers:
        return None
    # as for bigrams: a narrow table and one product
    looked_up = F.embedding(tokens_BT, tensors["value_table"])
    return tensors["value_scale"] * F.linear(looked_up, tensors["value_proj"])
