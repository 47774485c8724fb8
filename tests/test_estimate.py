"""Estimates against what is really written, run and held in memory."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import brotli
import numpy as np
import pytest
import torch

from paramgolf.cli import main
from paramgolf.codec.writer import encode
from paramgolf.estimate import entropy, size
from paramgolf.estimate.devices import DEVICES, GIB
from paramgolf.estimate.memory import training_memory
from paramgolf.estimate.speed import Machine, Stretch, stretches, training_flops
from paramgolf.estimate.summary import BYTES_TOLERANCE
from paramgolf.files import read_json
from paramgolf.model.config import ModelConfig, RecurrencePhase
from paramgolf.model.flops import forward_flops
from paramgolf.model.network import Network
from paramgolf.model.plan import plan
from paramgolf.model.shapes import MATRICES, PROJECTIONS, TABLES, shapes
from paramgolf.quant.grids import Rows, nearest, row_scales
from paramgolf.quant.quantize import quantize_model
from paramgolf.quant.report import stored_bits
from paramgolf.quant.scales import grid_of
from paramgolf.quant.trained import FAMILIES, Trained
from paramgolf.recipes import Params, check, compose
from paramgolf.runtime import Runtime
from paramgolf.training.config import BatchSizes, MomentumAverage, TrainConfig
from paramgolf.training.schedule import point
from paramgolf.training.state import TrainState

ROOT = Path(__file__).parents[1]
VOCAB = 1000
H100 = DEVICES["H100"]
QUANTIZED = (*MATRICES, "embedding")


@pytest.fixture(scope="module")
def base() -> Params:
    """The parameters of #1493."""
    return check(compose("base", ROOT / "recipes"), where="base")


# bytes


def model_bytes(params: Params, **changes) -> size.ModelBytes:
    """What a recipe's model.bin is expected to be, with changes, whatever the deviations."""
    names = ("model", "quantize", "package")
    sections = {name: getattr(params, name) for name in names} | {"vocab_size": 8192}
    return size.ModelBytes(**sections | {"deviations": {}} | changes)


def gaussian_model(model: ModelConfig, spread: float) -> Trained:
    """A model of Gaussian rows whose deviations differ by a factor exp(N(0, spread^2))."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes(model, VOCAB).items():
        state[name] = torch.randn(shape, generator=generator)
        if name in QUANTIZED:
            factors = torch.exp(spread * torch.randn(shape[:-1], generator=generator))
            state[name] *= 0.04 * factors.unsqueeze(-1)
        elif name in (*TABLES, *PROJECTIONS):
            state[name] *= 0.05
        else:
            state[name] = 1 + 0.3 * state[name]
    config = {"model": json.loads(json.dumps(dataclasses.asdict(model)))}
    config |= {"vocab_size": VOCAB, "sequence_length": 256}
    return Trained(model, VOCAB, 256, state, config)


def correlated_hessians(trained: Trained) -> dict[str, torch.Tensor]:
    """Hessians of inputs whose channels are mixed, of traces about as RMSNorm gives them."""
    generator = torch.Generator().manual_seed(1)
    hessians = {}
    for family, names in FAMILIES.items():
        rows, columns = (1, *trained.state[names[0]].shape)[-3], trained.state[names[0]].shape[-1]
        mixing = torch.eye(columns) + 0.04 * torch.randn(columns, columns, generator=generator)
        x = torch.randn(rows, 2 * columns, columns, generator=generator) @ mixing
        scale = {"o": 0.7, "down": 1.3}.get(family, 1) / torch.arange(1, rows + 1)
        hessians[family] = x.mT @ x * (scale / columns)[:, None, None]
    return hessians


@pytest.mark.parametrize(
    "settings",
    [
        {"spread": 0.25},
        {"spread": 0.0, "mlp_clip": 7.0, "attention_clip": 9.0, "embedding_clip": 14.0}
        | {"matrix_bits": 5, "embedding_bits": 7},
        {"spread": 0.25, "matrix_bits": 5},
        {"spread": 0.25, "matrix_bits": 5, "method": "nearest"},
        {"spread": 0.25, "high_bits_matrices": 7, "low_bits": 5, "gate_bits": 8, "table_bits": 6}
        | {"low_rank_matrices": 3, "finer_groups": 1},
        {"spread": 0.1, "grid": "percentile", "least_reach": 1.0},
        {"spread": 0.1, "grid": "absmax", "least_reach": 0.5, "table_bits": 8},
    ],
    ids=["base", "other", "coarse", "rounded", "mixed", "floor", "absmax"],
)
def test_bytes_are_what_package_writes(settings, base):
    changes = {"layers": 2, "width": 256, "mlp_hidden": 768, "rope_dims": 8}
    changes |= {"parallel_start": 1, "recurrence": (), "bigram_buckets": 512}
    changes |= {"bigram_dim": 64, "head_gate": "dense"}
    model = dataclasses.replace(base.model, **changes)
    clips = {key: value for key, value in settings.items() if key != "spread"}
    quantize = dataclasses.replace(base.quantize, **clips)
    trained = gaussian_model(model, settings["spread"])
    hessians = correlated_hessians(trained)
    tensors, reports = quantize_model(trained, hessians, quantize, torch.device("cpu"))
    bits = stored_bits(tensors, reports)
    content, parts = encode(tensors, {**trained.config, "quantize": {"bits": bits}}, base.package)
    rows = {*QUANTIZED, *TABLES, *PROJECTIONS} & trained.state.keys()
    deviations = {name: float(trained.state[name].std(-1).mean()) for name in rows}
    changes = {"model": model, "vocab_size": VOCAB, "quantize": quantize}
    expected = model_bytes(base, **changes, deviations=deviations)
    estimated = expected.parts()
    written = {part.name: part.bytes for part in parts}
    assert {p.name for p in estimated} - {"finer groups", "low-rank codes"} == {*written} - {
        "codes"
    }
    total = sum(part.bytes for part in estimated)
    tolerance = expected.allocation_uncertainty()
    assert (tolerance > 0) == (quantize.high_bits_matrices is not None)
    assert abs(total - len(content)) < BYTES_TOLERANCE * len(content) + tolerance
    if quantize.finer_groups == 0:  # else the finer integers are in the matrices' parts
        for part in estimated:
            if part.bits is not None:
                assert part.bytes == pytest.approx(written[part.name], rel=BYTES_TOLERANCE)


def test_bytes_of_matrices_of_mixed_bits_are_the_sum_of_their_layers(base):
    """Which matrices get more bits is known after calibration; the rest of the estimate is not."""
    changes = {"layers": 4, "width": 256, "mlp_hidden": 768, "rope_dims": 8}
    model = dataclasses.replace(base.model, **changes, parallel_start=2, recurrence=())
    quantize = dataclasses.replace(base.quantize, high_bits_matrices=12, low_bits=5)
    trained = gaussian_model(model, 0.25)
    hessians = correlated_hessians(trained)
    tensors, reports = quantize_model(trained, hessians, quantize, torch.device("cpu"))
    config = {**trained.config, "quantize": {"bits": stored_bits(tensors, reports)}}
    written = {part.name: part.bytes for part in encode(tensors, config, base.package)[1]}
    expected: dict[str, float] = dict.fromkeys(MATRICES, 0.0)
    of_bits = model_bytes(base, quantize=quantize)
    for report in (report for report in reports if report["name"] in MATRICES):
        rows, columns = report["shape"]
        bits = of_bits.bits_per_weight(report["name"], columns, report["bits"])
        expected[report["name"]] += rows * columns * bits / 8
    assert len({report["bits"] for report in reports if report["name"] == "q"}) == 2
    assert expected == pytest.approx({name: written[name] for name in MATRICES}, rel=0.01)


def test_bytes_of_1493_are_those_published(base):
    published, code = 15_992_694, 16_600  # mean of three seeds; its code
    assert model_bytes(base).total == pytest.approx(published - code, rel=0.005)


@pytest.mark.parametrize(
    ("bits", "clip", "expected"),
    [(6, 10, 3.686), (6, 12.85, 3.328), (7, 15, 4.121), (8, 20, 4.715)],
)
def test_entropy_is_the_published_size_law(bits, clip, expected):
    """The values are those of Gaussian rows in pg#1394 and later."""
    maximum = 2 ** (bits - 1) - 1
    chances = entropy.integer_chances(clip / maximum, maximum)
    assert sum(chances) == pytest.approx(1)
    assert entropy.entropy_bits(chances) == pytest.approx(expected, abs=0.001)
    # the size law of pg#1394, which holds where the step is below about one deviation
    law = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(clip / maximum)
    assert law == pytest.approx(expected, abs=0.012)


def test_huffman_code_of_a_known_alphabet():
    """1/2, 1/4, 1/8, 1/8 take 1, 2, 3 and 3 bits; a chance of 0 takes no word."""
    assert entropy.huffman_bits([0.125, 0.5, 0.0, 0.25, 0.125]) == 1.75
    assert entropy.huffman_bits([0.9, 0.1]) == 1
    assert entropy.huffman_bits([1.0]) == 0


@pytest.mark.parametrize(
    ("grid", "bits", "columns"), [("absmax", 6, 512), ("percentile", 4, 512), ("absmax", 8, 128)]
)
def test_bits_of_grids_that_follow_a_rows_largest_weights(grid, bits, columns, base):
    generator = np.random.default_rng(0)
    weight = torch.from_numpy(generator.standard_normal((1, 131_072 // columns, columns))).float()
    quantize = dataclasses.replace(base.quantize, grid=grid, matrix_bits=bits, method="nearest")
    scales = row_scales(weight, torch.ones(1, columns), grid_of("q", quantize))
    limits = torch.full_like(scales, 2 ** (bits - 1) - 1).float()
    raw = nearest(Rows(weight, scales, limits)).to(torch.int8).numpy().tobytes()
    real = 8 * len(brotli.compress(raw, quality=11, lgwin=24)) / len(raw)
    estimated = model_bytes(base, quantize=quantize).bits_per_weight("q", columns, bits)
    assert estimated == pytest.approx(real, rel=0.015)


@pytest.mark.parametrize("columns", [64, 512, 2048])
def test_expected_percentiles_are_those_of_gaussian_rows(columns):
    rows = np.abs(np.random.default_rng(0).standard_normal((2000, columns)))
    for share in (0.99, 0.999, 1.0):
        simulated = np.quantile(rows, share, axis=1).mean()
        assert entropy.expected_percentile(share, columns) == pytest.approx(simulated, rel=0.02)


def test_codecs_differ_and_auto_takes_the_smaller(base):
    found = {
        codec: model_bytes(
            base, package=dataclasses.replace(base.package, codec=codec)
        ).bits_per_weight("q", 512, 6)
        for codec in ("brotli", "lzma", "rans", "auto")
    }
    assert found["auto"] == found["rans"] < found["brotli"] < found["lzma"]


@pytest.mark.parametrize("name", QUANTIZED)
def test_grids_are_those_of_quantize(name, base):
    quantize = dataclasses.replace(base.quantize, mlp_clip=9.0, attention_clip=11.0)
    grid = grid_of(name, quantize)
    assert size.reach(name, 64, grid.maximum, quantize) == grid.clip


@pytest.mark.parametrize("bits", [None, 5])
def test_what_has_no_bits_is_expected_as_float16(bits, base):
    keys = ("gate_bits", "table_bits", "bigram_proj_bits", "value_proj_bits", "embedding_bits")
    quantize = dataclasses.replace(base.quantize, **dict.fromkeys(keys, bits))
    model = dataclasses.replace(base.model, bigram_buckets=64, head_gate="sparse")
    parts = {part.name for part in model_bytes(base, model=model, quantize=quantize).parts()}
    names = {"head_gate", "bigram_table", "bigram_proj", "embedding"}
    assert names & parts == (set() if bits is None else names)


def test_matrices_of_the_mlp_may_have_bits_of_their_own(base):
    def bits(**changes):
        quantize = dataclasses.replace(base.quantize, **changes)
        return {part.name: part.bits for part in model_bytes(base, quantize=quantize).parts()}

    found, five = bits(mlp_bits=5), bits(matrix_bits=5)
    assert (found["up"], found["down"]) == (five["up"], five["down"])
    assert found["q"] == bits()["q"]


def test_clips_that_are_fitted_end_below_the_limit(base, sample):
    quantize = dataclasses.replace(base.quantize, fit_bytes=15_999_000)
    expected = model_bytes(base, quantize=quantize)
    fitted, factor = expected.fitted(30_000)
    assert 15_990_000 < fitted.total + 30_000 <= 15_999_000
    assert fitted.quantize.mlp_clip == factor * quantize.mlp_clip
    assert model_bytes(base).fitted(0)[1] == 1
    widest = expected.fitted(15_900_000)[1]
    assert widest == pytest.approx(16)


# steps and seconds


def by_stepping(
    model: ModelConfig, train: TrainConfig, machine: Machine
) -> list[tuple[int, int, int]]:
    """Return (phase, batch tokens, steps) of each stretch, one step at a time as train does."""
    seconds, found = 0.0, []
    step = 0
    while (at := point(train, step, seconds)).fraction < 1:
        phase = model.phase_at(at.fraction, at.step)
        sizes = [sizes for sizes in train.batch_sizes if sizes.at <= at.fraction][-1]
        flops = training_flops(model, VOCAB, phase, sizes.sequence_length)
        seconds += machine.step_seconds(flops * sizes.batch_tokens)
        step += 1
        if found and found[-1][:2] == (phase, sizes.batch_tokens):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((phase, sizes.batch_tokens, 1))
    return found


CURRICULUM = (BatchSizes(at=0.3, batch_tokens=8192, sequence_length=512),)


@pytest.mark.parametrize(
    "train",
    [
        {"steps": 97},
        {"steps": None, "budget_seconds": 3.0, "reserve_seconds": 0.25},
        {"steps": 97, "budget_seconds": 1.5},
        {"steps": 97, "curriculum": CURRICULUM},
        {"steps": None, "budget_seconds": 3.0, "curriculum": CURRICULUM},
    ],
)
@pytest.mark.parametrize("unit", ["fraction", "step"])
def test_stretches_are_the_training_loops(train, unit, sample, tiny_model):
    """The two thresholds are 0.4 and 0.6 of the budget, or steps 5 and 12."""
    orders = ((0, 1, 2, 1, 2, 3), (0, 1, 2, 1, 2, 1, 2, 3))
    points = (0.4, 0.6) if unit == "fraction" else (5, 12)
    phases = tuple(RecurrencePhase(at=at, order=o) for at, o in zip(points, orders, strict=True))
    model = tiny_model(recurrence=phases, recurrence_unit=unit)
    config = dataclasses.replace(sample.train, micro_batch_tokens=8192, **train)
    machine = Machine(device=dataclasses.replace(DEVICES["cpu"], peak_flops=1e11), count=1)
    found = stretches(model, config, VOCAB, machine)
    assert [(s.phase, s.batch_tokens, s.steps) for s in found] == by_stepping(
        model, config, machine
    )
    assert len(found) >= 2


def test_a_first_layer_without_attention_costs_none(tiny_model):
    """Layer 0 runs twice here: two passes' products of q, k, v, o and their attention are saved."""
    model = tiny_model(first_attention=True)
    without = dataclasses.replace(model, first_attention=False)
    order, length = (0, 1, 0, 2, 3), 64
    kv_width = model.kv_heads * model.head_dim
    attention = 2 * (2 * model.width**2 + 2 * model.width * kv_width) + 2 * length * model.width
    costs = [forward_flops(config, VOCAB, order, length) for config in (model, without)]
    assert costs[0] - costs[1] == 2 * attention


def test_steps_of_1493_are_near_those_published(base):
    published = dataclasses.replace(DEVICES["H100"], utilisation=0.27)  # of #1218 to #1493
    found = stretches(base.model, base.train, 8192, Machine(device=published, count=8))
    assert sum(part.steps for part in found) == pytest.approx(4554, rel=0.05)
    assert [part.phase for part in found] == [0, 1]


def test_a_step_takes_no_less_than_the_launch_of_its_kernels(sample):
    train = dataclasses.replace(sample.train, steps=250, curriculum=())
    found = stretches(sample.model, train, 1024, Machine(device=DEVICES["H100"], count=8))
    assert {part.step_seconds for part in found} == {DEVICES["H100"].shortest_step}
    assert sum(part.steps for part in found) == 250
    assert found[0] == Stretch(0, train.sequence_length, train.batch_tokens, 125, 0.010)


# memory


@pytest.mark.parametrize("blocks_only", [True, False])
def test_state_in_memory_is_what_training_holds(blocks_only, sample, tiny_model):
    model = tiny_model(value_embedding_layers=(1,), bigram_buckets=64)
    average = MomentumAverage(decay=0.9, weight=0.5, last_weight=0.5)
    train = dataclasses.replace(
        sample.train, muon_blocks_only=blocks_only, muon_averages=(average, average)
    )
    network = Network(model, VOCAB, seed=0)
    state = TrainState(network, train, Runtime(0, 1, torch.device("cpu")))
    state.zero_grad()
    expected = training_memory(model, train, VOCAB, DEVICES["cpu"], 1)
    parameters = 4 * sum(p.numel() for p in network.parameters())
    assert expected.weights == expected.gradients == expected.average == parameters
    state._adam.step()  # makes the moments
    moments = [t for held in state._adam.state.values() for t in held.values() if t.dim()]
    held = [*state._muon.momentum.values(), *moments]
    assert expected.optimizer == 4 * sum(t.numel() for t in held)


RESULTS = Path(__file__).parents[1] / "benchmarks/results"
PASS_TOKENS = 98_304  # of everything that was measured
SPEEDS = {row["figure"]: row["value"] for row in read_json(RESULTS / "train_speed.json")["rows"]}
RUNS = read_json(RESULTS / "recipes.json")["runs"]["recipes"]
SHAPES = {"best, in pr2135's shape": "pr2135", "h100x1, 120 s": "pr1493"}  # that runs had


def expected_bytes(recipe: str, **older: int) -> int:
    """Return the memory that a recipe's passes are expected to take."""
    params = check(compose(recipe, ROOT / "recipes"), where=recipe)
    pass_tokens = params.train.micro_batch_tokens
    total = training_memory(params.model, params.train, params.tokenizer.vocab_size, H100, 1).total
    steps = plan(params.model, max(params.model.orders, key=len))
    kinds = [params.model.parallel if step.parallel else "none" for step in steps]
    widths = sum(older.get(kind, 0) for kind in kinds)
    return total + pass_tokens * H100.compute_bytes * widths * params.model.width


@pytest.mark.parametrize("recipe", ["pr1493", "pr1855", "best"])
def test_memory_is_that_of_a_step_measured_on_a_gpu(recipe):
    measured = SPEEDS[f"{recipe}, peak memory, 98,304 tokens"] * GIB
    assert expected_bytes(recipe) == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("name", RUNS)
def test_memory_is_that_of_each_recipe_that_was_trained(name):
    """Runs without a commit are of kernels that kept unmixed lanes beside their norm."""
    run = RUNS[name]
    if "before the fused kernels" in name:
        pytest.skip("plain operations")
    if name in ("pr1392, before its correction", "pr1499, before its correction"):
        pytest.skip("a network of two lanes (pr1392), with another XSA (pr1499)")
    older = {} if "commit" in run else {"none": 2, "single": 1, "merge": 1, "lanes": 1}
    recipe = SHAPES.get(name, name.partition(",")[0])
    measured = run["figures"]["peak_memory_bytes"]
    assert expected_bytes(recipe, **older) == pytest.approx(measured, rel=0.1)


def test_a_pass_that_keeps_less_takes_less(base: Params):
    """Recurrence, XSA and a second lane each cost what their tensors hold."""
    memory = {
        name: training_memory(
            dataclasses.replace(base.model, **changes), base.train, 8192, H100, 1
        ).activations
        for name, changes in {
            "whole": {},
            "no recurrence": {"recurrence": ()},
            "no XSA": {"xsa_layers": 0},
            "two lanes": {"parallel": "lanes", "parallel_start": 9},
        }.items()
    }
    assert memory["no recurrence"] < 0.75 * memory["whole"]
    assert memory["whole"] - memory["no XSA"] == 17 * PASS_TOKENS * 2 * 512
    assert memory["two lanes"] > memory["whole"]


def test_a_device_holds_its_share_of_a_small_batch(sample):
    memory = [training_memory(sample.model, sample.train, 1024, DEVICES["H100"], n) for n in (1, 8)]
    assert memory[0].activations == 8 * memory[1].activations
    assert memory[1].gradients == memory[0].gradients  # summed in place


# the command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `paramgolf estimate` in the project's folder; return what it prints."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["estimate", *arguments])
        assert caught.value.code == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return call


def test_json_holds_the_whole_estimate(run):
    result = json.loads(run("sample", "train.steps=40", "--gpu", "cpu", "--json"))
    assert result["recipe"] == "sample"
    assert result["changes"] == ["train.steps=40"]
    assert (result["device"], result["devices"]) == ("cpu", 1)
    artifact = result["artifact"]
    assert artifact["bytes_total"] == artifact["bytes_model"] + artifact["bytes_code"]
    assert artifact["fits"] == "yes"
    assert result["run"]["steps"] == 40
    assert result["run"]["tokens"] == 40 * 4096
    assert [phase["passes"] for phase in result["flops_per_token"]] == [6, 8]
    names = {*shapes(check(compose("sample"), where="").model, 1024), "total"}
    assert result["parameters"].keys() == names


def test_a_price_gives_dollars(run):
    result = json.loads(run("pr1493", "--gpus", "8", "--price", "3", "--json"))
    seconds = result["run"]["train_seconds"]
    assert result["dollars"]["training"] == pytest.approx(8 * seconds / 3600 * 3)
    assert result["dollars"]["limits"] == pytest.approx(8 * 1800 / 3600 * 3)


@pytest.mark.parametrize(("clip", "fits"), [("12.85", "unsure"), ("14.5", "yes"), ("11.5", "no")])
def test_an_estimate_within_its_tolerance_of_the_limit_is_unsure(clip, fits, run):
    result = json.loads(run("base", f"quantize.mlp_clip={clip}", "--json"))
    assert result["artifact"]["fits"] == fits


def test_the_table_names_the_changes_and_what_does_not_fit(run):
    text = run("base", "train.micro_batch_tokens=786432", "--gpu", "H200", "--gpus", "1")
    assert text.startswith("base train.micro_batch_tokens=786432 on 1 H200\n")
    assert "35,944,536" in text
    assert "does NOT fit in 140" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pr9"], "there is no recipe `pr9`"),
        (["sample", "train.sed=1"], "did you mean `train.seed`?"),
        (["sample", "--gpu", "A100"], "invalid choice: 'A100'"),
    ],
)
def test_bad_input_is_one_message_and_code_2(arguments, message, run):
    error = run(*arguments, code=2)
    assert message in error
    assert "Traceback" not in error


def test_an_estimate_needs_no_torch():
    script = "import sys; from paramgolf.cli import main\ntry: main(['estimate', 'sample'])\n"
    script += "except SystemExit: pass\nprint({'torch', 'numpy', 'dvc', 'scipy'} & {*sys.modules})"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.endswith("set()\n")
