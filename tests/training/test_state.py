"""One optimizer step: the same whatever the number of processes that share the batch."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from process_case import ALONE, joined, run_ranks

from paramgolf.model.config import ModelConfig
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime
from paramgolf.training.config import TrainConfig
from paramgolf.training.schedule import point
from paramgolf.training.state import TrainState

VOCAB, STEPS, ROWS = 64, 3, 4
TEXT = torch.randint(0, VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))


def trained(model: ModelConfig, config: TrainConfig, runtime: Runtime) -> dict[str, torch.Tensor]:
    """Weights and averages after a few steps, each rank on its rows of the batch."""
    network = Network(model, VOCAB, seed=0)
    state = TrainState(network, config, runtime)
    batch = torch.randint(0, VOCAB, (ROWS, 17), generator=torch.Generator().manual_seed(1))
    if config.clip_scope == "process":  # equal parts, of which each is clipped as the whole is
        batch = batch[: ROWS // 2].repeat(2, 1)
    mine = batch.view(runtime.world, -1, 17)[runtime.rank]
    for step in range(STEPS):
        state.zero_grad()
        nll = state.network.nll(mine[:, :-1], mine[:, 1:], Pass(model.orders[0]))
        (nll.sum() / (ROWS * 16)).backward()
        state.step(point(config, step, 0.0))
    averages = {f"average of {name}": x for name, x in state.average.items()}
    return {**{n: p.detach() for n, p in network.named_parameters()}, **averages}


def test_vectors_may_have_a_second_moment_of_their_own(sample, tiny_model):
    config = dataclasses.replace(sample.train, adam_beta2=0.9, scalar_beta2=0.997)
    network = Network(tiny_model(), VOCAB, seed=0)
    state = TrainState(network, config, ALONE)
    names = {id(p): name for name, p in network.named_parameters()}
    found = {
        names[id(p)]: group["betas"][1]
        for group in state._adam.param_groups
        for p in group["params"]
    }
    assert found["embedding"] == 0.9
    assert (found["attn_scale"], found["skip_weight"]) == (0.997, 0.997)


def test_averages_of_groups_may_have_memories_of_their_own(sample, tiny_model):
    decays = {"ema_decay": 0.9, "token_ema_decay": 0.5, "scalar_ema_decay": None}
    config = dataclasses.replace(sample.train, ema_warmup=False, matrix_lr=0.0, **decays)
    network = Network(tiny_model(), VOCAB, seed=0)
    state = TrainState(network, config, ALONE)
    state.zero_grad()
    for average in state.average.values():
        average.zero_()
    state.step(point(config, 0, 0.0))
    for name, decay in (("embedding", 0.5), ("q", 0.9), ("attn_scale", 0.9)):
        weight = network.get_parameter(name).detach()
        torch.testing.assert_close(state.average[name], (1 - decay) * weight)


def test_mixed_heads_are_their_formula_and_fold_into_the_weights(sample, tiny_model):
    model, options = tiny_model(), Pass(tiny_model().orders[-1])
    config = dataclasses.replace(sample.train, steps=10, head_mixing=True, scalar_lr=0.1)
    plain, network = (Network(model, VOCAB, seed=0) for _ in range(2))
    for one in (plain, network):  # zero at first, and nothing would be seen
        torch.nn.init.normal_(one.get_parameter("o"), generator=torch.Generator().manual_seed(0))
    state = TrainState(network, config, ALONE)
    assert torch.equal(plain.logits(TEXT, options), state.network.logits(TEXT, options))
    for step in range(2):
        state.zero_grad()
        state.network.nll(TEXT[:, :-1], TEXT[:, 1:], options).mean().backward()
        state.step(point(config, step, 0.0))
    saved = state.state()
    assert saved["weights"].keys() - dict(network.named_parameters()) == {"q_mix", "k_mix", "v_mix"}

    averages = state.average
    plain.load_state_dict({name: averages[name] for name in plain.state_dict()})
    with torch.no_grad():
        for name, heads in (("q", 4), ("k", 2), ("v", 2)):
            weight, mix = averages[name].unflatten(1, (heads, -1)), averages[f"{name}_mix"]
            assert not torch.equal(mix, torch.eye(heads).expand_as(mix))
            mixed = torch.einsum("lhm,lmri->lhri", mix, weight)
            plain.get_parameter(name).copy_(mixed.flatten(1, 2))
    state.load_average()
    for found in (network, state.network):
        torch.testing.assert_close(found.logits(TEXT, options), plain.logits(TEXT, options))


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_a_loaded_state_goes_on_as_the_saved_one(sample, tiny_model, average):
    kinds = {"average": average, "swa_every": 1, "swa_below": 2.0}  # each step is averaged
    config = dataclasses.replace(sample.train, steps=10, head_mixing=True, **kinds)
    model = tiny_model()
    states = [TrainState(Network(model, VOCAB, seed=seed), config, ALONE) for seed in (0, 1)]
    for step in range(6):
        if step == 4:
            states[1].load(copy.deepcopy(states[0].state()))
        for state in states[: 1 if step < 4 else 2]:
            state.zero_grad()
            nll = state.network.nll(TEXT[:, :-1], TEXT[:, 1:], Pass(model.orders[0]))
            nll.mean().backward()
            state.step(point(config, step, 0.0))
    first, second = (state.state()["average"] for state in states)
    assert {name for name in first if torch.equal(first[name], second[name])} == {*first}


def test_gradients_stay_in_one_block(sample, tiny_model):
    """One collective sums them, and captured graphs know their addresses."""
    model = tiny_model()
    network = Network(model, VOCAB, seed=0)
    state = TrainState(network, sample.train, ALONE)
    seen = []
    for _ in range(2):
        state.zero_grad()
        assert not any(p.grad.any() for p in network.parameters())
        network.nll(TEXT[:, :-1], TEXT[:, 1:], Pass(model.orders[0])).mean().backward()
        seen.append([(p.grad.data_ptr(), p.grad.sum().item()) for p in network.parameters()])
        network.zero_grad(set_to_none=True)  # as whoever measures memory does
    assert seen[0] == seen[1]
    addresses = sorted(address for address, _ in seen[0])
    assert addresses[-1] - addresses[0] < 4 * sum(p.numel() + 64 for p in network.parameters())


def _run_rank(rank: int, folder: Path, model: ModelConfig, config: TrainConfig) -> None:
    with joined(rank, folder) as runtime:
        torch.save(trained(model, config, runtime), folder / f"{rank}.pt")


@pytest.mark.parametrize(
    ("clip_norm", "scope"), [(0.05, "global"), (0.0, "global"), (0.05, "process")]
)
def test_two_processes_equal_one(clip_norm, scope, sample, tiny_model, tmp_path):
    changes = {"clip_norm": clip_norm, "clip_scope": scope, "head_mixing": True}
    config = dataclasses.replace(sample.train, steps=10, adam_eps=1e-3, **changes)
    model = tiny_model(head_gate="sparse", bigram_buckets=16)
    run_ranks(_run_rank, tmp_path, model, config)
    expected = trained(model, config, ALONE)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, atol=1e-6, rtol=0, msg=name)
