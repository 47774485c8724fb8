"""Tokens of a space and a case mark: how their rows start; that nothing is smeared from them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from paramgolf.data.special_tokens import ALIASES, BOS
from paramgolf.data.token_set import open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_json
from paramgolf.model.embedding import embed, smear_and_norm
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime
from paramgolf.training.run import initial_network
from paramgolf.training.state import TrainState

VOCAB = 64
TRIPLES = ((8, 20, 4), (9, 20, 5), (10, 20, 6))


def network_of(config, seed=0):
    network = Network(config, VOCAB, seed=1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network


def text():
    """Tokens [1, 40] with aliases at 5, 6, 20 and BOS at 7 and 30."""
    tokens = torch.randint(11, VOCAB, (1, 40), generator=torch.Generator().manual_seed(2))
    tokens[0, [5, 6, 20]] = torch.tensor([8, 10, 9])
    tokens[0, [7, 30]] = 1
    return tokens


def by_the_formula(tokens, p, smear):
    """x0 [T, d], a position at a time."""
    rows = [p["embedding"][t] for t in tokens.tolist()]
    if smear == "channel":
        rows = [torch.nn.functional.rms_norm(r, r.shape) for r in rows]
    found = []
    for t, row in enumerate(rows):
        stopped = t == 0 or tokens[t] == 1 or tokens[t - 1] in (8, 9, 10)
        before = torch.zeros_like(row) if stopped else rows[t - 1]
        if smear == "channel":
            g = torch.sigmoid(p["smear_gate"])
            found.append((1 - g) * row + g * before)
        else:
            g = p["smear_scale"] * torch.sigmoid(row[:12] @ p["smear_weight"])
            found.append(torch.nn.functional.rms_norm(row + g * before, row.shape))
    return torch.stack(found)


@pytest.mark.parametrize("smear", ["token", "channel"])
def test_smearing_is_the_formula(tiny_model, smear):
    config = tiny_model(smear=smear, fused_markers=True)
    tensors = {name: p.detach() for name, p in network_of(config).named_parameters()}
    found = embed(text(), tensors, config, bos=BOS, smear=smear_and_norm)[0]
    torch.testing.assert_close(found, by_the_formula(text()[0], tensors, smear))
    unfused = dataclasses.replace(config, fused_markers=False)
    plain = embed(text(), tensors, unfused, bos=BOS, smear=smear_and_norm)[0]
    differs = (found - plain).abs().amax(-1) > 1e-4
    assert differs.nonzero().flatten().tolist() == [6, 21]  # 7 is BOS


@pytest.mark.parametrize("smear", ["none", "token", "channel"])
def test_no_token_sees_the_future(tiny_model, smear):
    config = tiny_model(smear=smear, fused_markers=True)
    network, order = network_of(config), config.orders[-1]
    for at in (5, 6, 15, 20):
        for other in {9, 33} - set(text()[0, [at]].tolist()):
            changed = text()
            changed[0, at] = other
            with torch.no_grad():
                before, after = (network.logits(x, Pass(order)) for x in (text(), changed))
            assert torch.equal(before[:, :at], after[:, :at])
            assert not torch.equal(before[:, at], after[:, at])


@pytest.fixture
def run(tmp_path, tokens_folder, tiny_model, sample, monkeypatch):
    """Make the first state of a run on tokens with the given aliases."""
    monkeypatch.chdir(tmp_path)
    path = tokens_folder / "manifest.json"

    def make(aliases, **changes):
        write_json(path, {**json.loads(path.read_text()), "aliases": aliases})
        config = dataclasses.replace(
            sample.train, steps=2, batch_tokens=64, micro_batch_tokens=64, sequence_length=32
        )
        runtime = Runtime(0, 1, torch.device("cpu"))
        model = tiny_model(smear="token", **changes)
        network = initial_network(model, config, runtime, open_tokens(tokens_folder))
        return TrainState(network, config, runtime)

    return make


def test_rows_start_as_mixes_of_the_marks_length(run):
    rows = run(TRIPLES, fused_markers=True).network.get_parameter("embedding").detach()
    plain = run(TRIPLES).network.get_parameter("embedding").detach()
    for alias, space, mark in TRIPLES:
        mixed = 0.4 * plain[space] + 0.6 * plain[mark]
        torch.testing.assert_close(rows[alias], mixed / mixed.norm() * plain[mark].norm())
    others = [i for i in range(VOCAB) if i not in ALIASES]
    assert torch.equal(rows[others], plain[others])


def test_the_average_starts_with_the_same_rows(run):
    state = run(TRIPLES, fused_markers=True)
    assert torch.equal(state.average["embedding"], state.network.get_parameter("embedding"))


@pytest.mark.parametrize("aliases", [(), ((8, 20, 4),), ((11, 20, 4), (12, 20, 5), (13, 20, 6))])
def test_tokens_that_are_not_fused_so_are_refused(run, aliases):
    with pytest.raises(ParamGolfError, match=r"(?s)needs tokens whose markers are fused.*8, 9, 10"):
        run(aliases, fused_markers=True)
