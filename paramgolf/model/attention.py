"""Causal attention by PyTorch or FlashAttention, the segments that it stays in, rotary angles.

Shapes: B rows, T tokens, H query heads, K key and value heads, D channels per head.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.errors import ParamGolfError
from paramgolf.gpu_support import FLASH_ATTENTION_4_MODULE, FLASH_ATTENTION_MODULE

PROBE = 4, 2048, 8, 64  # rows, tokens, heads, channels: enough for many processors to meet
BOUNDS_MULTIPLE = 64  # bounds are padded, so that compiled code sees few shapes


class Segments(NamedTuple):
    """Parts of a batch that attention does not cross: documents, cut where they grow too long.

    `bounds` [n + 1] int32 are the first positions of the segments in the flattened batch, and its
    end; repeats of the end are padding. None: each row is one. `longest` is an upper bound of a
    segment's tokens. With `window` a position sees no more than so many, its own among them.
    """

    bounds: Tensor | None
    longest: int
    window: int | None = None

    def within(self, window: int) -> Segments:
        """Return the segments with a window of no more than `window`."""
        return self._replace(window=min(window, self.window or window))


Attend = Callable[[Tensor, Tensor, Tensor, Segments | None], Tensor]


def find_segments(
    tokens_BT: Tensor, bos: int, longest: int, *, multiple: int = BOUNDS_MULTIPLE
) -> Segments:
    """Return the segments of a batch: they begin with a row, with BOS, or `longest` after one."""
    bounds = find_bounds(tokens_BT, bos, longest, multiple=multiple)
    return Segments(bounds.to(tokens_BT.device), longest)


def find_bounds(tokens_BT: Tensor, bos: int, longest: int, *, multiple: int) -> Tensor:
    """Return the bounds of a batch's segments, on the CPU, padded to a multiple of `multiple`.

    Tokens on a GPU are waited for.
    """
    B, T = tokens_BT.shape
    starts = tokens_BT == bos
    starts[:, 0] = True  # the rows are one after another, and none goes on into the next
    first = starts.flatten().nonzero().flatten().cpu()
    ends = torch.cat([first[1:], torch.tensor([B * T])])
    # a document of n tokens is ceil(n / longest) pieces; `within` numbers the pieces of each
    pieces = (ends - first + longest - 1) // longest
    within = torch.arange(int(pieces.sum())) - (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
    bounds = first.repeat_interleave(pieces) + within * longest
    padding = multiple - len(bounds) % multiple
    return torch.cat([bounds, torch.full((padding,), B * T)]).int()


def attend_sdpa(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, segments: Segments | None = None
) -> Tensor:
    """Return causal attention [B, T, H, D] by PyTorch; the heads of a group share k and v.

    With segments the mask has T^2 entries per row: meant for short rows, on a CPU.
    """
    # PyTorch wants heads before positions
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
    grouped = q.shape[1] != k.shape[1]
    mask = None if segments is None else _segment_mask(q, segments)
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    )
    return y.transpose(1, 2)


def attend_to_others(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, segments: Segments | None = None
) -> Tensor:
    """Return causal attention [B, T, H, D] without each position's own term (XSA of pg#1499).

    With a the softmax over a position t and its past, the result is the sum of a_tj v_j over j < t:
    what is left is not scaled up. Plain PyTorch with T^2 numbers for each head, for no kernel tells
    a_tt; in float32, since rounding scores of 40 to bfloat16 would change weights by an eighth.
    """
    _, T, H, D = q_BTHD.shape
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
    mask = _segment_mask(q, segments or Segments(None, T))
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    scores = q.float() @ k.float().mT / D**0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).tril(-1)
    y: Tensor = weights.to(v.dtype) @ v
    return y.transpose(1, 2)


def _segment_mask(q_BHTD: Tensor, segments: Segments) -> Tensor:
    """Return which position may see which, bool [B or 1, 1, T, T]: itself, its segment's past."""
    B, _, T, _ = q_BHTD.shape
    if segments.bounds is None:
        mask = torch.ones(1, 1, T, T, dtype=torch.bool, device=q_BHTD.device).tril()
    else:
        positions = torch.arange(B * T, device=q_BHTD.device, dtype=torch.int32)
        # the segment of each position; the causal part of "the same segment" is what it may see
        owner = torch.searchsorted(segments.bounds, positions, right=True).view(B, T)
        mask = (owner[:, None, :, None] == owner[:, None, None, :]).tril()
    # triu cuts what lies `window` or more positions back
    return mask if segments.window is None else mask.triu(1 - segments.window)


def flash_attention_3(*, deterministic: bool = False) -> Attend:
    """Load FlashAttention-3 (Hopper, bfloat16) and return causal attention [B, T, H, D] by it.

    Its backward adds the gradients of queries as its blocks of keys come, unless `deterministic`.
    """
    kernels = _imported(FLASH_ATTENTION_MODULE)

    def rows(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None) -> Any:
        window = _window(segments)
        return kernels.flash_attn_func(q, k, v, causal=True, window_size=window, **order)

    order = {"deterministic": True} if deterministic else {}
    return _by_bounds(rows, kernels.flash_attn_varlen_func, causal=True, num_splits=1, **order)


def flash_attention_4(*, deterministic: bool = False) -> Attend:
    """Load FlashAttention-4 (Hopper and Blackwell, bfloat16) and return causal attention by it.

    It compiles its kernels by itself, so PyTorch's compiler calls it between two graphs.
    """
    kernels = _imported(FLASH_ATTENTION_4_MODULE)
    options = {"causal": True, "deterministic": deterministic}

    def rows(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None) -> Any:
        window = _window_or_none(_window(segments))
        return kernels.flash_attn_func(q, k, v, window_size=window, **options)

    def packed(q: Tensor, k: Tensor, v: Tensor, *bounds: Any, window_size: tuple[int, int]) -> Any:
        names = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"
        given = dict(zip(names, bounds, strict=True)) | options
        window = _window_or_none(window_size)
        return kernels.flash_attn_varlen_func(q, k, v, window_size=window, **given)

    attend: Attend = torch.compiler.disable(_by_bounds(rows, packed))
    return attend


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # it is there, but built for another torch or CUDA
        raise ParamGolfError(
            f"{module} is installed but cannot be imported",
            found=error,
            fix="install a build for this torch, or set runtime.attention to sdpa",
        ) from None


def _window_or_none(window: tuple[int, int]) -> tuple[int | None, int]:
    """Return a window as FlashAttention-4 wants it: None for all, where others take -1."""
    left, right = window
    return None if left < 0 else left, right


def require_fixed_order(attend: Attend, device: torch.device) -> None:
    """Refuse attention whose gradients differ between runs.

    Some builds of FlashAttention-3 take the word `deterministic` and do as before.
    """
    generator = torch.Generator(device).manual_seed(0)
    given = torch.randn(4, *PROBE, generator=generator, device=device).bfloat16()
    q, k, v, gradient = given.requires_grad_().unbind()
    runs = [torch.autograd.grad(attend(q, k, v, None), (q, k, v), gradient) for _ in range(3)]
    if not all(torch.equal(x, y) for run in runs for x, y in zip(run, runs[0], strict=True)):
        raise ParamGolfError(
            "runtime.deterministic is true, but attention's gradients differ from run to run",
            fix="install a flash_attn_3 whose backward can be deterministic, or set"
            " runtime.attention to sdpa",
        )


def pytorch_attention() -> Attend:
    """Return causal attention [B, T, H, D] by PyTorch's FlashAttention-2, for a GPU, in bfloat16.

    Rows, too, are segments of one sequence: of scaled_dot_product_attention, compiled by torch 2.11
    for an H100, the gradients came out with positions and heads changed about. And documents need
    no mask so; with one, cuDNN's gradients are NaN for some lengths (pytorch/pytorch#196678).
    """

    def rows(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None) -> Tensor:
        B, T = q.shape[:2]
        bounds = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device)
        return attend(q, k, v, (segments or Segments(None, T))._replace(bounds=bounds))

    attend = _by_bounds(rows, **_varlen())
    return attend


def cudnn_attention() -> Attend:
    """Return `pytorch_attention` with cuDNN's kernel for rows, where it has one for them.

    Not for windows, which PyTorch's function has only as a mask. PyTorch's compiler calls it
    between two graphs, for the reason that `pytorch_attention` gives.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    others = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    preferred = [SDPBackend.CUDNN_ATTENTION, *others]

    def rows(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None) -> Tensor:
        if segments is not None and segments.window is not None:
            return attend_sdpa(q, k, v, segments)
        with sdpa_kernel(preferred, set_priority=True):
            return attend_sdpa(q, k, v)

    attend: Attend = torch.compiler.disable(_by_bounds(rows, **_varlen()))
    return attend


def _varlen() -> dict[str, Any]:
    from torch.nn.attention.varlen import varlen_attn

    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.11 needs none
    return {"packed": varlen_attn, **({"enable_gqa": True} if grouped else {})}


def _by_bounds(
    rows: Callable[..., Any], packed: Callable[..., Any], **options: bool | int
) -> Attend:
    """Return attention by `rows`, and by `packed`, one sequence with bounds, where there are."""

    def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
        if segments is None or segments.bounds is None:
            result = rows(q, k, v, segments)
        else:
            result = packed(
                # all rows as one sequence: the bounds, which begin with each row, keep them apart
                *(x.flatten(0, 1) for x in (q, k, v)),
                segments.bounds,
                segments.bounds,
                segments.longest,
                segments.longest,
                window_size=_window(segments),
                **options,
            )
        y: Tensor = result[0] if isinstance(result, tuple) else result  # some builds add the sums
        return y.view(q.shape)

    return attend


def _window(segments: Segments | None) -> tuple[int, int]:
    """Return the positions to the left and right of a query's own that it sees, -1: all."""
    window = segments and segments.window
    return window - 1 if window else -1, 0


def rotary_table(
    length: int,
    dims: int,
    base: float,
    *,
    trained_length: int | None,
    reach: int | None = None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 [length, dims / 2], of the angles of positions 0..length-1.

    Pair i turns by t base^(-2 i / dims) at position t (RoPE, arXiv 2104.09864). `reach` is how many
    positions attention sees (None: all). Where that is beyond `trained_length`, the base grows by
    (reach / trained)^(dims / (dims - 2)), so that the slowest pair, i = dims / 2 - 1, turns over
    the whole reach by the angle that it was trained on, and the fastest as it was (NTK scaling).
    """
    reach = length if reach is None else reach
    if trained_length is not None and reach > trained_length and dims > 2:
        base = base * (reach / trained_length) ** (dims / (dims - 2))
    # in float32 on any device: bfloat16 could not tell late positions apart
    exponents = torch.arange(0, dims, 2, device=device, dtype=torch.float32) / max(dims, 1)
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, base**-exponents)
    return angles.cos(), angles.sin()
