"""Hessians against the inputs that a plain forward pass multiplies, and the text that they see."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from process_case import ALONE, joined, run_ranks
from quantize_case import VOCAB, make_trained, write_trained
from torch.overrides import TorchFunctionMode

from paramgolf.data.token_set import open_tokens
from paramgolf.data.tokenizer.token_mask import TokenMask
from paramgolf.errors import ParamGolfError
from paramgolf.model.config import RecurrencePhase
from paramgolf.model.network import Pass
from paramgolf.model.plan import repeated_layers
from paramgolf.quant.calibrate import (
    calibrate,
    collect,
    generate_texts,
    load_network,
    window_starts,
)
from paramgolf.quant.config import CalibrateConfig
from paramgolf.quant.hessian import gather, squares
from paramgolf.quant.trained import TEXTS

LENGTH = 16


def make_config(**changes):
    values = {"source": "train", "sequences": 6, "batch_sequences": 4, "temperature": 0.8}
    values |= {"first_token": "bos", "rope_follows_length": False, "network": "trained"}
    return CalibrateConfig(**{**values, "seed": 5, "sensitivity_sequences": 0, **changes})


class Products(TorchFunctionMode):
    """Sums x^T x of every F.linear, by the parameter that its weight equals."""

    def __init__(self, trained):
        super().__init__()
        state = trained.state
        self.weights = {
            ("qkv", i): torch.cat([state[n][i] for n in "qkv"]) for i in range(len(state["q"]))
        }
        self.weights |= {("up", i): w for i, w in enumerate(state["up"])}
        # the scale of a sublayer's output is a factor of its last matrix
        layers = [*range(trained.model.layers), *repeated_layers(trained.model)]
        for name, scale in (("o", state["attn_scale"]), ("down", state["mlp_scale"])):
            rows = zip(layers, state[name], strict=False)
            self.weights |= {
                (name, i): scale[layer][:, None] * w for i, (layer, w) in enumerate(rows)
            }
        self.weights["embedding", 0] = state["embedding"]
        self.sums = dict.fromkeys(self.weights, 0.0)
        self.calls = dict.fromkeys(self.weights, 0)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.linear:
            x = args[0].detach().double().flatten(0, -2)
            for key, weight in self.weights.items():
                if weight.shape == args[1].shape and torch.equal(weight, args[1]):
                    self.sums[key] = self.sums[key] + x.T @ x
                    self.calls[key] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("untied", [False, True])
def test_hessians_are_the_mean_outer_products_of_the_inputs(tiny_model, untied):
    trained = make_trained(tiny_model(untied_repeats=untied))
    network = load_network(trained, "trained")
    tokens = torch.randint(VOCAB, (6, LENGTH), generator=torch.Generator().manual_seed(2))
    found = gather(network, [tokens[:4], tokens[4:]], ALONE)
    with Products(trained) as products, torch.no_grad():
        network.logits(tokens, Pass(order=trained.model.orders[-1]))
    assert products.calls["qkv", 1] == 2  # layer 1 runs twice
    assert products.calls["up", 1] == (1 if untied else 2)
    assert sum(map(len, found.values())) == len(products.weights)
    for (family, index), total in products.sums.items():
        expected = (total / tokens.numel()).float()
        assert expected.abs().sum() > 0
        torch.testing.assert_close(found[family][index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_squares_of_bfloat16_are_added_up_in_float32():
    generator = torch.Generator("cuda").manual_seed(0)
    rows = torch.randn(100_000, 96, generator=generator, device="cuda").bfloat16()
    exact = rows.double().T @ rows.double()
    # where tensor cores add they cut digits off, which is 1.4e-5 of these sums on an H200; bfloat16
    # would lose a hundred times as much
    assert (squares(rows) - exact).norm() < 4e-5 * exact.norm()


def test_layer_0_without_attention_leaves_zeros(tiny_model):
    trained = make_trained(tiny_model(first_attention=False))
    found = gather(load_network(trained, "trained"), [torch.ones(1, 8, dtype=torch.int64)], ALONE)
    assert (found["qkv"][0] == 0).all()
    assert found["qkv"][1].abs().sum() > 0


@pytest.mark.parametrize("source", ["train", "generate"])
def test_validation_files_are_not_opened(tiny_model, tokens_folder, source):
    for path in [*tokens_folder.glob("val_*.bin")]:
        path.unlink()
    found, count = collect(
        make_trained(tiny_model()), open_tokens(tokens_folder), make_config(source=source), ALONE
    )
    assert count == 6 * LENGTH
    assert all(value.isfinite().all() for value in found.values())


def test_the_seed_alone_chooses_the_windows(tiny_model, tokens_folder):
    trained, tokens = make_trained(tiny_model()), open_tokens(tokens_folder)
    one, _ = collect(trained, tokens, make_config(), ALONE)
    again, _ = collect(trained, tokens, make_config(batch_sequences=1), ALONE)
    other, _ = collect(trained, tokens, make_config(seed=6), ALONE)
    torch.testing.assert_close(one["down"], again["down"])
    assert not torch.allclose(one["down"], other["down"])


def test_tokens_are_those_that_were_found_where_fewer_were(tiny_model, tokens_folder):
    tokens = open_tokens(tokens_folder)
    possible = len(tokens.train()) // LENGTH
    found, count = collect(
        make_trained(tiny_model()), tokens, make_config(sequences=possible + 1), ALONE
    )
    assert found[TEXTS].numel() == count == possible * LENGTH


@pytest.mark.parametrize("tokens", [16, 17, 31, 32, 1000])
@pytest.mark.parametrize("sequences", [1, 7, 100])
def test_windows_do_not_overlap_nor_leave_the_stream(tokens, sequences, capsys):
    starts = window_starts(tokens, LENGTH, sequences, seed=3)
    assert (np.diff(starts) >= LENGTH).all()
    assert starts[0] >= 0
    assert starts[-1] + LENGTH <= tokens
    possible = tokens // LENGTH
    assert len(starts) == min(sequences, possible)
    assert ("using all" in capsys.readouterr().err) == (possible < sequences)


def test_too_few_tokens_are_named():
    with pytest.raises(ParamGolfError, match=r"(?s)one sequence.*at least 16 tokens.*found: 15"):
        window_starts(15, LENGTH, 1, seed=0)


def written(network, numbers, config, *, length=LENGTH):
    return generate_texts(network, numbers, length, config, seed=5)


def test_text_may_begin_with_any_token(tiny_model):
    network = load_network(make_trained(tiny_model()), "trained")
    first = written(network, range(4000), make_config(first_token="random"), length=2)[:, 0]
    counts = torch.bincount(first, minlength=VOCAB)
    assert len(counts) == VOCAB
    assert counts.min() > 0.4 * counts.float().mean()


def test_without_a_seed_of_its_own_calibration_has_that_of_training(tiny_model, tokens_folder):
    trained, tokens = make_trained(tiny_model()), open_tokens(tokens_folder)
    for source in ("train", "generate"):
        config = make_config(source=source, seed=None)
        found, _ = collect(trained, tokens, config, ALONE)
        expected, _ = collect(trained, tokens, replace(config, seed=7), ALONE)
        assert torch.equal(found["down"], expected["down"])


def test_the_hessians_may_be_those_of_a_plain_network(tiny_model, tokens_folder):
    """One with the same weights, every layer once, in all layers the MLP after the attention."""
    tokens, model = open_tokens(tokens_folder), tiny_model(parallel="single")
    trained = make_trained(model)
    plain = replace(model, recurrence=(), parallel="none", skip_rows=model.skip_count)
    found, _ = collect(trained, tokens, make_config(network="plain"), ALONE)
    expected, _ = collect(replace(trained, model=plain), tokens, make_config(), ALONE)
    for family, hessian in expected.items():
        assert torch.equal(found[family], hessian)
    ours, _ = collect(trained, tokens, make_config(), ALONE)
    assert not torch.allclose(ours["up"], found["up"])


def test_written_text_does_not_depend_on_its_batch(tiny_model):
    network = load_network(make_trained(tiny_model()), "trained")
    config = make_config(source="generate")
    together = written(network, range(0, 5), config)
    apart = torch.cat([written(network, range(a, b), config) for a, b in ((0, 2), (2, 5))])
    assert torch.equal(together, apart)
    assert (together[:, 0] == 1).all()
    assert len({tuple(row) for row in together.tolist()}) == 5
    assert together.min() >= 0
    assert together.max() < VOCAB


def test_written_text_follows_the_model(tiny_model):
    """Frequencies of the second token are those of the model after BOS, at the temperature."""
    network = load_network(make_trained(tiny_model()), "trained")
    config = make_config(source="generate", temperature=0.5)
    text = written(network, range(4000), config, length=2)
    counts = torch.bincount(text[:, 1], minlength=VOCAB) / len(text)
    with torch.no_grad():
        logits = network.logits(torch.tensor([[1]]), Pass(order=network.config.orders[-1]))[0, -1]
    expected = torch.softmax(logits / 0.5, dim=-1)
    assert (counts - expected).abs().max() < 4 * (expected / len(text)).sqrt().max()
    assert expected.max() > 2 / VOCAB  # not uniform: the comparison says something


def test_tokens_of_another_vocabulary_are_refused(tiny_model, tokens_folder):
    trained = make_trained(tiny_model())
    trained = replace(trained, vocab_size=VOCAB + 1)
    with pytest.raises(ParamGolfError, match=r"(?s)vocabulary of 65.*found: 64"):
        collect(trained, open_tokens(tokens_folder), make_config(), ALONE)


def test_stage_writes_hessians_and_metrics(tiny_model, tokens_folder, monkeypatch):
    folder = tokens_folder.parents[1]
    monkeypatch.chdir(folder)
    trained = make_trained(tiny_model())
    write_trained(folder, trained)
    calibrate(make_config(), ALONE)
    metrics = json.loads((folder / "artifacts/metrics/calibrate.json").read_text())
    assert metrics.keys() == {"seconds", "tokens", "source"}
    assert (metrics["tokens"], metrics["source"]) == (96, "train")
    path = folder / "artifacts/calibrate/hessians.safetensors"
    shapes = {n: tuple(t.shape) for n, t in safetensors.torch.load_file(path).items()}
    expected = {"qkv": (4, 32, 32), "o": (4, 32, 32), "up": (4, 32, 32), "down": (4, 64, 64)}
    assert shapes == {**expected, "embedding": (1, 32, 32), TEXTS: (6, LENGTH)}
    before = path.read_bytes()
    calibrate(make_config(), ALONE)
    assert path.read_bytes() == before


def work(rank, folder, model, changes):
    trained = make_trained(model)
    tokens = open_tokens(f"{folder}/data/tokens")
    with joined(rank, folder) as runtime:
        found, _ = collect(trained, tokens, make_config(**changes), runtime)
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"sequences": 5, "sensitivity_sequences": 0},
        {"sequences": 8, "sensitivity_sequences": 3},
        {"sequences": 4, "sensitivity_sequences": 2, "source": "generate"},
    ],
)
def test_two_processes_find_what_one_does(tiny_model, tokens_folder, changes):
    """Sensitivities are those of the first sequences, whichever process has them."""
    folder, model = tokens_folder.parents[1], tiny_model()
    given = {**changes, "batch_sequences": 2}
    run_ranks(work, str(folder), model, given)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    one, _ = collect(make_trained(model), open_tokens(tokens_folder), make_config(**given), ALONE)
    measured = [name for name in one if name.endswith(".sensitivity")]
    assert bool(measured) == (changes["sensitivity_sequences"] > 0)
    assert first.keys() == one.keys()
    assert second.keys() == one.keys()
    assert torch.equal(first[TEXTS], one[TEXTS])
    for name, expected in one.items():
        assert torch.equal(first[name], second[name])
        rounding = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=rounding)


def test_recurrence_is_active(tiny_model):
    model = tiny_model(recurrence=(RecurrencePhase(at=0.5, order=(0, 1, 2, 3)),))
    repeated = tiny_model(recurrence=(RecurrencePhase(at=0.5, order=(0, 1, 2, 1, 2, 3)),))
    tokens = torch.ones(1, 4, dtype=torch.int64)
    traces = []
    for each in (model, repeated):
        trained = make_trained(repeated)
        fitting = replace(trained, model=each, state=_fit(trained.state, each))
        network = load_network(fitting, "trained")
        traces.append(gather(network, [tokens], ALONE)["qkv"][1].trace())
    assert traces[1] > 1.5 * traces[0]


def _fit(state, model):
    """Cut the skip weights to the rows of a model with a shorter order."""
    return {n: t[: model.skip_count] if n.startswith("skip") else t for n, t in state.items()}


def test_a_network_that_learned_with_a_mask_is_measured_with_it(
    tiny_model, tokens_folder, monkeypatch
):
    trained, tokens = make_trained(tiny_model()), open_tokens(tokens_folder)
    learned = replace(trained, config={**trained.config, "token_mask": True})
    allowed = np.zeros((VOCAB + 1, VOCAB), dtype=bool)
    allowed[:, 5:9] = True
    mask = TokenMask(allowed, -1, ())
    monkeypatch.setattr("paramgolf.quant.calibrate.mask_of", lambda _: mask)
    config = make_config(sensitivity_sequences=2)
    plain, found = (collect(one, tokens, config, ALONE)[0] for one in (trained, learned))
    assert (plain["down"] == found["down"]).all()
    # a token that cannot come cannot cost anything
    likely = found["embedding.sensitivity"][0]
    assert likely.nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert (plain["embedding.sensitivity"][0] > 0).all()
