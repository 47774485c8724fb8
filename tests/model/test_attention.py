"""Attention against its formulas, which form is chosen, and what PyTorch's kernels are asked."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import sys
import types

import pytest
import torch
from process_case import ALONE

from paramgolf.data.special_tokens import BOS
from paramgolf.errors import ParamGolfError
from paramgolf.model.attention import (
    Segments,
    attend_sdpa,
    attend_to_others,
    cudnn_attention,
    find_segments,
    flash_attention_3,
    flash_attention_4,
    pytorch_attention,
    require_fixed_order,
    rotary_table,
)
from paramgolf.model.backend import attention_for
from paramgolf.model.operations import exclusive_self_attention, rotate


def stand_in(q, k, v, bounds_q, bounds_k, longest_q, longest_k, *, window_size):
    """What torch.nn.attention.varlen.varlen_attn promises, sequence by sequence, in float64.

    A position sees `window_size[0]` positions to its left (-1: all) and [1] to its right.
    """
    assert (bounds_q.dtype, longest_q) == (torch.int32, longest_k)
    assert bounds_q is bounds_k
    groups = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for first, last in zip(bounds_q[:-1].tolist(), bounds_q[1:].tolist(), strict=True):
        assert 0 <= last - first <= longest_q
        one, keys, values = (x[first:last].double().transpose(0, 1) for x in (q, k, v))
        keys, values = (x.repeat_interleave(groups, dim=0) for x in (keys, values))
        scores = one @ keys.mT / q.shape[-1] ** 0.5
        far = torch.arange(last - first)
        back = far[:, None] - far[None, :]
        seen = back >= -window_size[1]
        if window_size[0] >= 0:
            seen &= back <= window_size[0]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[first:last] = (weights @ values).transpose(0, 1).to(q.dtype)
    return out


@pytest.mark.parametrize("window", [None, 5])
def test_pytorchs_kernel_is_asked_for_the_documents_and_windows_of_the_reference(
    window, monkeypatch
):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 40, count, 8, generator=generator).bfloat16() for count in (4, 2, 2))
    tokens = torch.randint(0, 9, (2, 40), generator=generator)
    segments = find_segments(tokens, BOS, 16)
    if window is not None:
        segments = segments.within(window)
    found = pytorch_attention()(q, k, v, segments).float()
    expected = attend_sdpa(q.float(), k.float(), v.float(), segments)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_pytorchs_rows_are_those_of_the_reference(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    q = torch.randn(3, 12, 2, 8)
    for segments in (None, Segments(None, 12).within(3)):
        expected = attend_sdpa(q, q, q, segments)
        torch.testing.assert_close(pytorch_attention()(q, q, q, segments), expected)


@pytest.mark.parametrize("asks", [False, True])
def test_shared_heads_are_asked_for_where_torch_wants_it(asks, monkeypatch):
    told = {}

    def older(q, k, v, *bounds, window_size):
        return q

    def newer(q, k, v, *bounds, window_size, enable_gqa=False):
        told["enable_gqa"] = enable_gqa
        return q

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", newer if asks else older)
    q = torch.zeros(1, 12, 2, 8)
    pytorch_attention()(q, q, q, Segments(torch.tensor([0, 12]).int(), 12))
    assert told == ({"enable_gqa": True} if asks else {})


@pytest.mark.parametrize("deterministic", [False, True])
def test_flash_attention_3_is_asked_for_a_fixed_order(deterministic, monkeypatch):
    told = []

    def kernel(q, *_, **options):
        told.append(options.get("deterministic", False))
        return q

    module = types.SimpleNamespace(flash_attn_func=kernel, flash_attn_varlen_func=kernel)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    attend = flash_attention_3(deterministic=deterministic)
    q = torch.zeros(1, 12, 2, 8)
    attend(q, q, q, None)
    attend(q, q, q, Segments(torch.tensor([0, 12]).int(), 12))
    assert told == [deterministic, deterministic]


def test_attention_that_sums_in_any_order_is_refused(monkeypatch):
    monkeypatch.setattr("paramgolf.model.attention.PROBE", (1, 8, 2, 4))
    runs = itertools.count()

    def racing(q, k, v, _):
        late = next(runs) == 2  # the last run's gradient differs by a rounding
        return q * (1 + 2**-7) + k + v if late else q + k + v

    require_fixed_order(attend_sdpa, torch.device("cpu"))
    with pytest.raises(ParamGolfError, match="gradients differ from run to run"):
        require_fixed_order(racing, torch.device("cpu"))


def test_the_choice_by_device_package_and_key(monkeypatch):
    assert attention_for(ALONE) is attend_sdpa
    gpu = dataclasses.replace(ALONE, device=torch.device("cuda", 0))
    backend = "paramgolf.model.backend"
    monkeypatch.setattr(f"{backend}.flash_attention_3", lambda **_: "fa3")
    monkeypatch.setattr(f"{backend}.flash_attention_4", lambda **_: "fa4")
    monkeypatch.setattr(f"{backend}.cudnn_attention", lambda: "cudnn")
    monkeypatch.setattr(f"{backend}.pytorch_attention", lambda: "torch")

    def chosen(key: str, major: int, *installed: str) -> object:
        monkeypatch.setattr(f"{backend}._capability", lambda _: (major, 0))
        monkeypatch.setattr(f"{backend}._installed", lambda module: module in installed)
        return attention_for(dataclasses.replace(gpu, attention=key))

    fa3, fa4 = "flash_attn_interface", "flash_attn.cute"
    assert chosen("auto", 9, fa3, fa4) == "fa3"
    assert chosen("auto", 9, fa4) == "fa4"
    assert chosen("auto", 9) == "torch"
    assert chosen("auto", 8, fa3, fa4) == "torch"
    assert chosen("auto", 10, fa3, fa4) == "fa4"
    assert chosen("auto", 10, fa3) == "torch"
    for key, expected in (("fa3", "fa3"), ("fa4", "fa4"), ("cudnn", "cudnn"), ("sdpa", "torch")):
        assert chosen(key, 9, fa3, fa4) == expected
    for key, major, found in (
        ("fa3", 8, "capability 8.0, where Hopper has 9.0"),
        ("fa3", 9, "package flash_attn_3 absent"),
        ("fa4", 8, "capability 8.0, below 9.0"),
        ("fa4", 10, "package flash-attn-4 absent"),
        ("cudnn", 7, "capability 7.0, below 8.0"),
    ):
        with pytest.raises(ParamGolfError, match=rf"{key}, which cannot(.|\n)*{found}"):
            chosen(key, major)
    monkeypatch.undo()
    with pytest.raises(ParamGolfError, match=r"cudnn, which cannot(.|\n)*device cpu"):
        attention_for(dataclasses.replace(ALONE, attention="cudnn"))


@pytest.fixture
def flash_attention_4_there(monkeypatch):
    """A stand-in for package flash-attn-4: its signatures, by the plain form, and what it saw."""
    seen = []

    def left_of(window):
        left, right = window
        assert right == 0
        assert left is None or left >= 0  # -1 would be no position, not all
        return left

    def flash_attn_func(q, k, v, *, window_size=(None, None), causal=False, deterministic=False):
        seen.append((window_size, deterministic))
        assert causal
        left = left_of(window_size)
        segments = None if left is None else Segments(None, q.shape[1], left + 1)
        return attend_sdpa(q, k, v, segments), None

    def flash_attn_varlen_func(
        q, k, v, qv=None, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        window_size=(None, None), causal=False, deterministic=False,
    ):  # fmt: skip
        seen.append((window_size, deterministic))
        assert causal
        left = left_of(window_size)
        window = (-1 if left is None else left, 0)
        bounds = cu_seqlens_q, cu_seqlens_q, max_seqlen_q, max_seqlen_k
        assert cu_seqlens_k is cu_seqlens_q
        return stand_in(q, k, v, *bounds, window_size=window), None

    module = types.ModuleType("flash_attn.cute")
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    return seen


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_flash_attention_4_is_asked_for_the_attention_of_the_reference(
    packed, window, flash_attention_4_there
):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 40, count, 8, generator=generator) for count in (4, 2, 2))
    tokens = torch.randint(0, 9, (2, 40), generator=generator)
    segments = find_segments(tokens, BOS, 16) if packed else Segments(None, 40)
    if window is not None:
        segments = segments.within(window)
    attend = flash_attention_4(deterministic=True)
    # as a block is compiled: the compiler steps aside for it
    found = torch.compile(lambda *given: 2 * attend(*given), backend="eager")(q, k, v, segments)
    torch.testing.assert_close(found, 2 * attend_sdpa(q, k, v, segments))
    assert flash_attention_4_there == [((None if window is None else window - 1, 0), True)]


def test_cudnn_is_preferred_for_rows_and_not_asked_for_windows(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda: None)
    monkeypatch.setattr(
        "torch.nn.attention.sdpa_kernel",
        lambda kernels, set_priority: asked.append(kernels[0].name) or contextlib.nullcontext(),
    )
    q = torch.randn(1, 12, 2, 8)
    windowed = Segments(None, 12).within(3)
    for segments in (None, windowed):
        assert torch.equal(cudnn_attention()(q, q, q, segments), attend_sdpa(q, q, q, segments))
    assert asked == ["CUDNN_ATTENTION"]


def test_attention_is_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 6, h, 4, generator=generator).double() for h in (4, 2, 2))
    y = attend_sdpa(q, k, v)
    for t in range(6):
        for head in range(4):
            scores = k[0, : t + 1, head // 2] @ q[0, t, head] / 2
            expected = scores.softmax(0) @ v[0, : t + 1, head // 2]
            torch.testing.assert_close(y[0, t, head], expected)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_to_others_is_attention_without_each_positions_own_term(window):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 9, n, 8, generator=generator) for n in (4, 2, 2))
    bounds = torch.tensor([0, 5, 9, 18], dtype=torch.int32)
    found = attend_to_others(q, k, v, Segments(bounds, 9, window))
    for row, first, end in ((0, 0, 5), (0, 5, 9), (1, 0, 9)):
        for t, head in itertools.product(range(first, end), range(4)):
            start = first if window is None else max(first, t + 1 - window)
            keys, values = (x[row, start : t + 1, head // 2] for x in (k, v))
            weights = torch.softmax(keys @ q[row, t, head] / 8**0.5, dim=0)
            expected = weights[:-1] @ values[:-1]
            torch.testing.assert_close(found[row, t, head], expected, atol=1e-6, rtol=1e-5)


def test_rotation_depends_on_distance_alone():
    cos, sin = rotary_table(9, 4, 100.0, trained_length=None, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator)
    rows = torch.stack([q, k])[:, None, None].expand(2, 9, 1, 8)
    turned_q, turned_k = rotate(rows, cos, sin).squeeze(2)
    products = turned_q @ turned_k.T
    for shift in range(4):
        torch.testing.assert_close(products[5, 3], products[5 + shift, 3 + shift])
    assert torch.equal(turned_q[:, 4:], q[4:].expand(9, 4))  # the rest of the head is not turned
    scaled, _ = rotary_table(16, 4, 100.0, trained_length=8, device=torch.device("cpu"))
    base = 100.0 * 2 ** (4 / 2)
    torch.testing.assert_close(scaled[3, 1], torch.tensor(math.cos(3 * base ** (-2 / 4))))


@pytest.mark.parametrize("strength", [None, torch.tensor([1.0, 0.0, -0.5, 0.3])])
def test_exclusive_self_attention_takes_what_lies_along_the_value(strength):
    generator = torch.Generator().manual_seed(0)
    y, v = (
        torch.randn(1, 5, 4, 8, generator=generator),
        torch.randn(1, 5, 2, 8, generator=generator),
    )
    out = exclusive_self_attention(y, v, strength)
    for t in range(5):
        for head in range(4):
            unit = v[0, t, head // 2] / v[0, t, head // 2].norm()
            share = 1.0 if strength is None else strength[head]
            expected = y[0, t, head] - share * (y[0, t, head] @ unit) * unit
            torch.testing.assert_close(out[0, t, head], expected)
            if share == 1:
                assert abs(float(out[0, t, head] @ unit)) < 1e-5
