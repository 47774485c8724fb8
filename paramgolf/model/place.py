"""Put a network on its device: precision, attention kernel, compilation."""

from __future__ import annotations

import importlib.util

from paramgolf.errors import ParamGolfError
from paramgolf.model.attention import attend_sdpa, flash_attention_3
from paramgolf.model.network import Network
from paramgolf.runtime import Ranks


def place(network: Network, ranks: Ranks) -> Network:
    """Move `network` to this process's device, in its precision and with its kernels."""
    network.to(ranks.device)
    network.compute_dtype = ranks.compute_dtype
    network.attend = flash_attention_3() if _use_fa3(ranks) else attend_sdpa
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
