"""Every fused kernel of the network compiles for a Hopper GPU. `make test-kernels` runs this."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_case import compile_launches, compiles
from recipe_case import narrow_recipe
from torch._subclasses import FakeTensorMode

from paramgolf.model.backend import Backend, fused_operations
from paramgolf.model.fp8 import E4, E5, with_short_mlp
from paramgolf.model.head import Allowed, Head, Second, head_nll
from paramgolf.model.kernels.launch import Compilations
from paramgolf.model.network import Network, Pass

pytestmark = compiles
VOCAB = 256


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the kernels that were compiled in the place of launches."""
    card = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    return compile_launches(monkeypatch)


@pytest.mark.parametrize("name", ["pr1204", "pr1499", "pr2135", "best, XSA learned", "best, FP8"])
def test_kernels_of_recipes_compile(lowered: set[str], name: str) -> None:
    recipe, _, change = name.partition(", ")
    model = narrow_recipe(recipe).model
    model = dataclasses.replace(model, xsa_form="learned") if change == "XSA learned" else model
    backend = Backend(dtype=torch.bfloat16, operations=fused_operations(), copy_keys=True)
    backend = with_short_mlp(backend, 128) if change == "FP8" else backend
    network = Network(model, VOCAB, seed=1).with_backend(backend)
    text = torch.randint(2, VOCAB, (2, 65), generator=torch.Generator().manual_seed(0))
    network.nll(text[:, :-1], text[:, 1:], Pass(model.orders[-1])).mean().backward()
    assert {"_losses", "_hidden_product"} < lowered


def make_hidden_layers(width: int, *, backward: bool) -> None:
    """Launch what makes a hidden layer, or its gradient, in bfloat16 and in FP8."""
    from paramgolf.model.kernels import hidden

    def room(*shape: int, short: bool, gradient: bool = backward) -> torch.Tensor:
        kind = (E5 if gradient else E4) if short else torch.bfloat16
        return torch.empty(shape, dtype=kind)

    rows, columns, unit = 304, 528, torch.ones(())
    for short in (False, True):
        x, a, out = (room(rows, n, short=short) for n in (width, columns, columns))
        turned = room(columns, rows, short=True)
        besides = hidden.Short(turned, hidden.sign_words(x, columns), (unit, unit))
        shape = (width, columns) if backward and not short else (columns, width)
        w = room(*shape, short=short, gradient=False)
        hidden.run(x, w, a, out, 0.5, backward=backward, short=besides if short else None)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("width", [16, 256, 512, 640, 1536])
def test_hidden_layers_of_all_widths_fit(lowered: set[str], width: int, backward: bool) -> None:
    make_hidden_layers(width, backward=backward)
    assert lowered == {"_hidden_product"}


@pytest.mark.parametrize("backward", [False, True])
def test_hidden_layers_that_are_traced_compile(
    lowered: set[str], monkeypatch: pytest.MonkeyPatch, backward: bool
) -> None:
    def begin(_: Compilations, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kernel.warmup(*(getattr(x, "dtype", x) for x in args), grid=(1,), **options)

    monkeypatch.setattr(Compilations, "begin", begin)  # as it is, it needs a device
    with FakeTensorMode():
        make_hidden_layers(512, backward=backward)
    assert lowered == {"_hidden_product"}


@pytest.mark.parametrize("with_second", [False, True])
def test_the_loss_of_what_a_mask_allows_compiles(lowered: set[str], with_second: bool) -> None:
    words = torch.zeros(3, VOCAB // 32, dtype=torch.int32)
    states = torch.zeros(2, 8, dtype=torch.int64)
    hidden, embedding = (torch.zeros(*s, 64, requires_grad=True) for s in ((2, 8), (VOCAB,)))
    second = Second(states, torch.tensor(0.5)) if with_second else None
    head = Head(embedding, 30.0, allowed=Allowed(words, states), second=second)
    fused_operations().nll(hidden, states, head).sum().backward()
    assert lowered == {"_losses"}


def test_a_cap_beyond_the_kernels_reach_takes_the_plain_loss(lowered: set[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, embedding = (3 * torch.randn(*s, 64, generator=generator) for s in ((2, 8), (VOCAB,)))
    head, targets = Head(embedding, 100.0), torch.zeros(2, 8, dtype=torch.int64)
    found = fused_operations().nll(hidden, targets, head)
    torch.testing.assert_close(found, head_nll(hidden, targets, head))
    assert not lowered
