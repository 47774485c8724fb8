"""Estimated bytes against those that are written, and against published ones."""

from __future__ import annotations

import dataclasses
import json
import math

import brotli
import numpy as np
import pytest
import torch

from paramgolf.codec.writer import encode
from paramgolf.estimate import entropy, size
from paramgolf.estimate.summary import BYTES_TOLERANCE
from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, PROJECTIONS, TABLES, shapes
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.grids import Rows, nearest, row_scales
from paramgolf.quant.quantize import prepare, solve_model
from paramgolf.quant.report import stored_bits
from paramgolf.quant.row_grid import grid_of
from paramgolf.quant.trained import FAMILIES, Trained
from paramgolf.recipes import Params

VOCAB = 1000
QUANTIZED = (*MATRICES, "embedding")


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
    if not trained.model.first_attention:
        hessians["qkv"][0] = hessians["o"][0] = 0
    return hessians


def packed(trained: Trained, params: Params, quantize: QuantizeConfig) -> tuple[bytes, dict, list]:
    """What package writes of a model: model.bin, its parts by name, and the matrices' reports."""
    hessians = correlated_hessians(trained)
    families = prepare(trained, hessians, quantize, torch.device("cpu"))
    tensors, reports = solve_model(trained, families, quantize)
    config = {**trained.config, "quantize": {"bits": stored_bits(tensors, reports)}}
    content, parts = encode(tensors, config, params.package.codec)
    return content, {part.name: part.bytes for part in parts}, reports


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
        {"spread": 0.25, "first_attention": False},
    ],
    ids=["base", "other", "coarse", "rounded", "mixed", "floor", "absmax", "unread"],
)
def test_bytes_are_what_package_writes(settings, base):
    changes = {"layers": 2, "width": 256, "mlp_hidden": 768, "rope_dims": 8}
    changes |= {"parallel_start": 1, "recurrence": (), "bigram_buckets": 512}
    changes |= {"bigram_dim": 64, "head_gate": "dense"}
    changes |= {"first_attention": settings.get("first_attention", True)}
    model = dataclasses.replace(base.model, **changes)
    others = {"spread", "first_attention"}
    clips = {key: value for key, value in settings.items() if key not in others}
    quantize = dataclasses.replace(base.quantize, **clips)
    trained = gaussian_model(model, settings["spread"])
    content, written, _ = packed(trained, base, quantize)
    rows = {*QUANTIZED, *TABLES, *PROJECTIONS} & trained.state.keys()
    deviations = {name: float(trained.state[name].std(-1).mean()) for name in rows}
    changes = {"model": model, "vocab_size": VOCAB, "quantize": quantize}
    expected = model_bytes(base, **changes, deviations=deviations)
    estimated = expected.parts()
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
    _, written, reports = packed(gaussian_model(model, 0.25), base, quantize)
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
    probabilities = entropy.integer_probabilities(clip / maximum, maximum)
    assert sum(probabilities) == pytest.approx(1)
    assert entropy.entropy_bits(probabilities) == pytest.approx(expected, abs=0.001)
    # the size law of pg#1394, which holds where the step is below about one deviation
    law = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(clip / maximum)
    assert law == pytest.approx(expected, abs=0.012)


def test_huffman_code_of_a_known_alphabet():
    """1/2, 1/4, 1/8, 1/8 take 1, 2, 3 and 3 bits; a probability of 0 takes no word."""
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


@pytest.mark.parametrize("bits", [None, 5])
def test_what_has_no_bits_is_expected_as_float16(bits, base):
    keys = ("gate_bits", "table_bits", "bigram_proj_bits", "embedding_bits")
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
