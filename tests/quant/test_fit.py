"""Auto-fit: just below the limit on real bytes, its record, and what cannot fit refused."""

import dataclasses
import json
import math

import pytest
import torch
from process_case import ALONE
from quantize_case import CPU, make_config, make_hessians, make_trained, write_inputs

from paramgolf.codec.byte_ledger import Part
from paramgolf.codec.config import PackageConfig
from paramgolf.errors import ParamGolfError
from paramgolf.packing.code import frozen_params, pack_code
from paramgolf.packing.package import package
from paramgolf.quant.fit import BITS_PER_DOUBLING, SLACK_BYTES, artifact_parts, fit
from paramgolf.quant.quantize import prepare, quantize, solve_model
from paramgolf.recipes import check, compose


@pytest.fixture
def trained(tiny_model):
    return make_trained(tiny_model(width=64, mlp_hidden=256))


@pytest.fixture
def case(trained):
    families = prepare(trained, make_hessians(trained), make_config(), CPU)
    measure = artifact_parts(trained, make_config())
    return lambda config: solve_model(trained, families, config), measure


def bytes_of(parts):
    return sum(part.bytes for part in parts)


@pytest.mark.parametrize("change", [-30_000, -3_000, 0, 1_500, 15_000])
def test_it_ends_just_below_the_limit(case, change):
    solve, measure = case
    start = bytes_of(measure(solve(make_config())))
    config = make_config(fit_bytes=start + change)
    solution, record = fit(config, solve, measure)
    assert bytes_of(measure(solution)) == record["bytes_total"]
    assert 0 <= config.fit_bytes - record["bytes_total"] <= SLACK_BYTES
    assert (record["multiplier"] < 1) == (change == 15_000)
    if change in (0, 1_500):
        assert record["multiplier"] == 1
        assert len(record["trials"]) == 1
    assert len(record["trials"]) <= 4
    assert record["bytes_total"] in [t["bytes_total"] for t in record["trials"]]


@pytest.mark.parametrize(("slope", "trials"), [(4.29e6, 2), (4.38e6, 3), (4.1e6, 3)])
def test_few_compressions_find_the_limit(slope, trials):
    """The bytes are those of a network of 36 M weights, by clips."""
    weights = torch.empty(36_000_000, device="meta")

    def solve(config):
        place = math.log2(config.attention_clip / make_config().attention_clip)
        return {"w.integers": weights, "place": torch.tensor(place)}, []

    def measure(solution):
        total = 16_252_255 - slope * float(solution[0]["place"])
        return [Part("model", "integers", round(total), 0, None, {})]

    _, record = fit(make_config(fit_bytes=15_998_000), solve, measure)
    assert 0 <= 15_998_000 - record["bytes_total"] <= SLACK_BYTES
    assert len(record["trials"]) == trials


def test_the_coarsest_that_does_not_fit_is_refused(case):
    solve, measure = case
    with pytest.raises(ParamGolfError, match=r"(?s)fit_bytes.*[\d,]+ bytes too many; code [\d,]+"):
        fit(make_config(fit_bytes=30_000), solve, measure)


def test_a_search_that_no_clip_ends_is_refused_by_its_nearest_trial():
    sizes = iter([900, 700, *[800] * 6])
    with pytest.raises(ParamGolfError, match="found: 200 bytes too many; model 700"):
        fit(
            make_config(fit_bytes=500),
            lambda _: ({"w.integers": torch.empty(10**6, device="meta")}, []),
            lambda _: [Part("model", "integers", next(sizes), 0, None, {})],
        )


def test_a_limit_beyond_the_finest_takes_the_finest(case, capsys):
    solve, measure = case
    _, record = fit(make_config(fit_bytes=10**7), solve, measure)
    assert record["multiplier"] == 0.25
    assert "leave bytes unused" in capsys.readouterr().err


def test_clips_move_together():
    config = make_config().scaled(1.0)
    assert (config.attention_clip, config.mlp_clip, config.embedding_clip) == (25.7, 25.7, 40.0)
    assert dataclasses.replace(config, attention_clip=1.0, mlp_clip=1.0, embedding_clip=1.0) == (
        make_config(attention_clip=1.0, mlp_clip=1.0, embedding_clip=1.0)
    )


def test_bytes_follow_the_clips(case, trained):
    solve, measure = case
    sizes = [bytes_of(measure(solve(make_config().scaled(place)))) for place in (-0.5, 0.0, 0.5)]
    assert sizes[0] > sizes[1] > sizes[2]
    weights = sum(trained.state[n].numel() for n in ("q", "k", "v", "o", "up", "down", "embedding"))
    assert sizes[0] - sizes[2] == pytest.approx(BITS_PER_DOUBLING * weights / 8, rel=0.15)


@pytest.mark.parametrize("adjust_steps", [0, 3])
def test_package_finds_the_bytes_that_the_fit_promised(
    trained, sample, tmp_path, monkeypatch, adjust_steps
):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path, trained, make_hessians(trained))
    limit = 120_000
    sections = sample.train, sample.eval_sliding, sample.eval_ttt
    code = pack_code(frozen_params(trained.config["model"], *sections)).part.bytes
    config = make_config(fit_bytes=limit, fit_code_bytes=code, adjust_steps=adjust_steps)
    quantize(config, ALONE)
    room = limit + SLACK_BYTES
    options = PackageConfig(codec="brotli", limit_bytes=room, prune=False)
    package(options, *sections)
    record = json.loads((tmp_path / "artifacts/quantize/report.json").read_text())["fit"]
    ledger = json.loads((tmp_path / "artifacts/package/package.json").read_text())
    assert ledger["fits"]
    assert ledger["bytes_total"] == record["bytes_total"]
    assert ledger["headroom_bytes"] <= 2 * SLACK_BYTES
    if not adjust_steps:  # what learns afterwards may take other bytes than the trial did
        assert record["bytes_total"] in [trial["bytes_total"] for trial in record["trials"]]
        assert record["bytes_total"] <= limit


def test_the_fit_must_measure_what_package_packs():
    content = compose("sample")
    content["quantize"] |= {"fit_bytes": 17_000_000, "fit_codec": "lzma"}
    with pytest.raises(ParamGolfError, match=r"(?s)fit_codec.*package\.codec.*fit_bytes"):
        check(content, where="test")
    content["quantize"] |= {"fit_bytes": 15_000_000, "fit_codec": "brotli"}
    check(content, where="test")
    content["quantize"]["grid"] = "absmax"
    with pytest.raises(ParamGolfError, match="needs `grid` sdclip"):
        check(content, where="test")
