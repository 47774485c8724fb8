"""The laboratory at work: on stand-ins for stages and GPUs, and once on stages as they are."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from lab_case import PLAN, STAGES, FakeProcesses, plan_of, session_of, work, write_plan

from paramgolf.clock import Clock
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.records import Records, Run
from paramgolf.experiments.lab.run import Bench, only_one, slots_of
from paramgolf.experiments.lab.schedule import Job, Schedule, ordered
from paramgolf.experiments.lab.session import Session
from paramgolf.experiments.lab.show import tables
from paramgolf.experiments.lab.stages import StageError, StoppedError
from paramgolf.experiments.lab.summary import rows, summarize
from paramgolf.experiments.lab.tokens import Made, Tokens
from paramgolf.files import write_json
from paramgolf.mirror import Mirror

PACKED = ["train", "calibrate", "quantize", "package", "packed"]


def test_seeds_are_paired_in_alternating_order():
    runs = ordered(["a", "b"], [7, 8, 7])
    assert runs == [("a", 7, 0), ("b", 7, 0), ("b", 8, 0), ("a", 8, 0), ("a", 7, 1), ("b", 7, 1)]


def test_a_plan_is_run_and_compared(tokens, tmp_path):
    processes = FakeProcesses()
    content = work(plan_of(tokens, goal="packed"), tmp_path, processes)
    runs = [(stage, which) for stage, which, _ in processes.calls if stage == "train"]
    order = ["gated 1", "none 1", "none 2", "gated 2"]
    assert runs == [("train", which) for which in order]
    found = summarize(content, "tiny")
    base, other = found.variants
    assert base.mean("trained") == pytest.approx(1.203)
    assert other.differences["trained"].mean == pytest.approx(-0.01)
    assert other.differences["packed"].replicates == "other seeds"
    assert base.mean("tokens") == 2048
    assert base.mean("passes") == pytest.approx(2048 / 20_000)
    page = (tmp_path / "results.md").read_text()
    assert "| no skips | trained | -0.0100 ± 0.0000 | 2 |" in page
    rows = {row["figure"]: row for row in content["rows"]}
    row = rows["tiny, no skips: trained"]
    assert (row["value"], row["reference"]) == (pytest.approx(1.193), pytest.approx(1.203))
    assert content["device"] == "made up"


def test_a_mean_of_fewer_runs_says_so(tokens, tmp_path):
    content = work(plan_of(tokens, goal="packed"), tmp_path, FakeProcesses())
    lost = content["plans"]["tiny"]["runs"][-1]
    del content["stages"][lost["keys"]["packed"]]
    scores, differences, _ = tables(summarize(content, "tiny"))
    cells = {row[0]: row[-1] for row in scores.rows}
    variant = lost["variant"]
    assert [name for name, cell in cells.items() if cell.endswith(" (1)")] == [variant]
    assert [row[1:4:2] for row in differences.rows] == [("trained", "2"), ("packed", "1")]
    figure = next(
        f for f in rows(summarize(content, "tiny")) if f["figure"] == "tiny, no skips: packed"
    )
    pair = summarize(content, "tiny").variants[1].differences["packed"]
    assert figure["value"] - figure["reference"] == pytest.approx(pair.mean)


def test_a_prediction_stands_beside_the_score_that_is_judged(tokens, tmp_path):
    first, other = PLAN["variants"]
    plan = plan_of(tokens, goal="packed", variants=[first, other | {"predicted": -0.01}])
    _, differences, _ = tables(summarize(work(plan, tmp_path, FakeProcesses()), "tiny"))
    ends = [(row[1], row[-1]) for row in differences.rows]
    assert ends == [("trained", ""), ("packed", "-0.0100")]


def test_what_is_done_is_not_run_again(tokens, tmp_path):
    work(plan_of(tokens), tmp_path, FakeProcesses())
    again = FakeProcesses()
    work(plan_of(tokens), tmp_path, again)
    assert again.calls == []
    wider = plan_of(tokens, seeds=[1, 2, 3], goal="packed")
    work(wider, tmp_path, again)
    assert Counter(stage for stage, *_ in again.calls) == {"train": 2} | dict.fromkeys(
        PACKED[1:], 6
    )


def test_a_changed_parameter_is_another_run_and_a_changed_evaluation_is_no_training(
    tokens, tmp_path
):
    variants = [{"name": "base"}]
    work(plan_of(tokens, seeds=[1], variants=variants, goal="packed"), tmp_path, FakeProcesses())
    for change, expected in (
        ("quantize.matrix_bits=5", PACKED[1:]),  # Hessians do not stay
        ("train.min_lr=0.5", PACKED),
        ("eval_ttt.lr=0.5", ["package", "packed"]),  # it is in train_gpt.py
        ("runtime.workers=3", []),
    ):
        processes = FakeProcesses()
        variants = [{"name": "base", "changes": [change]}]
        work(plan_of(tokens, seeds=[1], variants=variants, goal="packed"), tmp_path, processes)
        assert [stage for stage, *_ in processes.calls] == expected, change


def test_results_alone_are_enough_and_outputs_are_made_again_where_they_are_needed(
    tokens, tmp_path
):
    """As on another machine, to which the results were taken."""
    variants = [{"name": "base"}]
    plan = plan_of(tokens, seeds=[1], variants=variants)
    work(plan, tmp_path / "here", FakeProcesses())
    (tmp_path / "there").mkdir()
    results = (tmp_path / "here/results.json").read_text()
    (tmp_path / "there/results.json").write_text(results)
    processes = FakeProcesses()
    work(plan, tmp_path / "there", processes)
    assert processes.calls == []
    packed = plan_of(tokens, seeds=[1], variants=variants, goal="packed")
    work(packed, tmp_path / "there", processes)
    assert [stage for stage, *_ in processes.calls] == PACKED


def test_results_of_two_machines_are_put_together(tokens, tmp_path):
    work(plan_of(tokens, seeds=[1]), tmp_path / "here", FakeProcesses())
    work(plan_of(tokens, seeds=[2]), tmp_path / "there", FakeProcesses())
    records = Records(tmp_path / "here/results.json")
    records.take(tmp_path / "there/results.json")
    path = tmp_path / "both/results.json"
    write_json(path, records.content)
    processes = FakeProcesses()
    content = work(plan_of(tokens), path.parent, processes)
    assert processes.calls == []
    assert summarize(content, "tiny").variants[1].differences["trained"].n == 2


def test_a_file_that_holds_no_results_is_refused(tmp_path):
    for content in ({}, {"schema": 1}, {"schema": 1, "plans": [], "stages": {}, "failures": {}}):
        write_json(tmp_path / "results.json", content)
        with pytest.raises(ParamGolfError, match="not results of the laboratory"):
            Records(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("part", "key", "value", "named"),
    [
        ("stages", "", 5, "must be a mapping"),
        ("stages", "wall_seconds", None, "wall_seconds` must be a number"),
        ("stages", "metrics", {}, "metrics.tokens` is missing"),
        ("stages", "metrics", {"val_bpb": "1.2"}, "metrics.val_bpb` must be a number"),
        ("failures", "", {}, "killed` is missing"),
        ("plans", "texts", {}, "texts.base` is missing"),
        ("plans", "runs", [{}], "runs.0.keys` is missing"),
        ("plans", "plan", {"name": "tiny"}, "plan.variants` is missing"),
    ],
)
def test_results_of_another_form_are_refused(tokens, tmp_path, part, key, value, named):
    content = work(plan_of(tokens), tmp_path, FakeProcesses())
    one = next(iter(content[part]), "x")
    content[part][one] = content[part][one] | {key: value} if key else value
    write_json(tmp_path / "results.json", content)
    with pytest.raises(ParamGolfError, match=rf"in the results(.|\n)*`{part}.{one}.*{named}"):
        Records(tmp_path / "results.json")


@pytest.mark.parametrize("name", ["out.md", "tiny.html", "out"])
def test_results_whose_name_is_that_of_their_page_are_refused(tokens, tmp_path, command, name):
    path = tmp_path / "plan.json"
    write_plan(path, tokens)
    words = "lab", str(path), "--dry-run", "--results", str(tmp_path / name)
    assert "results have a name that ends in .json" in command(*words, code=2)


def test_results_that_say_nothing_of_gpus_and_energy_are_gone_on_with(tokens, tmp_path):
    content = work(plan_of(tokens, seeds=[1]), tmp_path, FakeProcesses())
    for figures in content["stages"].values():
        for key in {*figures} - {"stage", "wall_seconds", "metrics"}:
            del figures[key]
    write_json(tmp_path / "results.json", content)
    processes = FakeProcesses()
    content = work(plan_of(tokens), tmp_path, processes)
    assert [which for _, which, _ in processes.calls] == ["none 2", "gated 2"]
    assert summarize(content, "tiny").variants[1].differences["trained"].n == 2


def test_one_variant_is_run_and_the_results_keep_all(tokens, tmp_path, command):
    names = "base", "no skips", "five"
    variants = [*PLAN["variants"], {"name": "five", "changes": ["train.min_lr=0.5"]}]
    plan, processes = plan_of(tokens, variants=variants), FakeProcesses()
    work(plan, tmp_path, processes)
    more = plan_of(tokens, variants=variants, seeds=[1, 2, 3])
    session = session_of(more, tmp_path, processes, only=["five"])
    assert session.forecast().cost.runs == 2
    session.work(command="")
    found = summarize(Records(tmp_path / "results.json").content, "tiny").variants
    runs = {
        one.name: sum("trained" in figures for figures in one.figures.values()) for one in found
    }
    assert runs == dict(zip(names, (3, 2, 3), strict=True))
    path = tmp_path / "plan.json"
    write_plan(path, tokens, variants=variants)
    words = "lab", str(path), "--results", str(tmp_path / "results.json"), "--show", "--json"
    for only, expected in (((), names), (("--only", "five"), ("base", "five"))):
        shown = json.loads(command(*words, *only))
        assert tuple(variant["name"] for variant in shown["variants"]) == expected
    assert "there is no such variant" in command(*words, "--only", "six", code=2)


def test_a_variant_that_is_not_run_keeps_its_figures_where_its_tokens_are_not(
    tokens, tmp_path, monkeypatch
):
    """As on a fresh machine, to which the results were taken."""
    variants = [{"name": "base"}, {"name": "few", "changes": ["tokenizer.vocab_size=400"]}]
    text = {"files": ["a.jsonl"], "validation_files": ["b.jsonl"]}
    plan, here = plan_of(tokens, text=text, variants=variants), {300: "base", 400: "few"}

    def find(self, content):
        size = content["tokenizer"]["vocab_size"]
        return Made(tokens, here[size], 20_000) if size in here else None

    monkeypatch.setattr(Tokens, "find", find)
    work(plan, tmp_path, FakeProcesses())
    del here[400]
    session = session_of(plan, tmp_path, FakeProcesses(), only=["base"])
    session.work(command="")
    found = summarize(Records(tmp_path / "results.json").content, "tiny").variants
    assert [one.furthest for one in found] == ["trained", "trained"]


def session_of_code(
    code: str, tokens: Path, folder: Path, processes: FakeProcesses, goal: str, **how: bool
) -> Session:
    """Return a session of one run, whose stages have changed all together."""
    changed = {n: dataclasses.replace(s, code=code + s.code) for n, s in STAGES.items()}
    bench = Bench(folder, ["0"], Records(folder / "results.json"), changed, processes)
    plan = plan_of(tokens, seeds=[1], variants=[{"name": "base"}], goal=goal)
    return Session(plan, (), bench, **how)


def work_by_code(
    code: str, tokens: Path, folder: Path, goal: str, **how: bool
) -> tuple[list[str], dict[str, dict], dict[str, str]]:
    """Run it; return the stages that ran, all figures, and the run's keys."""
    processes = FakeProcesses()
    session_of_code(code, tokens, folder, processes, goal, **how).work(command="")
    content = Records(folder / "results.json").content
    keys = content["plans"]["tiny"]["runs"][0]["keys"]
    return [stage for stage, *_ in processes.calls], content["stages"], keys


def test_figures_count_for_the_code_that_made_them_unless_any_code_will_do(tokens, tmp_path):
    assert work_by_code("old", tokens, tmp_path, "packed")[0] == PACKED
    assert work_by_code("new", tokens, tmp_path, "packed", any_code=True)[0] == []
    session = session_of_code("new", tokens, tmp_path, FakeProcesses(), "packed")
    assert session.forecast().cost.runs == 1
    assert work_by_code("new", tokens, tmp_path, "packed")[0] == PACKED


def test_a_score_of_what_other_code_made_is_none_of_what_this_code_makes(tokens, tmp_path):
    _, _, old = work_by_code("old", tokens, tmp_path, "packed")
    ran, _, mixed = work_by_code("new", tokens, tmp_path, "scored", any_code=True)
    assert ran == ["eval_sliding"]
    assert {**mixed, **old} == mixed
    assert work_by_code("new", tokens, tmp_path, "scored", any_code=True)[0] == []
    ran, figures, new = work_by_code("new", tokens, tmp_path, "scored")
    assert ran == [*PACKED, "eval_sliding"]
    assert not {*new.values()} & {*mixed.values()}
    assert {*new.values()} | {*mixed.values()} == {*figures}


def test_what_must_be_made_again_is_entered_as_made_by_this_code(tokens, tmp_path):
    """As on another machine, to which the results were taken without what was trained."""
    _, figures, old = work_by_code("old", tokens, tmp_path, "packed")
    shutil.rmtree(tmp_path / "stages")
    ran, after, new = work_by_code("new", tokens, tmp_path, "scored", any_code=True)
    assert ran == [*PACKED, "eval_sliding"]
    assert {key: after[key] for key in old.values()} == figures
    assert not {*new.values()} & {*old.values()}
    assert work_by_code("new", tokens, tmp_path, "scored")[0] == []


def test_a_run_of_any_code_is_of_one_training(tokens, tmp_path):
    _, _, first = work_by_code("first", tokens, tmp_path, "packed")
    work_by_code("second", tokens, tmp_path, "trained")
    ran, _, keys = work_by_code("third", tokens, tmp_path, "packed", any_code=True)
    assert (ran, keys) == ([], first)


def test_variants_of_the_quantizer_share_a_training(tokens, tmp_path):
    variants = [{"name": "base"}, {"name": "five", "changes": ["quantize.matrix_bits=5"]}]
    plan = plan_of(tokens, variants=variants, goal="packed")
    processes = FakeProcesses()
    content = work(plan, tmp_path, processes, gpus=2)
    counts = Counter(stage for stage, *_ in processes.calls)
    assert counts == {"train": 2, "calibrate": 2, "quantize": 4, "package": 4, "packed": 4}
    found = summarize(content, "tiny")
    assert found.variants[1].differences["trained"].mean == 0
    assert found.power.freedom == 1  # the trainings are those of one variant


@pytest.mark.parametrize("chance", range(5))
def test_variants_rotate_over_the_gpus_in_whatever_order_these_are_free(chance):
    generator, names = random.Random(chance), ["a", "b", "c", "d"]
    runs = [Run(*one, {"train": str(one)}, {}, {}, Path()) for one in ordered(names, [1, 2, 3, 4])]
    schedule = Schedule([Job(run, run.seed, ["train"]) for run in runs], ["0", "1", "2", "3"])
    for _ in range(4):
        for slot in generator.sample(schedule.slots, 4):
            schedule.take(slot, ()).busy = True
    assert {schedule.had[slot, name] for slot in schedule.slots for name in names} == {1}


def test_the_last_trainings_go_before_what_has_begun():
    runs = [
        Run("a", seed, 0, {"train": f"t{seed}", "packed": f"p{seed}"}, {}, {}, Path())
        for seed in range(4)
    ]
    begun, *new = jobs = [Job(run, run.seed, ["train", "packed"]) for run in runs]
    begun.begun, begun.left = True, ["packed"]
    schedule = Schedule(jobs, ["0", "1"])
    assert schedule.take("0", ()) is begun  # three trainings, two GPUs
    new[0].busy = True
    assert schedule.take("0", ()) is new[1]
    new[1].busy = new[2].busy = True
    assert schedule.take("0", ()) is begun


def test_a_plan_beside_another_takes_its_turn_on_the_same_gpus(tokens, tmp_path):
    processes = FakeProcesses()
    first = session_of(plan_of(tokens, seeds=[1]), tmp_path, processes, gpus=2)
    longer = plan_of(tokens, name="longer", tokens=4096, seeds=[1], goal="packed")
    second = Session(longer, (), first.bench)
    first.work(command="", beside=[second])
    content = Records(tmp_path / "results.json").content
    assert Counter(stage for stage, *_ in processes.calls)["train"] == 4
    assert [stage for stage, *_ in processes.calls[:3]] == ["train"] * 3
    for name, furthest in (("tiny", "trained"), ("longer", "packed")):
        found = summarize(content, name).variants
        assert [one.furthest for one in found] == [furthest] * 2


def test_all_gpus_work(tokens, tmp_path):
    together = threading.Barrier(2)
    processes = FakeProcesses(lambda *_: together.wait(20))
    work(plan_of(tokens), tmp_path, processes, gpus=2)
    assert Counter(gpu for _, _, gpu in processes.calls) == {"0": 2, "1": 2}


def test_a_gpu_trains_on_while_a_package_is_made(tokens, tmp_path):
    trained, packaging = [], threading.Event()

    def before(stage, params):
        if stage == "train":
            trained.append(params["train"]["seed"])
            if len(trained) == 2:
                packaging.set()
        if stage == "package":
            assert packaging.wait(20)

    variants = [{"name": "base"}]
    processes = FakeProcesses(before)
    work(plan_of(tokens, variants=variants, goal="packed"), tmp_path, processes)
    assert trained == [1, 2]
    # what has begun is scored before another training begins
    order = [(stage, which[-1]) for stage, which, _ in processes.calls]
    assert order.index(("packed", "1")) > order.index(("train", "2"))
    assert {gpu for stage, _, gpu in processes.calls if stage == "package"} == {""}  # sees none


def test_a_failed_variant_is_a_row_and_the_others_go_on(tokens, tmp_path):
    failing = [True]

    def before(stage, params):
        if params["model"]["skips"] == "none" and failing:
            raise StageError(stage, "CUDA out of memory", killed=params["train"]["seed"] == 2)

    plan = plan_of(tokens)
    content = work(plan, tmp_path, FakeProcesses(before))
    base, other = summarize(content, "tiny").variants
    assert (base.mean("trained"), other.mean("trained")) == (pytest.approx(1.203), None)
    assert other.failures == {(seed, 0): "train: CUDA out of memory" for seed in (1, 2)}
    assert (
        "no skips, seed 1, failed: train: CUDA out of memory"
        in (tmp_path / "results.md").read_text()
    )
    failing.clear()
    again = FakeProcesses(before)  # what was killed is run again, what failed by itself is not
    work(plan, tmp_path, again)
    assert [which for _, which, _ in again.calls] == ["none 2"]
    work(plan, tmp_path, again, retry=True)
    assert [which for _, which, _ in again.calls] == ["none 2", "none 1"]
    assert not summarize(work(plan, tmp_path, again), "tiny").variants[1].failures


def test_a_fault_of_ours_stops_all_and_is_not_hidden(tokens, tmp_path):
    def before(stage, params):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work(plan_of(tokens), tmp_path, FakeProcesses(before), gpus=2)


def test_an_interrupted_plan_goes_on(tokens, tmp_path):
    """Ctrl-C while the second run trains."""
    plan = plan_of(tokens)

    def before(stage, params):
        if len(processes.calls) == 2:
            signal.raise_signal(signal.SIGINT)
            assert processes.stopped.wait(20)
            raise StoppedError

    processes = FakeProcesses(before)
    with pytest.raises(KeyboardInterrupt):
        work(plan, tmp_path, processes)
    again = FakeProcesses()
    content = work(plan, tmp_path, again)
    assert [which for _, which, _ in again.calls] == ["none 1", "none 2", "gated 2"]
    assert not content["failures"]


def test_no_training_begins_when_time_is_up_and_what_has_begun_ends(
    tokens, tmp_path, command, monkeypatch
):
    now, path = [0.0], tmp_path / "plan.json"

    def before(stage, params):
        now[0] += 60.0 * (stage == "train")

    processes = FakeProcesses(before)
    monkeypatch.setattr("paramgolf.experiments.lab.stages.Processes", lambda: processes)
    monkeypatch.setattr("paramgolf.clock.Clock", lambda: Clock(now=lambda: now[0]))
    write_plan(path, tokens, goal="packed")
    for seconds, runs in (("100", 2), ("50", 3)):
        command("lab", str(path), "--gpus", "1", "--work", str(tmp_path), "--stop-after", seconds)
        counts = Counter(stage for stage, *_ in processes.calls)
        assert counts == dict.fromkeys(PACKED, runs)


@pytest.mark.parametrize(
    ("work_folder", "results", "option"),
    [(".", "other.json", "--work"), ("other", "results.json", "--results")],
)
def test_one_laboratory_works_in_a_folder_and_on_a_file_of_results(
    tokens, tmp_path, work_folder, results, option
):
    held = only_one(tmp_path / work_folder, tmp_path / results)
    with held, pytest.raises(ParamGolfError, match="another laboratory works here") as caught:
        work(plan_of(tokens), tmp_path, FakeProcesses())
    assert f"name another with {option}" in str(caught.value)


def test_what_another_laboratory_wrote_before_the_lock_was_free_is_kept(tokens, tmp_path):
    session = session_of(plan_of(tokens), tmp_path, FakeProcesses())
    work(plan_of(tokens, name="other", tokens=4096), tmp_path, FakeProcesses())
    session.work(command="")
    content = Records(tmp_path / "results.json").content
    assert {*content["plans"]} == {"tiny", "other"}
    assert len(content["stages"]) == 8


def test_results_and_logs_of_a_plan_are_copied_to_a_mirror(tokens, tmp_path):
    mirror = Mirror(str(tmp_path / "there"), "--mirror")
    work(plan_of(tokens), tmp_path / "here", FakeProcesses(), mirror=mirror)
    for name in ("results.json", "results.md"):
        copied = (tmp_path / "there" / name).read_text()
        assert copied == (tmp_path / "here" / name).read_text()
    assert (tmp_path / "there/no-skips-seed-2/train.log").read_text() == "train\n"


def test_slots_have_as_many_gpus_as_a_run_takes():
    assert slots_of(["4", "5", "7"], 1) == ["4", "5", "7"]
    assert slots_of(["4", "5", "7"], 2) == ["4,5"]
    with pytest.raises(ParamGolfError, match="a run of the plan takes 4 GPUs"):
        slots_of(["4", "5", "7"], 4)


def test_stages_run_as_they_are_and_a_diverging_run_says_so(tokens, tmp_path, command, monkeypatch):
    said = []
    monkeypatch.setattr("paramgolf.progress.say", said.append)
    path = tmp_path / "real.yaml"
    wild = {"name": "wild", "changes": ["train.matrix_lr=1.0e+30", "train.token_lr=1.0e+30"]}
    write_plan(path, tokens, name="real", seeds=[1], variants=[{"name": "base"}, wild])
    words = "lab", str(path), "--gpus", "2", "--work", str(tmp_path / "lab"), "--json"
    base, wild = json.loads(command(*words, code=1))["variants"]
    assert said[0].startswith("lab: real: left to run: 2 runs, 2 of them with a training; logs in ")
    assert 0 < base["means"]["trained"] < 20
    assert base["means"]["steps"] == 4
    assert wild["failures"] == ["train: training diverged: the loss is not finite"]
