"""Names and shapes of the network's parameters, the one list of all stages; needs no torch."""

from __future__ import annotations

import math

from paramgolf.model.config import GATE_CHANNELS, ModelConfig

Shape = tuple[int, ...]

MATRICES = ("q", "k", "v", "o", "up", "down")  # stacked over layers: [rows, out, in]
MLP = ("up", "down")  # of MATRICES; the others are attention's
PROJECTIONS = ("value_proj", "bigram_proj")  # matrices outside the blocks: [out, in]
FROZEN = ("softcaps", "repeat_step")  # no optimizer moves them
TABLES = ("embedding", "bigram_table", "value_table")  # one row per token or bucket


def shapes(config: ModelConfig, vocab_size: int) -> dict[str, Shape]:
    """Return the shape of every parameter, by name, in the order of the state dictionary."""
    kv_width = config.kv_heads * config.head_dim
    rows = config.layers + (repeat_count(config) if config.untied_repeats else 0)
    matrices = {
        "embedding": (vocab_size, config.width),
        "q": (config.layers, config.width, config.width),
        "k": (config.layers, kv_width, config.width),
        "v": (config.layers, kv_width, config.width),
        "o": (config.layers, config.width, config.width),
        "up": (rows, config.mlp_hidden, config.width),
        "down": (rows, config.width, config.mlp_hidden),
    }
    extras = _embedding_extras(config, vocab_size, kv_width)
    return {**matrices, **_block_vectors(config), **_lane_vectors(config), **extras}


def repeat_count(config: ModelConfig) -> int:
    """Return how many virtual layers of the longest order repeat a physical one."""
    return max(len(order) for order in config.orders) - config.layers


def count(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters."""
    return sum(math.prod(shape) for shape in shapes(config, vocab_size).values())


def _block_vectors(config: ModelConfig) -> dict[str, Shape]:
    slots = config.slots
    vectors: dict[str, Shape] = {
        "attn_scale": (slots, config.width),
        "mlp_scale": (slots, config.width),
        "resid_mix": (slots, 2, config.width),
        "q_gain": (slots, config.heads),
    }
    if config.skips != "none":
        vectors["skip_weight"] = (config.skip_count, config.width)
    if config.skips == "gated":
        vectors["skip_gate"] = (config.skip_count, config.width)
    if config.head_gate != "none":
        channels = config.width if config.head_gate == "dense" else GATE_CHANNELS
        vectors["head_gate"] = (config.layers, config.heads, channels)
    if config.xsa_form == "learned":
        vectors["xsa_strength"] = (slots, config.heads)
    if config.value_residual:
        vectors["value_lambda"] = (config.layers - 1, 2)
    if config.hidden_gain:
        vectors["hidden_gain"] = (config.layers, config.mlp_hidden)
    if config.repeat_step is not None and repeat_count(config):
        vectors["repeat_step"] = (repeat_count(config), config.width)
    return vectors


def _lane_vectors(config: ModelConfig) -> dict[str, Shape]:
    parallel_layers = config.layers - config.parallel_start
    match config.parallel:
        case "merge":
            return {"lane_merge": (1,)}
        case "routed" | "lanes":
            return {"lane_keep": (config.layers, 2), "lane_write": (config.layers, 2, 2)}
        case "mixed":
            return {
                "lane_merge": (1,),
                "lane_route": (parallel_layers, 4),
                "mlp_mix": (parallel_layers, 2, config.width),
            }
    return {}


def _embedding_extras(config: ModelConfig, vocab_size: int, kv_width: int) -> dict[str, Shape]:
    extras: dict[str, Shape] = {}
    if config.asymmetric_softcap:
        extras["softcaps"] = (2,)
    if config.smear == "channel":
        extras["smear_gate"] = (config.width,)
    if config.smear == "token":
        extras |= {"smear_weight": (GATE_CHANNELS,), "smear_scale": (1,)}
    if config.bigram_buckets:
        extras["bigram_table"] = (config.bigram_buckets, config.bigram_dim)
        extras["bigram_proj"] = (config.width, config.bigram_dim)
        extras["bigram_scale"] = (1,)
    if config.value_embedding_layers:
        extras["value_table"] = (vocab_size, config.value_embedding_dim)
        extras["value_proj"] = (kv_width, config.value_embedding_dim)
        extras["value_scale"] = (1,)
        extras["value_layer_scale"] = (len(config.value_embedding_layers),)
    return extras
