"""How a network computes: one value, made here for the machine that a process runs on."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramgolf.errors import ParamGolfError
from paramgolf.gpu_support import (
    FLASH_ATTENTION_4_MODULE,
    FLASH_ATTENTION_MODULE,
    cudnn_attention_obstacle,
    flash_attention_4_obstacle,
    flash_attention_obstacle,
    fused_kernels_obstacle,
)
from paramgolf.model.attention import (
    Attend,
    attend_sdpa,
    attend_to_others,
    cudnn_attention,
    flash_attention_3,
    flash_attention_4,
    pytorch_attention,
    require_fixed_order,
)
from paramgolf.model.block import Context, Kind, Lanes, Weights, block
from paramgolf.model.config import ModelConfig
from paramgolf.model.embedding import smear_and_norm
from paramgolf.model.head import head_nll, lanes_nll
from paramgolf.model.operations import Operations, finish_heads, mix_norm, mlp, split_heads
from paramgolf.model.torch_internals import (
    let_vary,
    require_known_torch,
    set_up_compiler,
)
from paramgolf.runtime import Runtime

# the plain forms, which a CPU runs and every kernel is compared with
REFERENCE = Operations(mix_norm, split_heads, finish_heads, mlp, head_nll)
GRAPHS = 64  # of the block: kinds, times shapes of batches, times with gradients or without
COMPILED = "block", "smear", "nll", "add"  # of a backend, where runtime.compile is on
PREFERRED = "fa3", "fa4", "sdpa"  # attention, where runtime.attention is auto
ALIGNED = 8  # channels: rows of bfloat16 in multiples of 16 bytes, as the TMA wants them


def add_all(tensors: list[Tensor]) -> Tensor:
    """Return the sum of `tensors` in their dtype, added up in float32."""
    return sum((x.float() for x in tensors[1:]), tensors[0].float()).to(tensors[0].dtype)


@dataclass(frozen=True, slots=True)
class Backend:
    """How a network computes a pass; the defaults are plain float32 on any device.

    Another way is another value: `dataclasses.replace`, then Network.with_backend.

    Attributes:
        dtype: what parameters are cast to and sublayers compute in.
        attend: causal attention.
        copy_keys: attention that learns is given a key and a value head for each query head.
        attend_to_others: the same without each position's own term (XSA of pg#1499).
        operations: the operations that have fused kernels.
        block: block.block, or a compiled form.
        smear: embedding.smear_and_norm, or a compiled form.
        nll: head.lanes_nll, or a compiled form.
        add: the sum of a tensor's gradients from its readers, `add_all` or a compiled form.
        fake_quant: what the passes see of matrices, by name, in late QAT; None: the matrices.
        mix_heads: what they see of q, k and v where training mixes heads; None: the parameters.
    """

    dtype: torch.dtype = torch.float32
    attend: Attend = attend_sdpa
    copy_keys: bool = False
    attend_to_others: Attend = attend_to_others
    operations: Operations = REFERENCE
    block: Callable[..., Lanes] = block
    smear: Callable[..., Tensor] = smear_and_norm
    nll: Callable[..., Tensor] = lanes_nll
    add: Callable[[list[Tensor]], Tensor] = add_all
    fake_quant: Callable[[str, Tensor], Tensor] | None = None
    mix_heads: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None


def backend_for(runtime: Runtime, config: ModelConfig) -> Backend:
    """Return the backend of a network on this process's device, as runtime.* asks."""
    require_known_torch()
    backend = Backend(
        dtype=runtime.compute_dtype,
        attend=attention_for(runtime),
        # FlashAttention-3 adds up the gradients of a shared key in float32 in memory: zeros are
        # written, heads added to them, and sums read and converted, where copies are but written
        copy_keys=attention_name(runtime) == "fa3",
        operations=fused_operations() if _use_fused(runtime, config) else REFERENCE,
    )
    return compiled(backend) if runtime.compile else backend


def attention_name(runtime: Runtime) -> str:
    """Return the word of the attention that serves this process's device: runtime.attention.

    auto: FlashAttention-3, or else FlashAttention-4, or else PyTorch's kernels, or else, on a CPU,
    its plain form.
    """
    name, obstacles = runtime.attention, attention_obstacles(_capability(runtime))
    if name == "auto":
        name = next(one for one in PREFERRED if obstacles[one] is None)
    _refuse("attention", name, obstacles[name])
    return name


def attention_for(runtime: Runtime) -> Attend:
    """Return attention on this process's device, by `attention_name`."""
    name = attention_name(runtime)
    if name == "sdpa" and runtime.device.type == "cpu":
        return attend_sdpa
    if name in ("fa3", "fa4"):
        load = flash_attention_3 if name == "fa3" else flash_attention_4
        attend = load(deterministic=runtime.deterministic)
    else:
        attend = cudnn_attention() if name == "cudnn" else pytorch_attention()
    if runtime.deterministic:
        require_fixed_order(attend, runtime.device)
    return attend


def attention_obstacles(capability: tuple[int, int] | None) -> dict[str, str | None]:
    """Return why each attention cannot serve a device of that compute capability, None if it can.

    By the words of runtime.attention; the capability of a CPU is None.
    """
    fa3, fa4 = _installed(FLASH_ATTENTION_MODULE), _installed(FLASH_ATTENTION_4_MODULE)
    return {
        "fa3": flash_attention_obstacle(capability, installed=fa3),
        "fa4": flash_attention_4_obstacle(capability, installed=fa4),
        "cudnn": cudnn_attention_obstacle(capability),
        "sdpa": None,
    }


def _refuse(key: str, wanted: str, obstacle: str | None) -> None:
    """Raise ParamGolfError where what a runtime key asks for has an obstacle."""
    if obstacle:
        raise ParamGolfError(
            f"runtime.{key} is {wanted}, which cannot be used here",
            found=obstacle,
            fix=f"set runtime.{key} to auto",
        )


def fused_operations() -> Operations:
    """Load the fused kernels; package triton is needed."""
    # here, not at the top: Triton is present where there is a GPU
    from paramgolf.model.kernels import heads, loss, mix_norm, mlp, xsa

    return Operations(mix_norm.mix_norm, heads.split_heads, xsa.finish_heads, mlp.mlp, loss.nll)


def compiled(backend: Backend) -> Backend:
    """Return the backend with block, smearing, loss and sums compiled by torch.compile.

    A kind of block costs one graph, however many layers are of it. Every size is fixed, which makes
    the fastest code, but for those of documents, so that longer ones need no graphs of their own.
    """
    set_up_compiler(graphs=GRAPHS, dynamic_sources=document_sources())
    forms: dict[str, Any] = {
        name: torch.compile(getattr(backend, name), dynamic=False) for name in COMPILED
    }
    return dataclasses.replace(backend, **forms)


def uncompiled(backend: Backend) -> Backend:
    """Return the backend as it was before `compiled`, for passes too few to compile them for."""
    plain = Backend()
    return dataclasses.replace(backend, **{name: getattr(plain, name) for name in COMPILED})


def document_sources() -> str:
    """Return how compiled code names the bounds of documents and the longest one's length.

    It goes by the name that `block` gives its context: L['c'].segments.bounds. By place, since the
    packed program has no annotations.
    """
    _lanes, _weights, context, _kind = inspect.signature(block).parameters
    return ",".join(f"L['{context}'].segments.{field}" for field in ("bounds", "longest"))


def share_graphs(backend: Backend) -> Backend:
    """Return a compiled backend whose passes of documents, with adapters for rows, share graphs.

    Their rows and tokens may differ: documents come in many shapes, and a graph of each would cost
    seconds. A pass of one row has graphs of its own, since PyTorch tells 1 apart from all other
    sizes. Sizes of weights, heads and low ranks stay fixed.

    Blocks alone are compiled. The layer that ends a pass at some positions, and the head behind it,
    do most of their work at few tokens: graphs of theirs cost more than they save.
    """
    plain = uncompiled(backend)

    def block_marked(lanes: Lanes, weights: Weights, context: Context, kind: Kind) -> Lanes:
        c = context
        if c.part is not None:
            return plain.block(lanes, weights, c, kind)
        # rows and tokens; cos and sin have tokens first, adapters rows
        _vary((lanes, c.x0, c.value_embedding, c.first_values, c.skip), 0, 1)
        _vary((c.cos, c.sin, c.adapters), 0)
        return backend.block(lanes, weights, c, kind)

    return dataclasses.replace(plain, block=block_marked)


def _vary(tree: Any, *dimensions: int) -> None:
    """Make these dimensions of the tensors in nested tuples symbols of the graphs."""
    for tensor in _tensors(tree):
        let_vary(tensor, *dimensions)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from _tensors(part)


def _use_fused(runtime: Runtime, config: ModelConfig) -> bool:
    obstacle = fused_kernels_obstacle(_capability(runtime), triton=_installed("triton"))
    if not obstacle and (config.width % ALIGNED or config.mlp_hidden % ALIGNED):
        obstacle = f"model.width {config.width}, model.mlp_hidden {config.mlp_hidden}"
    if runtime.kernels == "fused":
        _refuse("kernels", "fused", obstacle)
    return not obstacle and runtime.kernels != "reference"


def _capability(runtime: Runtime) -> tuple[int, int] | None:
    on_gpu = runtime.device.type == "cuda"
    return torch.cuda.get_device_capability(runtime.device) if on_gpu else None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would lie in is absent
        return False
