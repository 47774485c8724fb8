"""Low-rank adapters: equal to merged weights, a row for itself, a place for itself."""

from __future__ import annotations

import pytest
import torch
from recipe_case import moved

from paramgolf.model.adapters import AdapterSet, adapter_shapes
from paramgolf.model.backend import REFERENCE
from paramgolf.model.block import (
    Adapters,
    Context,
    Kind,
    Pair,
    Weights,
    attention_sublayer,
    mlp_sublayer,
)
from paramgolf.model.head import Head, head_nll
from paramgolf.model.network import Network, Pass
from paramgolf.model.operations import Mix, norm

VOCAB = 64
ALL = ("q", "k", "v", "o", "mlp", "head")


def live_set(config, order, targets, rows=1):
    """Adapters that add something, other things to each row."""
    shapes = adapter_shapes(config, VOCAB, order, targets)
    adapters = AdapterSet(shapes, rank=3, alpha=6.0, rows=rows, seed=2, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in adapters.parameters():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return adapters


def tokens_of(rows, length=12):
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


def made(config, rows=1):
    """Return a network, so many rows of tokens, and the last order."""
    return moved(Network(config, VOCAB, seed=1)), tokens_of(rows), config.orders[-1]


@pytest.mark.parametrize("value_residual", [False, True])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_an_adapter_is_a_change_of_the_weights(tiny_model, name, value_residual):
    config = tiny_model(value_residual=value_residual)
    network, order = moved(Network(config, VOCAB, seed=1)), config.orders[0]
    adapters, tokens = live_set(config, order, [name]), tokens_of(1)
    options = Pass(order, adapters=adapters.pairs())
    adapted, plain = network.logits(tokens, options), network.logits(tokens, Pass(order))
    with torch.no_grad():
        change = 2.0 * adapters.b[name][0] @ adapters.a[name][0]
        network.get_parameter(name).add_(change)
    torch.testing.assert_close(adapted, network.logits(tokens, Pass(order)))
    assert (adapted - plain).abs().max() > 1e-2


def test_an_adapter_of_the_head_is_a_change_of_the_embedding_as_a_head(tiny_model):
    network, tokens, order = made(tiny_model())
    adapters, seen = live_set(network.config, order, ["head"]), []
    network.logits(tokens, Pass(order, tap=lambda name, _, x: seen.append((name, x))))
    hidden = dict(seen)["embedding"]
    head = (
        network.get_parameter("embedding")
        + 2.0 * adapters.b["head"][0, 0] @ adapters.a["head"][0, 0]
    )
    expected = network.config.softcap * torch.tanh(hidden @ head.T / network.config.softcap)
    torch.testing.assert_close(
        network.logits(tokens, Pass(order, adapters=adapters.pairs())), expected
    )


def test_the_o_and_mlp_adapters_read_the_sublayers_input():
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=g)

    B, T, d = 2, 5, 8
    kind = Kind(2, 1, 1, True, False, "none", "none", 1.0, 0.5, lambda q, k, v, s: q * v, REFERENCE)
    qkv = draw(d + 8, d)
    w = Weights(
        qkv, draw(d, d), draw(16, d), draw(d, 16), draw(d), draw(d), draw(2, d), draw(2), draw()
    )
    c = Context(draw(B, T, d), torch.ones(T, 1), torch.zeros(T, 1))
    pair, x = Pair(draw(B, 3, d), draw(B, d, 3)), draw(B, T, d)
    n = w.norm_scale * norm(x)
    added = torch.stack([n[i] @ pair.a[i].T @ pair.b[i].T for i in range(B)])
    with_o, with_mlp = (c._replace(adapters=Adapters(**{name: pair})) for name in ("o", "mlp"))
    difference = attention_sublayer(n, w, with_o, kind) - attention_sublayer(n, w, c, kind)
    torch.testing.assert_close(difference, w.attn_scale * added, atol=1e-4, rtol=1e-4)
    plain, adapted = (
        mlp_sublayer(Mix((x,), w.norm_scale), w, k, kind, residual=False)[0] for k in (c, with_mlp)
    )
    difference = adapted - plain
    torch.testing.assert_close(difference, w.mlp_scale * added, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"parallel": "routed"}, {"parallel": "mixed"}, {"first_attention": False}]
)
def test_an_adapter_row_learns_from_its_own_loss_alone(tiny_model, changes):
    network, tokens, order = made(tiny_model(**changes), rows=3)
    adapters = live_set(network.config, order, ALL, rows=3)
    loss = network.nll(tokens[:, :-1], tokens[:, 1:], Pass(order, adapters=adapters.pairs()))
    loss.sum(dim=1)[1].backward()
    for tensor in adapters.parameters():
        assert not tensor.grad[[0, 2]].any()
        assert tensor.grad[1].any()
    alone = {name: Pair(a[1:2], b[1:2]) for name, (a, b) in adapters.pairs().items()}
    again = network.nll(tokens[1:2, :-1], tokens[1:2, 1:], Pass(order, adapters=alone))
    torch.testing.assert_close(loss[1:2], again)


def test_one_row_serves_the_whole_batch(tiny_model):
    network, tokens, order = made(tiny_model(), rows=3)
    adapters = live_set(network.config, order, ALL)
    options = Pass(order, adapters=adapters.pairs())
    together = network.logits(tokens, options)
    alone = torch.cat([network.logits(row[None], options) for row in tokens])
    torch.testing.assert_close(together, alone)


def test_each_visit_of_a_layer_has_its_own_adapter(tiny_model):
    network, tokens, order = made(tiny_model())
    adapters = live_set(network.config, order, ["q"])
    assert order[1] == order[3]
    network.logits(tokens, Pass(order, adapters=adapters.pairs())).sum().backward()
    gradient = adapters.b["q"].grad[0]
    assert all(gradient[place].any() for place in range(len(order)))
    assert not torch.equal(gradient[1], gradient[3])


def test_adapters_that_are_fewer_than_the_layers_are_the_last_layers(tiny_model):
    network, tokens, order = made(tiny_model(), rows=2)
    adapters = live_set(network.config, order, ALL)
    with torch.no_grad():
        for name in ALL[:-1]:
            adapters.b[name][:, :2] = 0
    every = adapters.pairs()
    last = {n: p if n == "head" else Pair(p.a[:, 2:], p.b[:, 2:]) for n, p in every.items()}
    torch.testing.assert_close(
        network.logits(tokens, Pass(order, adapters=last)),
        network.logits(tokens, Pass(order, adapters=every)),
    )


def test_a_fresh_set_adds_nothing_and_does_not_depend_on_the_row(tiny_model):
    network, tokens, order = made(tiny_model(), rows=2)
    shapes = adapter_shapes(network.config, VOCAB, order, ALL)
    fresh = [
        AdapterSet(shapes, rank=3, alpha=6.0, rows=rows, seed=7, device=torch.device("cpu"))
        for rows in (1, 2)
    ]
    plain = network.logits(tokens, Pass(order))
    assert torch.equal(plain, network.logits(tokens, Pass(order, adapters=fresh[1].pairs())))
    for name in ALL:
        assert torch.equal(fresh[0].a[name][0], fresh[1].a[name][1])
        assert 0.9 < fresh[0].a[name].abs().max() * network.config.width**0.5 <= 1


def test_dropped_rows_come_back_fresh_in_the_same_memory(tiny_model):
    config = tiny_model()
    order, targets = config.orders[-1], ["k", "head"]
    shapes = adapter_shapes(config, VOCAB, order, targets)
    cpu = torch.device("cpu")
    fresh = AdapterSet(shapes, rank=3, alpha=6.0, rows=1, seed=2, device=cpu).a
    adapters = live_set(config, order, targets, rows=3)
    before = {name: a.detach().clone() for name, a in adapters.a.items()}
    places = {name: a.data_ptr() for name, a in adapters.a.items()}
    adapters.keep(2)
    assert adapters.rows == 2
    assert all(torch.equal(adapters.a[name], before[name][:2]) for name in before)
    adapters.renew({name: 2 * a for name, a in before.items()})
    assert adapters.rows == 3
    assert all(torch.equal(adapters.a[name], 2 * before[name]) for name in before)
    assert not any(b.any() for b in adapters.b.values())
    adapters.renew()
    assert all(torch.equal(a, fresh[name].expand_as(a)) for name, a in adapters.a.items())
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in adapters.parameters())
    assert places == {name: a.data_ptr() for name, a in adapters.a.items()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_probabilities_of_a_compiled_head_with_an_adapter_add_up_to_one(device):
    generator = torch.Generator(device).manual_seed(0)
    width, vocab, rank = 64, 8192, 8

    def drawn(*shape):
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    hidden, embedding = drawn(1, 1, width).expand(1, vocab, width), drawn(vocab, width)
    pair = Pair(*(x.requires_grad_() for x in (drawn(1, rank, width), drawn(1, vocab, rank))))
    everyone = torch.arange(vocab, device=device)[None]
    nll = torch.compile(head_nll, dynamic=False)
    nats = nll(hidden, everyone, Head(embedding, 30.0, None, pair)).detach()
    assert float(nats.neg().double().exp().sum()) == pytest.approx(1, abs=1e-4)
