"""Put a network on its device: precision, attention kernel, fused kernels, compilation."""

from __future__ import annotations

import importlib.util

import torch

from paramgolf.errors import ParamGolfError
from paramgolf.model.attention import attend_sdpa, flash_attention_3
from paramgolf.model.config import ModelConfig
from paramgolf.model.network import Network
from paramgolf.runtime import Ranks

HOPPER = (9, 0)  # compute capability with a tensor memory accelerator
ALIGNED = 8  # channels: 16 bytes of bfloat16


def place(network: Network, ranks: Ranks) -> Network:
    """Move `network` to this process's device, in its precision and with its kernels."""
    network.to(ranks.device)
    network.compute_dtype = ranks.compute_dtype
    network.attend = flash_attention_3() if _use_fa3(ranks) else attend_sdpa
    if _use_fused(ranks, network.config):
        from paramgolf.model.kernels.fused import FUSED  # Triton is present where there is a GPU

        network.operations = FUSED
    if ranks.compile:
        network.compile_blocks()
    return network


def _use_fa3(ranks: Ranks) -> bool:
    present = importlib.util.find_spec("flash_attn_interface") is not None
    if ranks.attention == "fa3" and not (present and ranks.device.type == "cuda"):
        raise ParamGolfError(
            "runtime.attention is fa3, which needs a Hopper GPU and the package flash_attn_3",
            found=f"device {ranks.device}, package {'present' if present else 'absent'}",
            fix="set runtime.attention to auto",
        )
    return present and ranks.device.type == "cuda" and ranks.attention != "sdpa"


def _use_fused(ranks: Ranks, config: ModelConfig) -> bool:
    reason = _unfit(ranks, config)
    if ranks.kernels == "fused" and reason:
        raise ParamGolfError(
            "runtime.kernels is fused, which needs a Hopper GPU, Triton, and widths in eights",
            found=reason,
            fix="set runtime.kernels to auto",
        )
    return not reason and ranks.kernels != "reference"


def _unfit(ranks: Ranks, config: ModelConfig) -> str:
    """Return why fused kernels cannot serve, or nothing."""
    if ranks.device.type != "cuda":
        return f"device {ranks.device}"
    if torch.cuda.get_device_capability(ranks.device) < HOPPER:
        return f"device {torch.cuda.get_device_name(ranks.device)}"
    if importlib.util.find_spec("triton") is None:
        return "package triton absent"
    if config.width % ALIGNED or config.mlp_hidden % ALIGNED:
        return f"model.width {config.width}, model.mlp_hidden {config.mlp_hidden}"
    return ""
