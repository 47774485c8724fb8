"""The network against its formulas: counts, first loss, causality, each lane form."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from recipe_case import moved

from paramgolf.data.tokenizer.token_mask import TokenMask
from paramgolf.model.adapters import AdapterSet, adapter_shapes
from paramgolf.model.attention import attend_sdpa, rotary_table
from paramgolf.model.config import RecurrencePhase
from paramgolf.model.gradients import FirstChannels
from paramgolf.model.head import Mask
from paramgolf.model.network import Network, Pass
from paramgolf.model.operations import exclusive_self_attention, rotate
from paramgolf.model.plan import plan
from paramgolf.model.shapes import count, shapes
from paramgolf.recipes import check, compose

VOCAB = 64
PARALLEL = ("none", "single", "merge", "routed", "mixed", "lanes")
EXTRAS = {
    "plain": {},
    "rich": {
        "smear": "token",
        "bigram_buckets": 16,
        "bigram_dim": 8,
        "value_embedding_dim": 8,
        "value_embedding_layers": (2, 3),
        "value_residual": True,
        "hidden_gain": True,
        "head_gate": "sparse",
        "xsa_form": "learned",
    },
    "old": {
        "smear": "channel",
        "head_gate": "dense",
        "virtual_scalars": True,
        "untied_repeats": True,
        "first_attention": False,
        "xsa_form": "own_term",
    },
}


def tokens(rows: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(4, VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("changes", "vocab", "expected"),
    [
        ({"skip_rows": 7}, 8192, 35_943_512),  # pr1394
        ({"skip_rows": 7, "parallel": "merge"}, 8192, 35_943_513),  # pr1477
        ({"skip_rows": 5, "value_embedding_layers": (9, 10)}, 4096, 34_401_371),  # pr1218
        (
            {
                "mlp_hidden": 1536,
                "recurrence": (),
                "skips": "additive",
                "parallel": "none",
                "smear": "channel",
                "bigram_buckets": 3072,
                "bigram_dim": 112,
                "value_embedding_layers": (9, 10),
            },
            1024,
            27_067_484,
        ),  # pr1019
    ],
)
def test_parameter_counts_are_the_published_ones(changes, vocab, expected):
    """Of systems that are no recipe; test_published_networks.py has those that are."""
    base = check(compose("base"), where="base").model
    assert count(dataclasses.replace(base, **changes), vocab) == expected


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("parallel", PARALLEL)
def test_first_loss_is_a_uniform_guess_and_all_parameters_learn(tiny_model, parallel, extras):
    config = tiny_model(parallel=parallel, **EXTRAS[extras])
    network = Network(config, VOCAB, seed=1)
    assert {n: tuple(p.shape) for n, p in network.named_parameters()} == shapes(config, VOCAB)
    batch = tokens()
    last = Pass(config.orders[-1])
    loss = network.nll(batch[:, :-1], batch[:, 1:], last).mean()
    assert abs(loss.item() - math.log(VOCAB)) < 0.05
    moved(network).nll(batch[:, :-1], batch[:, 1:], last).mean().backward()
    silent = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert not silent


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("skips", ["none", "additive", "gated"])
def test_no_token_sees_the_future(tiny_model, parallel, extras, skips):
    config = tiny_model(parallel=parallel, skips=skips, **EXTRAS[extras])
    network = moved(Network(config, VOCAB, seed=1))
    batch = tokens()
    changed = batch.clone()
    changed[:, 15] = (changed[:, 15] + 1) % VOCAB
    for order in config.orders:
        with torch.no_grad():
            before = network.logits(batch[:, :-1], Pass(order))
            after = network.logits(changed[:, :-1], Pass(order))
        assert torch.equal(before[:, :15], after[:, :15])
        assert not torch.equal(before[:, 15:], after[:, 15:])


def sublayers(network: Network, layer: int, x0: torch.Tensor):
    """Return attention and MLP of a layer as plain functions of an unscaled lane, and its mix."""
    c, p = network.config, dict(network.named_parameters())
    rms = lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)  # noqa: E731
    s = 1 / math.sqrt(layer + 1)
    cos, sin = rotary_table(
        x0.shape[1], c.rope_dims, c.rope_base, trained_length=None, device=x0.device
    )

    def attention(x):
        n = rms(x) * s
        heads = lambda w: (n @ w.T).unflatten(-1, (-1, c.head_dim))  # noqa: E731
        q, k, v = heads(p["q"][layer]), heads(p["k"][layer]), heads(p["v"][layer])
        q = rotate(rms(q), cos, sin) * p["q_gain"][layer][:, None]
        y = exclusive_self_attention(attend_sdpa(q, rotate(rms(k), cos, sin), v), v)
        return p["attn_scale"][layer] * (y.flatten(2) @ p["o"][layer].T)

    def mlp(x):
        h = (rms(x) * s) @ p["up"][layer].T
        h = torch.where(h > 0, h, c.mlp_slope * h) ** 2
        return p["mlp_scale"][layer] * (h @ p["down"][layer].T)

    def mixed(x, weights=p["resid_mix"][layer]):
        return weights[0] * x + weights[1] * x0

    return attention, mlp, mixed, rms


@pytest.mark.parametrize("parallel", PARALLEL)
def test_each_parallel_form_is_its_formula(tiny_model, parallel):
    config = tiny_model(parallel=parallel, skips="none", recurrence=())
    network = moved(Network(config, VOCAB, seed=2))
    p = dict(network.named_parameters())
    batch = tokens()[:, :-1]
    e = p["embedding"][batch]
    x0 = e * torch.rsqrt(e.square().mean(-1, keepdim=True) + torch.finfo(e.dtype).eps)
    x = x0
    for layer in range(3):
        attention, mlp, mixed, rms = sublayers(network, layer, x0)
        u = mixed(x)
        u = u + attention(u)
        x = u + mlp(u)
    attention, mlp, mixed, rms = sublayers(network, 3, x0)
    a = b = x
    match parallel:
        case "none":
            u = mixed(x)
            u = u + attention(u)
            x = u + mlp(u)
        case "single":
            u = mixed(x)
            x = u + attention(u) + mlp(u)
        case "merge":
            u = mixed(a)
            m = p["lane_merge"]
            x = m * (u + attention(u)) + (1 - m) * (b + mlp(b))
        case "routed":
            keep, write = p["lane_keep"][3], p["lane_write"][3]
            out = attention(mixed(a))
            a, b = keep[0] * a + write[0, 0] * out, keep[0] * b + write[0, 1] * out
            out = mlp(mixed(b))
            a, b = keep[1] * a + write[1, 0] * out, keep[1] * b + write[1, 1] * out
            x = (a + b) / 2
        case "mixed":
            r, m = p["lane_route"][0], p["lane_merge"]
            from_a, from_m = attention(mixed(a)), mlp(mixed(b, p["mlp_mix"][0]))
            a, b = a + r[0] * from_a + r[2] * from_m, b + r[1] * from_a + r[3] * from_m
            x = m * a + (1 - m) * b
        case "lanes":
            keep, write = p["lane_keep"][3], p["lane_write"][3]
            from_a, from_m = attention(mixed(a)), mlp(b)
            a, b = (
                keep[lane] * x + write[0, lane] * from_a + write[1, lane] * from_m
                for lane in (0, 1)
            )
            x = (a + b) / 2
    z = rms(x) @ p["embedding"].T
    expected = config.softcap * torch.tanh(z / config.softcap)
    torch.testing.assert_close(network.logits(batch, Pass(config.orders[0])), expected)


def test_skips_pair_the_newest_with_the_first_decoder_layer(tiny_model):
    config = tiny_model(skips="gated")
    layers = plan(config, (0, 1, 2, 1, 2, 3))
    assert [layer.push for layer in layers] == [True] * 3 + [False] * 3
    assert [layer.skip_row for layer in layers] == [None, None, None, 0, 1, 2]
    fewer = plan(dataclasses.replace(config, skip_rows=2), (0, 1, 2, 1, 2, 3))
    assert [layer.skip_row for layer in fewer] == [None, None, None, 0, 1, None]
    none = dataclasses.replace(config, skip_rows=0)
    assert not any(layer.skip_row is not None for layer in plan(none, (0, 1, 2, 1, 2, 3)))
    text = torch.arange(8)[None]
    assert Network(none, 64, seed=1).nll(text, text, Pass(none.orders[-1])).isfinite().all()


def test_repeats_may_stand_outside_the_skips(tiny_model):
    """The halves are of first runs: repeats lie between them (pg#1392), or after both (pg#1499)."""
    config = tiny_model(skips="additive", repeat_skips=False, repeat_step=0.5)
    between, after = (plan(config, order) for order in ((0, 1, 1, 2, 3), (0, 1, 2, 3, 1, 2)))
    assert [layer.push for layer in between] == [True, True, False, False, False]
    assert [layer.skip_row for layer in between] == [None, None, None, 0, 1]
    assert [layer.repeat_row for layer in between] == [None, None, 0, None, None]
    assert [layer.skip_row for layer in after] == [None, None, 0, 1, None, None]
    assert [layer.repeat_row for layer in after] == [None] * 4 + [0, 1]
    assert config.skip_count == 2


def test_skips_may_stop_where_lanes_part(tiny_model):
    config = tiny_model(parallel="merge", parallel_start=2, lane_skips=False, recurrence=())
    assert [layer.skip_row for layer in plan(config, (0, 1, 2, 3))] == [None, None, 0, None]


def test_a_repeat_that_goes_half_the_way_is_the_mean_of_before_and_after(tiny_model):
    config = tiny_model(
        layers=1, parallel="none", skips="none", repeat_skips=False, repeat_step=0.5,
        recurrence=(RecurrencePhase(at=0.5, order=(0, 0)),),
    )  # fmt: skip
    network = moved(Network(config, VOCAB, seed=1))
    whole = Network(dataclasses.replace(config, repeat_step=1.0), VOCAB)
    whole.load_state_dict(network.state_dict())
    network.repeat_step.detach().fill_(0.5)
    whole.repeat_step.detach().fill_(1.0)
    batch = tokens()[:, :-1]

    def last_lane(of: Network, order: tuple[int, ...]) -> torch.Tensor:
        lanes, _ = of.final_lanes(batch, Pass(order), None)
        return lanes[0]

    once, twice = last_lane(network, (0,)), last_lane(whole, (0, 0))
    torch.testing.assert_close(last_lane(network, (0, 0)), (once + twice) / 2)


def test_untied_repeats_start_as_their_layers(tiny_model):
    shared = tiny_model(parallel="none")
    untied = dataclasses.replace(shared, untied_repeats=True)
    one = moved(Network(shared, VOCAB, seed=1))
    two = Network(untied, VOCAB, seed=1)
    with torch.no_grad():
        for name, p in one.named_parameters():
            two.get_parameter(name)[: len(p)].copy_(p)
    two.untie_repeats()
    batch, order = tokens()[:, :-1], Pass(shared.orders[-1])
    assert torch.equal(one.logits(batch, order), two.logits(batch, order))
    with torch.no_grad():
        two.get_parameter("up")[4:].add_(0.1)
    assert not torch.equal(one.logits(batch, order), two.logits(batch, order))


def test_probabilities_sum_to_one_and_taps_see_every_product(tiny_model):
    config = tiny_model()
    network = moved(Network(config, VOCAB, seed=1))
    seen: list[tuple[str, int]] = []
    options = Pass(config.orders[-1], tap=lambda name, row, x: seen.append((name, row)))
    logits = network.logits(tokens()[:, :-1], options)
    torch.testing.assert_close(logits.double().softmax(-1).sum(-1), torch.ones(2, 24).double())
    for family in ("qkv", "o", "up", "down"):
        assert [row for name, row in seen if name == family] == [0, 1, 2, 1, 2, 3]
    assert seen[-1] == ("embedding", 0)


def test_a_mask_takes_tokens_out_of_the_distribution(tiny_model):
    config, escape, mark = tiny_model(), 2, 3
    network = moved(Network(config, VOCAB, seed=1))
    batch, options = tokens(), Pass(config.orders[-1])
    batch[0, 5:7], batch[1, :2] = torch.tensor([escape, mark]), torch.tensor([mark, mark])
    allowed = torch.rand(VOCAB + 1, VOCAB, generator=torch.Generator().manual_seed(0)) < 0.5
    allowed[-1] = True
    words = torch.from_numpy(TokenMask(allowed.numpy(), escape, (mark,)).words)
    masked = network.with_mask(Mask(words, escape, torch.tensor([mark])))
    # behind an ESCAPE, and at the beginning of a row, a mark may be text: nothing is known then
    states = batch[:, :-1].clone()
    states[0, 6] = states[1, 0] = VOCAB
    # others than the text's, so that all can come
    targets = torch.stack([torch.multinomial(row.float(), 1)[:, 0] for row in allowed[states]])
    p = network.logits(batch[:, :-1], options).double().softmax(-1) * allowed[states]
    expected = -(p / p.sum(-1, keepdim=True)).gather(-1, targets[..., None])[..., 0].log()
    found = masked.nll(batch[:, :-1], targets, options)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    last = torch.arange(19, 24)
    for part in (slice(19, 24), last):
        some = masked.nll(batch[:, :-1], targets[:, 19:], options, part=part)
        torch.testing.assert_close(some, found[:, 19:])
    logits = masked.logits(batch[:, :-1], options).double()
    assert (logits.softmax(-1)[~allowed[states]] == 0).all()
    assert not (network.nll(batch[:, :-1], targets, options) < found - 1e-4).any()


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("parallel", PARALLEL)
def test_some_positions_alone_score_and_teach_as_all_do(tiny_model, parallel, extras):
    model = tiny_model(parallel=parallel, **EXTRAS[extras])
    network, order = moved(Network(model, VOCAB, seed=1)), model.orders[-1]
    shapes = adapter_shapes(model, VOCAB, order, ("q", "k", "v", "o", "mlp", "head"))
    device = torch.device("cpu")
    adapters = AdapterSet(shapes, rank=2, alpha=2.0, rows=2, seed=0, device=device)
    for leaf in adapters.b.values():
        torch.nn.init.normal_(leaf.detach(), generator=torch.Generator().manual_seed(3))
    leaves, batch = adapters.parameters(), tokens()
    options = Pass(order, adapters=adapters.pairs())
    inputs, targets = batch[:, :-1], batch[:, 1:]
    whole = network.nll(inputs, targets, options)
    for part in (slice(-5, None), slice(0, 3), torch.tensor([3, 4, 9])):
        some = network.nll(inputs, targets[:, part], options, part=part)
        torch.testing.assert_close(some, whole[:, part])
        found = torch.autograd.grad(some.sum(), leaves, retain_graph=True)
        expected = torch.autograd.grad(whole[:, part].sum(), leaves, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_first_channels_get_the_gradient_of_a_slice():
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.arange(8.0), torch.arange(5.0)

    def gradient(whole: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        total = (weights[0] * whole.square()).sum() + (weights[1] * first.exp()).sum()
        return torch.autograd.grad(total, x)[0]

    expected = gradient(x, x[..., :5])
    torch.testing.assert_close(gradient(*FirstChannels.apply(x, 5)), expected, rtol=0, atol=0)
