"""Each fused kernel against its plain form, forward and backward, over odd shapes, on a GPU.

With package triton, TRITON_INTERPRET=1 runs them on a CPU instead: all but the MLP's, of which the
interpreter does not know the language, and those that compile.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch._subclasses import FakeTensorMode

from paramgolf.model import operations
from paramgolf.model.head import Allowed, Head, Second, head_nll
from paramgolf.model.operations import Mix

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
GPU = torch.device("cpu" if INTERPRETED else "cuda")
# relative error of a tensor: float32 arithmetic, and bfloat16's rounding of in- and outputs
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2}
DTYPES = [torch.float32, torch.bfloat16]
B, T, H, K = 2, 37, 4, 2


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator(GPU).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=GPU).to(dtype)


def run(function, tensors, learning):
    """Return the outputs, and the gradients of the first `learning` tensors, as float32."""
    tensors = [None if t is None else t.detach().clone() for t in tensors]
    for t in tensors[:learning]:
        if t is not None:
            t.requires_grad_()
    found = function(*tensors)
    outputs = [x for x in (found if isinstance(found, tuple) else (found,)) if x.numel()]
    sum((x.float() * draw(*x.shape, seed=7)).sum() for x in outputs).backward()
    gradients = [t.grad for t in tensors[:learning] if t is not None]
    assert all(g is not None for g in gradients)
    return [x.detach().float() for x in (*outputs, *gradients)]


def assert_equal(plain, fused, tensors, learning, bound):
    expected = run(plain, [t if t is None else t.float() for t in tensors], learning)
    for x, y in zip(run(fused, tensors, learning), expected, strict=True):
        assert ((x - y).norm() / y.norm()).item() < bound


@pytest.fixture(scope="module")
def fused():
    from paramgolf.model.backend import fused_operations

    return fused_operations()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 512])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_mix_norm(fused, dtype, width, mixed, count):
    lanes = [draw(B, T, width, dtype=dtype, seed=i) for i in range(count)]
    coefficients = draw(count, width) if mixed else None
    scale = torch.tensor(0.7, device=GPU)

    def of(function):
        return lambda *t: function(Mix(t[:count], scale, t[count]))

    tensors = [*lanes, coefficients]
    assert_equal(of(operations.mix_norm), of(fused.mix_norm), tensors, count + 1, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_mix_norm_without_the_sum(fused, dtype):
    scale = torch.tensor(0.7, device=GPU)

    def of(function):
        return lambda x, y, c: function(Mix((x, y), scale, c), keep=False)[1]

    tensors = [draw(B, T, 64, dtype=dtype), draw(B, T, 64, dtype=dtype, seed=1), draw(2, 64)]
    assert_equal(of(operations.mix_norm), of(fused.mix_norm), tensors, 3, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "half"), [(16, 4), (12, 3), (64, 8), (64, 0)])
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_split_heads(fused, dtype, copies, head_dim, half):
    angles = 6 * torch.rand(T, half, device=GPU)
    tensors = [draw(B, T, (H + 2 * K) * head_dim, dtype=dtype), draw(H, dtype=dtype)]
    tensors += [angles.cos(), angles.sin()]

    def of(function):
        return lambda *t: function(*t, K, copies)

    assert_equal(of(operations.split_heads), of(fused.split_heads), tensors, 2, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [12, 64])
@pytest.mark.parametrize(("xsa", "gated"), [(True, False), (True, True), (False, True)])
def test_finish_heads(fused, dtype, head_dim, xsa, gated):
    tensors = [draw(B, T, H, head_dim, dtype=dtype), draw(B, T, K, head_dim, dtype=dtype)]
    if gated:
        tensors.append(draw(B, T, H, dtype=dtype).sigmoid())
    if not xsa:
        tensors = [tensors[0], tensors[2], tensors[1]]

    def of(function):
        def call(y, a, b=None):
            v, gate = (a, b) if xsa else (b, a)
            return function(y, v, gate, xsa=xsa)

        return call

    learning = 2 if (xsa and not gated) or not xsa else 3
    plain, found = of(operations.finish_heads), of(fused.finish_heads)
    assert_equal(plain, found, tensors, learning, BOUNDS[dtype])


@pytest.mark.parametrize("part", [slice(None), slice(30)])
def test_finish_heads_reads_values_where_they_lie(fused, part):
    """The first of a head's two copies, at all positions or at some."""
    tensors = [draw(B, T, H, 12)[:, part], draw(B, T, 2 * K, 12)]

    def of(function):
        return lambda y, v: function(y, v[:, part, ::2], None, xsa=True)

    plain, found = of(operations.finish_heads), of(fused.finish_heads)
    assert_equal(plain, found, tensors, 2, BOUNDS[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_finish_heads_with_learned_strengths(fused, dtype, gated):
    tensors = [draw(B, T, H, 12, dtype=dtype), draw(B, T, K, 12, dtype=dtype), draw(H).tanh()]
    tensors += [draw(B, T, H, dtype=dtype).sigmoid()] if gated else []

    def of(function):
        return lambda y, v, s, gate=None: function(y, v, gate, xsa=True, strength=s)

    plain, found = of(operations.finish_heads), of(fused.finish_heads)
    assert_equal(plain, found, tensors, len(tensors), BOUNDS[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("count", "mixed"), [(1, False), (2, True), (2, False), (3, True)])
@pytest.mark.parametrize("slope", [0.5, 0.0])
@pytest.mark.parametrize(
    ("rows", "width", "hidden"), [(37, 64, 136), (3000, 512, 2048), (100, 640, 520), (1, 8, 8)]
)
def test_mlp(fused, slope, count, mixed, residual, rows, width, hidden):
    up = (draw(hidden, width) / width**0.5).bfloat16()
    down = (draw(width, hidden) / hidden**0.5).bfloat16()
    coefficients = draw(count, width) if mixed else None
    lanes = [draw(1, rows, width, dtype=torch.bfloat16, seed=i) for i in range(count)]
    scale = torch.tensor(0.7, device=GPU)

    def of(function):
        return lambda u, d, c, *x: function(Mix(x, scale, c), u, d, slope, residual=residual)

    tensors = [up, down, coefficients, *lanes]
    assert_equal(of(operations.mlp), of(fused.mlp), tensors, len(tensors), 1.2e-2)


def assert_equal_nll(fused, dtype, vocab, **head):
    """Compare the losses of a head and their gradients; return what both are, plain and fused."""
    targets = torch.randint(vocab, (B, T), device=GPU)

    def of(function):
        return lambda h, e: function(h, targets, Head(e, 30.0, **head))

    tensors = [draw(B, T, 64, dtype=dtype), draw(vocab, 64, dtype=dtype)]
    # both see logits of the compute dtype, as the head has them
    plain, found = (run(of(f), tensors, 2) for f in (head_nll, fused.nll))
    for x, y in zip(found, plain, strict=True):
        assert ((x - y).norm() / y.norm()).item() < BOUNDS[dtype]
    return plain, found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [50, 1024, 8192])
@pytest.mark.parametrize("sides", [None, (20.0, 30.0)])
def test_nll(fused, dtype, vocab, sides):
    caps = None if sides is None else torch.tensor(sides, device=GPU)
    assert_equal_nll(fused, dtype, vocab, sides=caps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [50, 1024])
@pytest.mark.parametrize("with_second", [False, True])
def test_nll_of_what_a_mask_allows(fused, dtype, vocab, with_second):
    generator = torch.Generator(GPU).manual_seed(vocab)
    words = torch.randint(
        -(2**31), 2**31, (5, -(-vocab // 32)), generator=generator, device=GPU, dtype=torch.int32
    )
    allowed = Allowed(words, torch.randint(5, (B, T), device=GPU))
    second = second_of(vocab) if with_second else None
    # half of the targets are forbidden, too: both give them the same score, and no gradient
    plain, found = assert_equal_nll(fused, dtype, vocab, allowed=allowed, second=second)
    possible = plain[0] < 100
    assert 0.3 < possible.float().mean() < 0.7
    assert ((found[0] - plain[0])[possible].norm() / plain[0][possible].norm()) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [50, 8192])
def test_nll_with_a_second_target(fused, dtype, vocab):
    assert_equal_nll(fused, dtype, vocab, second=second_of(vocab))


def second_of(vocab):
    """One of each position, one in vocab + 1 of them absent."""
    targets = torch.randint(-1, vocab, (B, T), device=GPU)
    return Second(targets, torch.tensor(0.5, device=GPU))


def test_caps_that_learn_get_their_gradient(fused):
    caps = torch.tensor((20.0, 30.0), device=GPU, requires_grad=True)
    hidden, embedding = draw(B, T, 64), draw(50, 64)
    targets = torch.randint(50, (B, T), device=GPU)
    fused.nll(hidden, targets, Head(embedding, 30.0, caps)).sum().backward()
    assert caps.grad.abs().min() > 0


@pytest.mark.gpu
def test_a_kernel_is_compiled_while_the_compiler_asks_for_shapes(fused):
    from paramgolf.model.kernels.launch import compilations

    scale = torch.tensor(0.7, device=GPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fused.mix_norm(Mix((torch.empty(2, 3, 40, device=GPU),), scale))
    assert compilations().pending == 1
    fused.mix_norm(Mix((draw(2, 3, 40),), scale))
    assert compilations().pending == 0
