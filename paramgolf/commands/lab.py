"""Train variants of recipes side by side, and say what helps, with an error bar.

PLAN is a YAML file (docs/lab.md, benchmarks/plans): a recipe, a budget, seeds, and variants with
their changes, or factors, each of which half of the runs have. Runs are spread over the GPUs; each
figure is kept as it comes, and the same command goes on where an earlier one was stopped. With
--dry-run nothing runs: it says what the plan costs and which differences its seeds can show.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramgolf.arguments import amount, count
from paramgolf.errors import ParamGolfError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paramgolf.experiments.lab.cost import Cost
    from paramgolf.experiments.lab.plan import Plan
    from paramgolf.experiments.lab.records import Records
    from paramgolf.experiments.lab.session import Forecast

EXAMPLE = """example:
  paramgolf lab benchmarks/plans/unit.yaml --dry-run --price 3
  paramgolf lab benchmarks/plans/sample.yaml
  paramgolf lab benchmarks/plans/unit.yaml --ablate best > benchmarks/plans/ablate-best.yaml
  paramgolf lab benchmarks/plans/unit.yaml --results benchmarks/results/lab.json"""
WORK = Path(".cache/lab")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("plan", metavar="PLAN", type=Path, help="a plan, a YAML file")
    parser.add_argument(
        "assignments", metavar="section.key=value", nargs="*", help="changes of every variant"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="say what it costs, run nothing")
    ablate = "print a plan as PLAN that leaves out each part of this recipe in turn"
    instead.add_argument("--ablate", metavar="RECIPE", help=ablate)
    instead.add_argument("--show", action="store_true", help="show what was found, run nothing")
    parser.add_argument(
        "--price", type=amount, metavar="DOLLARS", help="of a GPU's hour, for --dry-run"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="VARIANT",
        help="run or show this one and the first; may be given several times",
    )
    gpus = "use so many (default: all); on a CPU, runs at a time"
    parser.add_argument("--gpus", type=count, metavar="N", help=gpus)
    parser.add_argument(
        "--stop-after", type=amount, metavar="SECONDS", help="begin no training later than that"
    )
    beside = "do the runs of this plan, too, on the same GPUs; may be given several times"
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], metavar="PLAN", help=beside
    )
    parser.add_argument("--retry", action="store_true", help="run again what failed by itself")
    any_code = "count what other code has found and need not run again; default: make it anew"
    parser.add_argument("--any-code", action="store_true", help=any_code)
    results = "NAME.json to add to, pages go beside it; default: results.json in --work"
    parser.add_argument("--results", type=Path, metavar="FILE", help=results)
    take = "results of another machine to count, too; may be given several times"
    parser.add_argument("--take", type=Path, action="append", default=[], metavar="FILE", help=take)
    mirror = "copy results and logs there as they are written: a folder, or a URL of fsspec"
    parser.add_argument("--mirror", metavar="URL", help=mirror)
    parser.add_argument(
        "--work",
        type=Path,
        default=WORK,
        metavar="FOLDER",
        help="of runs and tokens; default: %(default)s",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, for programs; of several plans, a list"
    )


def run(options: argparse.Namespace) -> int:
    """Run the plan, or what is left of it; return 1 where a run failed."""
    from paramgolf.clock import Clock
    from paramgolf.experiments.lab.plan import read_plan
    from paramgolf.experiments.lab.records import Records
    from paramgolf.experiments.lab.run import Bench, slots_of
    from paramgolf.experiments.lab.session import Session
    from paramgolf.experiments.lab.stages import Processes, read_stages
    from paramgolf.mirror import Mirror
    from paramgolf.progress import say

    clock, changes = Clock(), options.assignments
    plan = read_plan(options.plan)
    plan.chosen(options.only)  # which says what is wrong with the names
    if options.ablate is not None:
        return print_ablation(plan, options.ablate)
    plans = [plan, *map(read_plan, options.beside)]
    check_names(plans)
    only = {one.name: options.only if one is plan else None for one in plans}
    records = Records(options.results or options.work / plan.name / "results.json")
    for path in options.take:
        records.take(path)
    if not options.show:
        slots = slots_of(devices(options.gpus), gpus_of_a_run(plans))
        bench = Bench(options.work, slots, records, read_stages(), Processes())
        sessions = [
            Session(one, changes, bench, any_code=options.any_code, only=only[one.name])
            for one in plans
        ]
        forecasts = {one.plan.name: one.forecast(retry=options.retry) for one in sessions}
        if options.dry_run:
            print_forecasts(forecasts, options)
            return 0
        for name, forecast in forecasts.items():
            say(f"lab: {left_to_run(name, forecast.cost)}; logs in {options.work / 'stages'}")
        sessions[0].work(
            command=" ".join(["paramgolf lab", str(options.plan), *changes]),
            retry=options.retry,
            mirror=None if options.mirror is None else Mirror(options.mirror, "--mirror"),
            late=lambda: options.stop_after is not None and clock.elapsed > options.stop_after,
            beside=sessions[1:],
        )
    return show(records, only, as_json=options.json)


def check_names(plans: Sequence[Plan]) -> None:
    """Refuse two plans of one name, under which the results would have the last one alone."""
    names = [plan.name for plan in plans]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        found, fix = f"twice: {', '.join(twice)}", "give one of them another `name`"
        raise ParamGolfError("plans side by side have names of their own", found=found, fix=fix)


def gpus_of_a_run(plans: Sequence[Plan]) -> int:
    """Return how many GPUs a run takes, which must be as many in all plans."""
    counts = {plan.name: plan.gpus for plan in plans}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name}: {gpus}" for name, gpus in counts.items())
        raise ParamGolfError("runs of plans side by side take as many GPUs each", found=found)
    return plans[0].gpus


def print_ablation(plan: Plan, recipe: str) -> int:
    """Print a plan that leaves out each part of a recipe, and what cannot be left out."""
    import yaml

    from paramgolf.experiments.lab.ablate import ablation, as_plan

    found = ablation(plan, recipe)
    for part, reason in found.impossible.items():
        print(f"# {part} cannot be left out: {' '.join(reason.split())}")
    print(
        yaml.safe_dump(as_plan(found.plan), sort_keys=False, allow_unicode=True, width=120), end=""
    )
    return 0


def devices(wanted: int | None) -> list[str]:
    """Return the GPUs to use; on a CPU, stand-ins for as many runs as go on at a time."""
    from paramgolf.gpu_slots import visible_gpus

    gpus = visible_gpus()
    if not gpus:
        return [str(i) for i in range(wanted or 1)]
    if wanted is not None and wanted > len(gpus):
        raise ParamGolfError(f"--gpus is {wanted}", found=f"{len(gpus)} GPUs: {', '.join(gpus)}")
    return gpus[:wanted]


def print_forecasts(forecasts: Mapping[str, Forecast], options: argparse.Namespace) -> None:
    """Print what each plan costs and what it can tell apart, by its name."""
    if not options.json:
        for name, forecast in forecasts.items():
            print_forecast(name, forecast, options.price)
        return
    contents = []
    for name, forecast in forecasts.items():
        content = {"plan": name, **dataclasses.asdict(forecast)}
        if options.price is not None:
            content["dollars"] = forecast.cost.dollars(options.price)
        contents.append(content)
    print_json(contents)


def print_forecast(name: str, forecast: Forecast, price: float | None) -> None:
    """Print in lines what a plan costs and what it can tell apart."""
    cost = forecast.cost
    dollars = "" if price is None else f", ${cost.dollars(price):,.2f}"
    known = "as measured before" if cost.measured else "some of them assumed, as on an H100"
    print(left_to_run(name, cost))
    clock = f"{cost.clock_seconds / 60:,.0f} minutes by the clock"
    print(f"{cost.gpu_seconds:,.0f} GPU-seconds{dollars}, {clock} (beside training {known})")
    print(forecast.power.sentence())
    for warning in forecast.warnings:
        print(f"- {warning}")


def left_to_run(name: str, cost: Cost) -> str:
    """Say which runs of a plan are still to be made."""
    return f"{name}: left to run: {cost.runs} runs, {cost.trainings} of them with a training"


def print_json(contents: Sequence[Mapping[str, Any]]) -> None:
    """Print the content of one plan, or a list of those of several."""
    found = contents[0] if len(contents) == 1 else contents
    print(json.dumps(found, indent=1, sort_keys=True))


def show(records: Records, only: Mapping[str, Sequence[str] | None], *, as_json: bool) -> int:
    """Print what was found of plans, and write their pages; return 1 where a run failed.

    `only` has the names of the variants to show by that of their plan, None for all. A page has all
    in any case.
    """
    from paramgolf.experiments.lab.show import notes, tables
    from paramgolf.experiments.lab.summary import as_json as plain
    from paramgolf.experiments.lab.summary import summarize
    from paramgolf.experiments.show import print_tables
    from paramgolf.files import write_text
    from paramgolf.report.lab import render_lab_page  # imports matplotlib

    if unknown := [name for name in only if name not in records.content["plans"]]:
        raise ParamGolfError(f"nothing is known of plan `{unknown[0]}` yet", fix="run it first")
    summaries = [summarize(records.content, *one) for one in only.items()]
    for name, summary in zip(only, summaries, strict=True):
        page = records.path.with_name(f"{name}.html")
        write_text(page, render_lab_page(summarize(records.content, name)))
        if not as_json:
            print_tables(tables(summary), notes(summary))
            print(page)
    if as_json:
        print_json([*map(plain, summaries)])
    return int(any(one.failures for summary in summaries for one in summary.variants))
