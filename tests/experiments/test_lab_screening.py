"""Screenings: designs are orthogonal, effects come back, and intervals hold what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from lab_case import PLAN, SEED, SKIPS, FakeProcesses, plan_of, work, write_plan
from scipy.stats import t

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import Plan, contents, read_plan, screened
from paramgolf.experiments.lab.records import Records
from paramgolf.experiments.lab.screening import (
    ORDERS,
    design,
    fit,
    hadamard,
    order_of,
    pseudo_error,
    screen_power,
)
from paramgolf.experiments.lab.show import markdown
from paramgolf.experiments.lab.stages import StageError
from paramgolf.experiments.lab.summary import as_json, rows, summarize
from paramgolf.files import write_json
from paramgolf.report.lab import render_lab_page

FACTORS = [
    {"name": "no skips", "changes": ["model.skips=none"], "predicted": -0.005, "reason": "why not"},
    {"name": "higher end", "changes": ["train.min_lr=0.5", "train.warmdown=0.9"]},
    {"name": "slower", "changes": ["train.matrix_lr=0.01"]},
]


@pytest.mark.parametrize("order", ORDERS)
def test_designs_are_orthogonal_and_balanced_and_begin_with_the_recipe(order):
    matrix = hadamard(order)
    assert np.array_equal(np.abs(matrix), np.ones((order, order)))
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))
    columns = design(order)
    assert columns.shape == (order, order - 1)
    assert not columns[0].any()
    assert (columns.sum(axis=0) == order // 2).all()


@pytest.mark.parametrize(
    ("factors", "order"), [(1, 4), (3, 4), (4, 8), (13, 16), (15, 16), (31, 32)]
)
def test_the_smallest_design_is_taken_that_has_a_column_a_factor(factors, order):
    assert order_of(factors) == order
    assert order_of(factors, least=17) == max(order, 20)


def made_up(factors: int, seeds: int = 1, noise: float = 0.0, chance: int = 0):
    """Return what is on in each run, the factors' effects, and scores of runs that they add to."""
    generator = np.random.default_rng(chance)
    names = [f"f{i}" for i in range(factors)]
    effects = dict(zip(names, generator.normal(0, 0.003, factors), strict=True))
    on = {
        f"screen {run}": [name for name, is_on in zip(names, row, strict=False) if is_on]
        for run, row in enumerate(design(order_of(factors)))
    }
    scores = {
        (run, seed): 1.1 + 0.01 * seed + sum(effects[name] for name in of_run)
        for run, of_run in on.items()
        for seed in range(seeds)
    }
    scores = {run: score + noise * generator.normal() for run, score in scores.items()}
    return on, effects, scores


@pytest.mark.parametrize(
    ("factors", "seeds", "missing"), [(15, 1, 0), (14, 1, 1), (8, 1, 2), (7, 2, 0), (11, 2, 1)]
)
def test_effects_that_add_come_back(factors, seeds, missing):
    on, effects, scores = made_up(factors, seeds)
    kept = dict([*scores.items()][missing:])
    found = fit(kept, on, [*effects]).effects
    assert {name: effect.mean for name, effect in found.items()} == pytest.approx(effects)
    assert {effect.n for effect in found.values()} == {len(scores) - missing}


def test_an_effect_that_the_runs_do_not_determine_is_left_out():
    on, effects, scores = made_up(3)
    assert fit({}, on, [*effects], assumed=0.001).effects == {}
    assert fit(dict([*scores.items()][:3]), on, [*effects], assumed=0.001).effects == {}
    without = {run: score for run, score in scores.items() if "f0" not in on[run[0]]}
    assert fit(without, on, [*effects], assumed=0.001).effects == {}
    # with neither, with both, with the second, with the first
    on, effects, scores = made_up(2)
    two = {run: score for run, score in scores.items() if run[0] in ("screen 0", "screen 3")}
    (told,) = fit(two, on, [*effects], assumed=0.001).effects.items()
    assert (told[0], told[1].mean) == ("f0", pytest.approx(effects["f0"]))


def test_the_pseudo_standard_error_is_that_of_lenth():
    # s0 = 1.5 * 2 = 3; below 7.5 there are six, whose median is 2
    assert pseudo_error(np.array([1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 30.0])) == 3.0
    assert pseudo_error(np.zeros(3)) == 0.0


def test_a_complete_design_with_few_degrees_has_an_interval_by_all_its_contrasts():
    on, effects, scores = made_up(6, noise=0.001)
    found = fit(scores, on, [*effects], assumed=9.0)
    columns = design(8)
    values = np.array([*scores.values()])
    contrasts = [values[column].mean() - values[~column].mean() for column in columns.T]
    reach = t.ppf(0.975, 7 / 3) * pseudo_error(np.array(contrasts))
    for effect, contrast in zip(found.effects.values(), contrasts, strict=False):
        assert effect.mean == pytest.approx(contrast)
        assert (effect.low, effect.high) == pytest.approx((contrast - reach, contrast + reach))
    assert found.scatter.by == (
        "Lenth's pseudo standard error of 7 contrasts (degrees of freedom: 2.33)"
    )


def test_an_interval_is_by_what_is_assumed_where_runs_are_missing():
    on, effects, scores = made_up(6, noise=0.001)
    del scores["screen 3", 0]
    found = fit(scores, on, [*effects], assumed=0.001)
    assert found.scatter.by == "the assumed deviation of one run, 0.001"
    # the lost run makes the variance of an effect 1/2 + (1/4)^2 / (1 - 7/8) of a run's, not 1/2
    reach = [effect.high - effect.mean for effect in found.effects.values()]
    assert reach == pytest.approx([1.959964 * 0.001] * 6)
    assert {effect.low for effect in fit(scores, on, [*effects]).effects.values()} == {None}


@pytest.mark.parametrize(("factors", "chances"), [(3, 1000), (11, 150)])
def test_intervals_by_residuals_hold_the_effect_in_95_percent_of_cases(factors, chances):
    held = []
    for chance in range(chances):
        on, effects, scores = made_up(factors, seeds=2, noise=0.001, chance=chance)
        found = fit(scores, on, [*effects])
        assert found.scatter.freedom == factors
        held += [one.low < effects[name] < one.high for name, one in found.effects.items()]
    assert 0.93 < np.mean(held) < 0.97


def test_what_a_screening_shows_is_shown_as_often_as_it_says():
    told = screen_power(12, 11, 2, 0.001, 0)
    assert (told.runs, f"{told.smallest:.4f}") == (24, "0.0013")
    shown = []
    for chance in range(300):
        on, effects, scores = made_up(11, seeds=2, noise=0.001, chance=chance)
        scores = {
            run: score + told.smallest * ("f0" in on[run[0]]) - effects["f0"] * ("f0" in on[run[0]])
            for run, score in scores.items()
        }
        shown.append(fit(scores, on, [*effects]).effects["f0"].low > 0)
    assert 0.74 < np.mean(shown) < 0.86


def screening_of(folder, **changes) -> Plan:
    return screened(plan_of(folder, variants=[], **{"factors": FACTORS, "seeds": [1]} | changes))


def test_runs_have_the_changes_of_the_factors_that_are_on(tokens):
    plan = screening_of(tokens)
    assert [one.name for one in plan.variants] == [f"screen 0{i}" for i in range(1, 5)]
    changes = {factor["name"]: factor["changes"] for factor in FACTORS}
    assert plan.variants[0].factors == ()
    for run in plan.variants:
        assert run.changes == tuple(c for name in run.factors for c in changes[name])
    first, *others = contents(plan).values()
    assert first["model"]["skips"] == "gated"
    assert [one["model"]["skips"] for one in others].count("none") == 2


def test_factors_that_change_nothing_or_cannot_be_come_in_one_message(tokens):
    factors = [
        {"name": "as it is", "changes": ["model.skips=gated"]},
        {"name": "typo", "changes": ["model.layres=3"]},
        FACTORS[2],
    ]
    with pytest.raises(ParamGolfError) as caught:
        contents(screening_of(tokens, factors=factors))
    message = str(caught.value)
    assert "factor `as it is` changes nothing" in message
    assert "factor `typo`: a fault in the parameters\n  - `model.layres` is not" in message
    assert "slower" not in message
    with pytest.raises(ParamGolfError, match="factor `slower` changes nothing"):
        contents(screening_of(tokens), ["train.matrix_lr=0.02"])


def test_a_plan_with_factors_takes_the_rest_from_one_with_variants(tmp_path):
    text = {"tokens": "x"}
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(PLAN | {"common": [], "text": text}))
    above = {"from": "below", "name": "above", "seconds": 3, "factors": FACTORS}
    (tmp_path / "above.yaml").write_text(yaml.safe_dump(above))
    found = read_plan(tmp_path / "above.yaml")
    assert (found.seconds, found.tokens, len(found.variants)) == (3.0, None, 4)
    (tmp_path / "top.yaml").write_text("from: above\nname: top\nvariants: [{name: a}]\n")
    assert read_plan(tmp_path / "top.yaml").factors == ()


def test_a_screening_is_run_and_its_effects_are_told(tokens, tmp_path):
    processes = FakeProcesses()
    content = work(screening_of(tokens), tmp_path, processes)
    assert len(processes.calls) == 4
    found = summarize(content, "tiny")
    effects = found.screening.score.effects
    assert {name: effect.mean for name, effect in effects.items()} == pytest.approx(
        {"no skips": -SKIPS, "higher end": 0, "slower": 0}
    )
    page = (tmp_path / "results.md").read_text()
    assert page == markdown(found)
    assert "| run | seeds | trained | factors that are on |" in page
    assert "| screen 01 | 1 | 1.2020 |  |" in page
    # runs without any noise: contrasts of 0 are not taken for a measure of it
    assert "| 1 no skips | -0.0100 ± 0.0018 | -0.0050 | +0.00 |" in page
    assert "| 2 higher end | +0.0000 ± 0.0018 | - |" in page.replace("-0.0000", "+0.0000")
    assert "intervals of effects are by the assumed deviation of one run, 0.0009" in page
    assert "- no skips: why not" in page
    assert "minus screen 01" not in page
    figures = {row["figure"]: row for row in rows(found)}
    assert figures["tiny, no skips: effect on trained"]["value"] == pytest.approx(-SKIPS)
    assert figures["tiny, screen 02: trained"]["reference"] is None
    work(screening_of(tokens), tmp_path, processes)
    assert len(processes.calls) == 4


def test_unused_columns_tell_how_runs_scatter(tokens, tmp_path):
    processes = FakeProcesses()
    found = summarize(work(screening_of(tokens, runs=5), tmp_path, processes), "tiny").screening
    assert len(processes.calls) == 8
    assert found.score.scatter.by == "the residuals (degrees of freedom: 4)"
    assert found.score.effects["no skips"].mean == pytest.approx(-SKIPS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plan: plan["variants"][1].update(factors=["x"]), "variants.1.factors` must be of"),
        (lambda plan: plan["variants"].pop(), "variants` must be as many as a design has runs"),
        (lambda plan: plan["factors"][0].pop("reason"), "factors.0.reason` is missing"),
    ],
)
def test_results_with_another_design_are_refused(tokens, tmp_path, change, named):
    content = work(screening_of(tokens), tmp_path, FakeProcesses())
    change(content["plans"]["tiny"]["plan"])
    write_json(tmp_path / "results.json", content)
    with pytest.raises(ParamGolfError, match=named):
        Records(tmp_path / "results.json")


def test_seeds_are_levels_of_their_own(tokens, tmp_path):
    content = work(screening_of(tokens, seeds=[1, 2, 2]), tmp_path, FakeProcesses())
    found = summarize(content, "tiny").screening
    assert SEED > 0
    assert found.score.effects["no skips"].mean == pytest.approx(-SKIPS)
    assert (found.runs, found.power.runs) == (8, 8)


def test_effects_that_wait_for_runs_are_named(tokens, tmp_path):
    def before(stage, params):
        if params["train"]["matrix_lr"] == 0.01:
            raise StageError(stage, "out of luck", killed=False)

    content = work(screening_of(tokens), tmp_path, FakeProcesses(before))
    found = summarize(content, "tiny")
    page = markdown(found)
    assert "effects are of 2 of 4 runs" in page
    assert "effects that these runs cannot tell yet: no skips; higher end; slower" in page
    assert "| 3 slower | - | - | - |" in page
    assert "all 4 runs show an effect of" in page
    shown = as_json(found)["effects"]["factors"]
    assert [(one["name"], one["score"]) for one in shown][2] == ("slower", None)
    assert "Effects</h2>" not in render_lab_page(found)


def test_the_page_shows_effects(tokens, tmp_path):
    page = render_lab_page(summarize(work(screening_of(tokens), tmp_path, FakeProcesses()), "tiny"))
    for text in ("Effects</h2>", "3 factors</small>", "Trained: no skips −0.0100", "why not"):
        assert text in page, text
    assert "Differences from" not in page


def test_the_command_shows_a_screening_and_refuses_a_part_of_it(tokens, tmp_path, command):
    path, results = tmp_path / "plan.yaml", tmp_path / "results.json"
    write_plan(path, tokens, variants=[], seeds=[1], factors=FACTORS)
    work(screening_of(tokens), tmp_path, FakeProcesses())
    words = "lab", str(path), "--results", str(results)
    shown = json.loads(command(*words, "--show", "--json"))
    assert shown["effects"]["factors"][0]["score"]["mean"] == pytest.approx(-SKIPS)
    assert shown["variants"][0]["factors"] == []
    assert "1 no skips" in command(*words, "--show")
    refusal = "a plan with factors is run and shown whole"
    assert refusal in command(*words, "--only", "screen 02", code=2)
    told = command(*words, "--dry-run")
    assert "left to run: 0 runs" in told
    assert "all 4 runs show an effect of" in told
    ablated = yaml.safe_load(command(*words, "--ablate", "pr1493"))
    assert ablated["tokens"] == PLAN["tokens"]
    assert "factors" not in ablated
