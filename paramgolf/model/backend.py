"""Put a network on its device: precision, attention kernel, fused kernels, compilation."""

from __future__ import annotations

import importlib.util

import torch

from paramgolf.errors import ParamGolfError
from paramgolf.model.attention import attend_sdpa, flash_attention_3
from paramgolf.model.config import ModelConfig
from paramgolf.model.network import Network
from paramgolf.runtime import Runtime

HOPPER = (9, 0)  # compute capability with a tensor memory accelerator
ALIGNED = 8  # channels: 16 bytes of bfloat16


def place(network: Network, runtime: Runtime) -> Network:
    """Move `network` to this process's device, in its precision and with its kernels."""
    network.to(runtime.device)
    network.compute_dtype = runtime.compute_dtype
    network.attend = flash_attention_3() if _use_fa3(runtime) else attend_sdpa
    if _use_fused(runtime, network.config):
        from paramgolf.model.kernels.fused import FUSED  # Triton is present where there is a GPU

        network.operations = FUSED
    if runtime.compile:
        network.compile_blocks()
    return network


def _use_fa3(runtime: Runtime) -> bool:
    present = importlib.util.find_spec("flash_attn_interface") is not None
    if runtime.attention == "fa3" and not (present and runtime.device.type == "cuda"):
        raise ParamGolfError(
            "runtime.attention is fa3, which needs a Hopper GPU and the package flash_attn_3",
            found=f"device {runtime.device}, package {'present' if present else 'absent'}",
            fix="set runtime.attention to auto",
        )
    return present and runtime.device.type == "cuda" and runtime.attention != "sdpa"


def _use_fused(runtime: Runtime, config: ModelConfig) -> bool:
    reason = _unfit(runtime, config)
    if runtime.kernels == "fused" and reason:
        raise ParamGolfError(
            "runtime.kernels is fused, which needs a Hopper GPU, Triton, and widths in eights",
            found=reason,
            fix="set runtime.kernels to auto",
        )
    return not reason and runtime.kernels != "reference"


def _unfit(runtime: Runtime, config: ModelConfig) -> str:
    """Return why fused kernels cannot serve, or nothing."""
    if runtime.device.type != "cuda":
        return f"device {runtime.device}"
    if torch.cuda.get_device_capability(runtime.device) < HOPPER:
        return f"device {torch.cuda.get_device_name(runtime.device)}"
    if importlib.util.find_spec("triton") is None:
        return "package triton absent"
    if config.width % ALIGNED or config.mlp_hidden % ALIGNED:
        return f"model.width {config.width}, model.mlp_hidden {config.mlp_hidden}"
    return ""
