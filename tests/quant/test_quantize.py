"""The quantize stage: what it writes, its report, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from process_case import ALONE
from quantize_case import VOCAB, make_config, quantize_model, write_inputs

from paramgolf.codec.dequantize import dequantize
from paramgolf.errors import ParamGolfError
from paramgolf.quant.config import PERCENTILES
from paramgolf.quant.quantize import quantize
from paramgolf.quant.report import entropy_bits, summary
from paramgolf.quant.trained import TEXTS, load_trained


def test_everything_is_stored_once(trained, hessians):
    tensors, _ = quantize_model(trained, hessians, make_config())
    names = {name.partition(".")[0] for name in tensors}
    assert names == trained.state.keys()
    for name, tensor in trained.state.items():
        if name in ("q", "k", "v", "o", "up", "down", "embedding"):
            integers, scales = tensors[f"{name}.integers"], tensors[f"{name}.scales"]
            assert (integers.dtype, integers.shape) == (torch.int8, tensor.shape)
            assert (scales.dtype, scales.shape) == (torch.float16, tensor.shape[:-1])
            error = (dequantize(integers, scales) - tensor).norm() / tensor.norm()
            assert 0 < error < 0.35
        else:
            assert torch.equal(tensors[name], tensor.half())


@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_report_tells_what_a_plain_computation_tells(trained, hessians, method):
    tensors, reports = quantize_model(trained, hessians, make_config(method=method))
    found = {(report["name"], report["layer"]): report for report in reports}
    assert len(found) == len(reports) == 6 * 4 + 1
    weight = trained.state["k"][2].double()
    error = weight - dequantize(tensors["k.integers"], tensors["k.scales"])[2].double()
    hessian = hessians["qkv"][2].double()
    report = found["k", 2]
    assert report["shape"] == [16, 32]
    assert report["bits"] == 6
    assert report["relative_error"] == pytest.approx((error.norm() / weight.norm()).item(), 1e-4)
    expected = (error @ hessian @ error.T).trace() / (weight @ hessian @ weight.T).trace()
    assert report["output_error"] == pytest.approx(expected.item(), 1e-3)
    _, counts = np.unique(tensors["k.integers"][2].numpy(), return_counts=True)
    probabilities = counts / counts.sum()
    assert report["entropy_bits"] == pytest.approx(-(probabilities * np.log2(probabilities)).sum())
    assert report["damping"] == 0.01
    assert report["condition"] > 1
    assert found["embedding", 0]["bits"] == 8


def test_gptq_beats_rounding_in_every_matrix(trained, hessians):
    _, ours = quantize_model(trained, hessians, make_config())
    _, rounded = quantize_model(trained, hessians, make_config(method="nearest"))
    assert all(a["output_error"] < b["output_error"] for a, b in zip(ours, rounded, strict=True))


@pytest.mark.parametrize(("matrix_bits", "embedding_bits"), [(4, 8), (8, 5)])
def test_bits_belong_to_their_family(trained, hessians, matrix_bits, embedding_bits):
    config = make_config(
        matrix_bits=matrix_bits, embedding_bits=embedding_bits, grid="absmax", method="nearest"
    )
    tensors, _ = quantize_model(trained, hessians, config)
    assert tensors["up.integers"].abs().max() == 2 ** (matrix_bits - 1) - 1
    assert tensors["embedding.integers"].abs().max() == 2 ** (embedding_bits - 1) - 1


def test_clips_belong_to_their_family(trained, hessians):
    def scales(**changes):
        tensors, _ = quantize_model(trained, hessians, make_config(method="nearest", **changes))
        return {name: t.float().mean() for name, t in tensors.items() if name.endswith(".scales")}

    plain = scales()
    for key, names in {
        "attention_clip": {"q.scales", "k.scales", "v.scales", "o.scales"},
        "mlp_clip": {"up.scales", "down.scales"},
        "embedding_clip": {"embedding.scales"},
    }.items():
        changed = scales(**{key: 40.0})
        assert {name for name in plain if changed[name] != plain[name]} == names


def test_the_least_reach_holds_for_all_families(trained, hessians):
    config = make_config(grid="percentile", least_reach=30.0)
    tensors, _ = quantize_model(trained, hessians, config)
    for name in ("q", "up", "embedding"):
        width = config.embedding_bits if name == "embedding" else config.matrix_bits
        least = torch.tensor(30.0 / (2 ** (width - 1) - 1)).half()
        assert (tensors[f"{name}.scales"] == least).all()


def test_a_percentile_of_the_whole_matrix_is_the_one_of_least_error(trained, hessians):
    """Also matrix by matrix of a stack; the search by row is weighted, and lies elsewhere."""
    weights = trained.state["up"]
    weights[1, :, 3] *= 30.0
    config = make_config(grid="percentile", matrix_bits=4, percentile_by="matrix")

    def error(**changes):
        tensors, _ = quantize_model(trained, hessians, replace(config, **changes))
        found = dequantize(tensors["up.integers"], tensors["up.scales"])
        return (weights - found).square().mean((1, 2)), tensors["up.scales"].float() * 7

    best, reach = error()
    quantiles = torch.quantile(weights.abs(), torch.tensor(PERCENTILES), dim=-1)
    nearest = (reach - quantiles).abs().sum(-1).argmin(0)
    for layer, index in enumerate(nearest):
        torch.testing.assert_close(reach[layer], quantiles[index, layer], rtol=1e-3, atol=0)
    assert (best <= error(grid="absmax")[0] * (1 + 1e-6)).all()
    assert (best < error(percentile_by="row")[0]).any()


def test_rows_may_stay_as_gptq_makes_them(trained, hessians):
    """Where the clips are hard GPTQ loses on some rows."""
    kept, reports = quantize_model(trained, hessians, make_config(mlp_clip=1.0, row_fallback=False))
    better, ours = quantize_model(trained, hessians, make_config(mlp_clip=1.0))
    assert not torch.equal(kept["up.integers"], better["up.integers"])
    assert torch.equal(kept["up.scales"], better["up.scales"])
    pairs = zip(reports, ours, strict=True)
    assert all(b["error_trace"] <= a["error_trace"] * (1 + 1e-5) for a, b in pairs)


def test_layers_that_nothing_reads_are_left_out_of_the_means(trained, hessians):
    hessians["qkv"][0] = 0.0
    tensors, reports = quantize_model(trained, hessians, make_config())
    assert (tensors["q.integers"][0] == 0).all()
    unused = [r for r in reports if r["dead_columns"] == 32]
    assert {(r["name"], r["layer"]) for r in unused} == {("q", 0), ("k", 0), ("v", 0)}
    assert all(r["output_error"] == 0 and r["entropy_bits"] == 0 for r in unused)
    used = [r["relative_error"] for r in reports if r["dead_columns"] == 0]
    assert summary(reports)["mean_relative_error"] == pytest.approx(np.mean(used))
    read = [r for r in reports if r["dead_columns"] == 0]
    sizes = [np.prod(r["shape"]) for r in read]
    bits = np.average([r["entropy_bits"] for r in read], weights=sizes)
    assert summary(reports)["bits_per_weight"] == pytest.approx(bits)
    assert summary(unused) == {"bits_per_weight": 0.0, "mean_relative_error": 0.0}


def test_stage_writes_its_files_alike_twice(trained, hessians, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path, trained, hessians)
    quantize(make_config(), ALONE)
    folder = tmp_path / "artifacts/quantize"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == {"model.safetensors", "config.json", "report.json"}
    config = json.loads(files["config.json"])
    assert config["quantize"]["bits"]["down"] == 6
    assert config["model"] == json.loads(json.dumps(trained.config["model"]))
    metrics = json.loads((tmp_path / "artifacts/metrics/quantize.json").read_text())
    assert metrics.keys() == {
        "seconds",
        "adjust_seconds",
        "divergence",
        "bits_per_weight",
        "mean_relative_error",
    }
    report = json.loads(files["report.json"])
    sizes = [np.prod(r["shape"]) for r in report["tensors"]]
    bits = np.average([r["entropy_bits"] for r in report["tensors"]], weights=sizes)
    assert metrics["bits_per_weight"] == pytest.approx(bits)
    quantize(make_config(), ALONE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30, 1e37])
@pytest.mark.parametrize("low_rank", [0, 3])
def test_inputs_of_any_size_end_in_a_report(trained, hessians, size, low_rank):
    """A factor of the Hessians changes nothing but the errors that they weigh."""
    plain, before = quantize_model(trained, hessians, make_config())
    largest = max(h.max() for h in hessians.values())
    scaled = {name: (h / largest * size).float() for name, h in hessians.items()}
    config = make_config(low_rank_matrices=low_rank)
    tensors, reports = quantize_model(trained, scaled, config)
    json.dumps(reports, allow_nan=False)
    for report, expected in zip(reports, before, strict=True):
        if size > 1e-38:  # below, float32 has few digits left
            assert report["condition"] == pytest.approx(expected["condition"], rel=0.05)
        if size > 1e-38 and not report["low_rank"]:
            assert report["output_error"] == pytest.approx(expected["output_error"], rel=1e-3)
    if size > 1e-38:
        same = (tensors["up.integers"] == plain["up.integers"]).float().mean()
        assert same > 0.999


def test_entropy_is_in_bits_per_integer():
    assert entropy_bits(torch.zeros(10, dtype=torch.int8)) == 0
    assert entropy_bits(torch.tensor([-127, 127, 0, 1], dtype=torch.int8)) == 2


def test_weights_that_are_not_finite_are_named(trained, hessians):
    trained.state["up"][1, 0, 0] = float("nan")
    with pytest.raises(ParamGolfError, match=r"(?s)not finite.*where: up"):
        quantize_model(trained, hessians, make_config())


def test_vectors_too_large_for_float16_are_named(trained, hessians):
    trained.state["q_gain"][0, 0] = 1e6
    with pytest.raises(ParamGolfError, match=r"(?s)float16.*q_gain.*1000000"):
        quantize_model(trained, hessians, make_config())


def test_hessians_of_another_model_are_refused(trained, hessians):
    hessians["o"] = hessians["o"][:3]
    with pytest.raises(
        ParamGolfError, match=r"(?s)do not fit.*, o\n.*\(4, 32, 32\).*\(3, 32, 32\)"
    ):
        quantize_model(trained, hessians, make_config())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (TEXTS, torch.empty(0, 16, dtype=torch.int32), r"texts\n.*torch\.int32"),
        (TEXTS, torch.ones(2, 16), r"texts\n.*found: torch\.float32"),
        (TEXTS, torch.full((1, 16), VOCAB, dtype=torch.int32), r"another vocabulary.*below 64"),
        ("o", torch.ones(4, 32, 32).half(), r"o\n.*found: torch\.float16"),
        ("q.sensitivity", torch.ones(1, 32), r"q\.sensitivity\n.*\(4, 32\).*\(1, 32\)"),
    ],
)
def test_what_calibrate_would_not_write_is_refused_before_the_solve(
    trained, hessians, tmp_path, monkeypatch, name, tensor, message
):
    sensitivities = {f"{n}.sensitivity": torch.ones(trained.state[n].shape[:2]) for n in "qkvo"}
    write_inputs(tmp_path, trained, {**hessians, **sensitivities, name: tensor})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamGolfError, match=f"(?s){message}"):
        quantize(make_config(balance=0.8), ALONE)


def test_weights_of_another_type_are_refused(trained, hessians, tmp_path):
    trained.state["q_gain"] = trained.state["q_gain"].bfloat16()
    write_inputs(tmp_path, trained, hessians)
    with pytest.raises(ParamGolfError, match=r"(?s)another type.*q_gain\n.*found: torch\.bfloat16"):
        load_trained(tmp_path / "artifacts/train")


def test_weights_that_do_not_fit_their_configuration_are_named(trained, hessians, tmp_path):
    del trained.state["q_gain"]
    write_inputs(tmp_path, trained, hessians)
    with pytest.raises(ParamGolfError, match=r"(?s)expected: q_gain \(4, 4\).*found: nothing more"):
        load_trained(tmp_path / "artifacts/train")


def test_a_damaged_file_is_named(trained, hessians, tmp_path):
    write_inputs(tmp_path, trained, hessians)
    path = tmp_path / "artifacts/train/model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ParamGolfError, match=r"(?s)not a safetensors file.*model\.safetensors"):
        load_trained(tmp_path / "artifacts/train")


def test_a_model_of_a_masked_loss_is_judged_under_its_mask(
    trained, hessians, tmp_path, monkeypatch
):
    learned = replace(trained, config={**trained.config, "token_mask": True})
    allowed = torch.zeros(VOCAB + 1, VOCAB // 32, dtype=torch.int32)
    allowed[:, 0] = 1 << 7  # one token alone can come: nothing can diverge
    marks = torch.zeros(0, dtype=torch.int64)
    mask = {"mask.words": allowed, "mask.escape": torch.tensor(-1), "mask.marks": marks}
    found = []
    for name, one, more in (("plain", trained, {}), ("masked", learned, mask)):
        write_inputs(tmp_path / name, one, {**hessians, **more})
        monkeypatch.chdir(tmp_path / name)
        quantize(make_config(adjust_steps=2), ALONE)
        found.append(json.loads(Path("artifacts/metrics/quantize.json").read_text())["divergence"])
    assert found[0] > 1e-4
    assert found[1] == 0
    write_inputs(tmp_path / "lacks", learned, hessians)
    monkeypatch.chdir(tmp_path / "lacks")
    with pytest.raises(ParamGolfError, match=r"(?s)do not fit.*mask\.words"):
        quantize(make_config(), ALONE)
