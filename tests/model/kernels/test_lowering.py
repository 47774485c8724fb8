"""Every fused kernel compiles for a Hopper GPU, on a machine without one.

Triton's interpreter runs what its compiler refuses. `make test-kernels` runs this as well.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipe_case import narrow_recipe

from paramgolf.model.backend import Backend, fused_operations
from paramgolf.model.head import Allowed, Head
from paramgolf.model.network import Network, Pass

triton = pytest.importorskip("triton", reason="needs Triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available(),
    reason="interpreted kernels are not compiled, and a GPU compiles them anyway",
)
VOCAB = 256


class Hopper:
    """What Triton asks of a driver before it compiles."""

    get_current_device = get_current_stream = lambda *_: 0

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Compile what is launched, launch nothing; give the names of the kernels."""
    names: set[str] = set()
    done: set[str] = set()

    def launch(kernel: Any, _grid: Any, *args: Any, **options: Any) -> None:
        kinds = tuple(x.dtype if isinstance(x, torch.Tensor) else x for x in args)
        tensors = [getattr(x, "block_shape", x) for x in kinds]
        if (key := f"{kernel.fn.__name__} {tensors} {options}") not in done:
            done.add(key)
            kernel.warmup(*kinds, grid=(1,), **options)
            names.add(kernel.fn.__name__)

    for name in ("heads", "loss", "mix_norm", "mlp", "xsa"):
        module = importlib.import_module(f"paramgolf.model.kernels.{name}")
        monkeypatch.setattr(module, "launch", launch)
    card = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    triton.runtime.driver.set_active(Hopper())
    return names


@pytest.mark.parametrize("name", ["pr1204", "pr1499", "pr2135", "best, XSA learned"])
def test_kernels_of_recipes_compile(lowered: set[str], name: str) -> None:
    recipe, _, learned = name.partition(",")
    model = narrow_recipe(recipe).model
    model = dataclasses.replace(model, xsa_form="learned") if learned else model
    backend = Backend(dtype=torch.bfloat16, operations=fused_operations())
    network = Network(model, VOCAB, seed=1).with_backend(backend)
    text = torch.randint(2, VOCAB, (2, 65), generator=torch.Generator().manual_seed(0))
    network.nll(text[:, :-1], text[:, 1:], Pass(model.orders[-1])).mean().backward()
    assert {"_losses", "_product"} < lowered


def test_the_loss_of_what_a_mask_allows_compiles(lowered: set[str]) -> None:
    words = torch.zeros(3, VOCAB // 32, dtype=torch.int32)
    states = torch.zeros(2, 8, dtype=torch.int64)
    hidden, embedding = (torch.zeros(*s, 64, requires_grad=True) for s in ((2, 8), (VOCAB,)))
    head = Head(embedding, 30.0, allowed=Allowed(words, states))
    fused_operations().nll(hidden, states, head).sum().backward()
    assert lowered == {"_losses"}
