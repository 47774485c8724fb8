"""How much arithmetic a token costs; needs no torch."""

from __future__ import annotations

from paramgolf.model.config import ModelConfig, Order

TRAINING_FACTOR = 3  # backward costs twice the forward
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12}  # dense bfloat16, by the vendor's datasheet


def forward_flops(config: ModelConfig, vocab_size: int, order: Order, length: int) -> float:
    """Return the operations of one token's forward pass: matrix products, and causal attention.

    Both products of attention count.
    """
    kv_width = config.kv_heads * config.head_dim
    attention = 2 * config.width * config.width + 2 * kv_width * config.width
    mlp = 2 * config.width * config.mlp_hidden
    attended = [layer for layer in order if config.first_attention or layer > 0]
    products = len(attended) * attention + len(order) * mlp + vocab_size * config.width
    return 2.0 * products + 4.0 * config.width * sum(seen(config, i, length) for i in attended)


def training_flops(config: ModelConfig, vocab_size: int, order: Order, length: int) -> float:
    """Return the operations of one token's forward and backward pass."""
    return TRAINING_FACTOR * forward_flops(config, vocab_size, order, length)


def seen(config: ModelConfig, layer: int, length: int) -> float:
    """Return the mean number of positions that a layer's attention sees in rows of `length`."""
    window = min(config.window, length) if layer in config.window_layers else length
    return window - window * window / (2 * length)


def peak_flops(device_name: str) -> float | None:
    """Return the peak rate of a device, operations per second, or None where it is not known."""
    return next((rate for name, rate in PEAK_FLOPS.items() if name in device_name), None)
