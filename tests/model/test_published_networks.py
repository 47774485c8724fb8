"""Networks of the published systems: logits, losses and gradients as their own code gives them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from published_case import (
    DOCUMENT_TOKENS,
    SYSTEMS,
    WIDE,
    distance,
    facts,
    given,
    initial_facts,
    network_of,
    shrunk,
    slice_sums,
    tensors,
    wide_weights,
)
from recipe_case import recipe
from torch import Tensor

from paramgolf.model.config import Order
from paramgolf.model.init import initial_parameters
from paramgolf.model.network import Network, Pass
from paramgolf.model.shapes import count, shapes
from paramgolf.recipes import Params

# relative to the largest number, but for losses and nats
LOGITS, LOSS, GRADIENT, ONE_NUMBER, NATS, SUMS = 1e-5, 2e-5, 5e-5, 5e-4, 1e-4, 2e-5
PHASES = ("before", "after")
LAST = {"pr1493": 16, "pr1855": 16, "pr2135": 16}  # positions of long.after.last_logits; else 32
WITH_PLAIN = ("pr1204", "pr1392", "pr1499", "pr1855", "pr2135")


def order_of(params: Params, phase: str) -> Order:
    """The layer order before or after recurrence begins."""
    return params.model.orders[0 if phase == "before" else -1]


def text(name: str, prefix: str = "") -> tuple[Tensor, Tensor, int | None]:
    """Tokens, targets, and how far a document goes in packed rows, which are one long row."""
    known = tensors(name, "network")
    tokens, targets = (known.get(prefix + key, known[key]) for key in ("tokens", "targets"))
    if not prefix and name in DOCUMENT_TOKENS:
        return tokens.view(1, -1), targets.view(1, -1), DOCUMENT_TOKENS[name]
    return tokens, targets, None


def loss_and_gradients(
    network: Network, tokens: Tensor, targets: Tensor, options: Pass
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss, and its gradient; zeros where a parameter is not used.

    Softcaps are at 30, which the published loss of training has as a constant. What is frozen in
    training has a gradient here.
    """
    parameters = dict(network.named_parameters())
    caps = parameters.pop("softcaps", None)
    if caps is not None:
        caps.fill_(30.0)
    for p in parameters.values():
        p.requires_grad_()
    loss = network.nll(tokens, targets, options).mean()
    loss.backward()
    return loss.item(), {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()
    }


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_logits_loss_and_gradients_are_the_published_ones(name, phase):
    params = shrunk(name)
    tokens, targets, longest = text(name)
    options = Pass(order_of(params, phase), document_tokens=longest)
    network = network_of(params, given(name, "network", "weights."))
    with torch.no_grad():
        logits = network.logits(tokens, options)
    assert distance(logits, tensors(name, "network")[f"{phase}.logits"]) < LOGITS
    loss, found = loss_and_gradients(network, tokens, targets, options)
    assert abs(loss - tensors(name, "network")[f"{phase}.loss"].item()) < LOSS
    expected = given(name, "network", f"{phase}.grad.")
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        tolerance = ONE_NUMBER if gradient.numel() == 1 else GRADIENT
        assert distance(found[key], gradient) < tolerance, key


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", WITH_PLAIN)
def test_a_recipe_as_it_is_equals_the_published_network_inside_a_document(name, phase):
    params = shrunk(name, as_published=False)
    tokens, _, _ = text(name, "plain.")
    options = Pass(order_of(params, phase))
    network = network_of(params, given(name, "network", "weights."))
    with torch.no_grad():
        logits = network.logits(tokens, options)
    assert distance(logits, tensors(name, "network")[f"plain.{phase}.logits"]) < LOGITS


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_text_longer_than_the_trained_length_is_rotated_as_published(name):
    params = shrunk(name)
    tokens, targets, _ = text(name, "long.")
    options = Pass(order_of(params, "after"))
    network = network_of(params, given(name, "network", "weights."))
    last = LAST.get(name, 32)
    with torch.no_grad():
        logits = network.logits(tokens, options)[0]
    nats = F.cross_entropy(logits, targets[0], reduction="none")
    known = tensors(name, "network")
    assert (nats - known["long.after.nats"]).abs().max() < NATS
    assert distance(logits[-last:], known["long.after.last_logits"]) < LOGITS


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["pr1493", "pr1855", "pr2135"])
def test_a_wider_network_with_heads_of_32_channels_equals_the_published_one(name, phase):
    params = shrunk(name, WIDE)
    tokens, targets, longest = text(name)
    options = Pass(order_of(params, phase), document_tokens=longest)
    network = Network(params.model, vocab_size=256)
    network.load_state_dict(wide_weights(network))
    with torch.no_grad():
        logits = network.logits(tokens, options)
    known = given(name, "network", f"wide.{phase}.")
    assert distance(logits, known["logits"]) < LOGITS
    loss, gradients = loss_and_gradients(network, tokens, targets, options)
    assert abs(loss - known["loss"].item()) < LOSS
    for key, (norms, products) in slice_sums(network, gradients).items():
        largest = known[f"grad_norm.{key}"].abs().max()
        assert (norms - known[f"grad_norm.{key}"]).abs().max() < SUMS * largest, key
        assert (products - known[f"grad_dot.{key}"]).abs().max() < SUMS * largest, key


@pytest.mark.parametrize("name", SYSTEMS)
def test_parameters_have_the_published_shapes(name):
    params = recipe(name)
    expected = {key: tuple(fact["shape"]) for key, fact in initial_facts(name).items()}
    assert shapes(params.model, params.tokenizer.vocab_size) == expected
    total = facts(name, "settings")["parameters"]["value"]
    unread = {"pr1392": 512}  # the step of a second repeat, which never comes
    assert count(params.model, params.tokenizer.vocab_size) == total - unread.get(name, 0)


@pytest.mark.parametrize("name", SYSTEMS)
def test_parameters_begin_as_published(name):
    model = shrunk(name, WIDE).model
    begun = initial_parameters(model, 1_000, seed=0, device=torch.device("cpu"))
    for key, fact in initial_facts(name).items():
        x = begun[key][: fact["shape"][0]]  # up, down of pr1204: without the repeats, see below
        match fact["form"]:
            case "constant":
                assert torch.allclose(x, torch.full_like(x, fact["value"])), key
            case "constant rows":
                assert all(x[:, row].eq(value).all() for row, value in enumerate(fact["value"]))
            case "constant columns":
                assert x.eq(torch.tensor(fact["value"])).all(), key
            case "normal":
                assert x.std().item() == pytest.approx(fact["nominal_std"], rel=0.05), key
            case "orthogonal":
                singular = torch.linalg.svdvals(x)
                assert torch.allclose(singular, torch.full_like(singular, fact["gain"]), atol=1e-5)
