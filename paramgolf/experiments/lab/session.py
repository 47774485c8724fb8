"""One call of the laboratory: a plan held against what is known, priced, or run."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.experiments.lab.cost import Cost, cost, training_tokens
from paramgolf.experiments.lab.plan import Plan, contents
from paramgolf.experiments.lab.records import Run
from paramgolf.experiments.lab.run import Bench, Laboratory, only_one, runs_of, take_tokens, unmade
from paramgolf.experiments.lab.screening import ScreenPower, screen_power
from paramgolf.experiments.lab.show import markdown
from paramgolf.experiments.lab.stages import ROOT
from paramgolf.experiments.lab.summary import MOST_PASSES, rows, summarize
from paramgolf.experiments.lab.tokens import Made, Tokens
from paramgolf.experiments.paired import Power, power_of
from paramgolf.files import write_text
from paramgolf.mirror import Mirror
from paramgolf.progress import say
from paramgolf.recipes import flatten

SAID = ("val_bpb", "tokens", "tokens_per_second", "bytes_total")  # of a stage's metrics


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan would cost and could tell, before it runs."""

    cost: Cost
    power: Power | ScreenPower
    warnings: Sequence[str]


class Session:
    """A plan with its parameters, on a bench; `changes` are those of the command line.

    With `any_code`, figures count that other code has made, for stages that need not run again.
    `only` names the variants that are run, beside the first; None: all. The results have the whole
    plan in any case.
    """

    def __init__(
        self,
        plan: Plan,
        changes: Sequence[str],
        bench: Bench,
        *,
        any_code: bool = False,
        only: Sequence[str] | None = None,
    ) -> None:
        self.plan, self._changes, self.bench = plan, changes, bench
        self._any_code = any_code
        self.contents = contents(plan, changes)
        self._chosen = [variant.name for variant in plan.chosen(only)]
        self._tokens = Tokens(bench.folder / "tokens", plan.text, bench.processes, ROOT)

    def forecast(self, *, retry: bool = False) -> Forecast:
        """Say what is left to run, what it costs, and which differences it can show.

        Nothing is written; failures are forgotten as `work` would forget them.
        """
        bench, plan = self.bench, self.plan
        made = {name: self._tokens.find(content) for name, content in self.contents.items()}
        runs = [run for run in self._runs(made) if run.variant in self._chosen]
        bench.records.forgive(runs, only_killed=not retry)
        left = [(run, bench.left(run)) for run in runs]
        total = cost(left, bench.records, gpus=plan.gpus, slots=len(bench.slots))
        told = self._power()
        return Forecast(total, told, [*self._warnings(made, told)])

    def _power(self) -> Power | ScreenPower:
        """Return what this plan tells apart, by the deviation that its runs have shown."""
        content, plan = self.bench.records.content, self.plan
        deviation, freedom, seeds = plan.deviation, 0.0, len(set(plan.seeds))
        if plan.name in content["plans"]:
            known = summarize(content, plan.name).power
            if known.freedom:
                deviation, freedom = known.deviation, known.freedom
        if plan.factors:
            order = len(plan.variants)
            return screen_power(order, len(plan.factors), seeds, deviation, freedom)
        return power_of(deviation, freedom, seeds)

    def _runs(self, made: Mapping[str, Made | None]) -> list[Run]:
        runs = runs_of(self.plan, self.contents, made, self.bench.stages)
        return [*map(self.bench.of_any_code, runs)] if self._any_code else runs

    def _warnings(
        self, made: Mapping[str, Made | None], told: Power | ScreenPower
    ) -> Iterator[str]:
        variants = [*map(self.plan.variant, self._chosen)]
        for name in self._chosen:
            text = made[name]
            passes = 0.0
            if text is not None:
                tokens = training_tokens(self.contents[name], self.plan.gpus)
                passes = tokens / text.train_tokens
            if passes > MOST_PASSES:
                yield f"{name} would read its text about {passes:.1f} times"
        for tried in self.plan.factors or variants:
            effect = tried.predicted
            if effect and told.smallest is not None and abs(effect) < told.smallest:
                yield f"{tried.name} is predicted {effect:+.4f}: too little to be shown"

    def work(
        self,
        *,
        command: str,
        retry: bool = False,
        mirror: Mirror | None = None,
        late: Callable[[], bool] = lambda: False,
        beside: Sequence[Session] = (),
    ) -> None:
        """Run what is left, and keep the results up to date; Ctrl-C leaves it to be gone on.

        No training is begun once it is `late`. The runs of sessions `beside`, on the same bench,
        are spread over its GPUs with these.
        """
        bench, sessions = self.bench, [self, *beside]
        if mirror is not None:
            for path in (bench.records.path, bench.records.page):
                mirror.add(path.name, path)
        # as Ctrl-C, so that stages are ended in order
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        copying = contextlib.nullcontext() if mirror is None else mirror.working()
        with only_one(bench.folder, bench.records.path), copying:
            bench.records.renew()
            wanted = [(one._tokens, one.contents[n]) for one in sessions for n in one._chosen]
            made = iter(take_tokens(wanted, bench.processes))
            runs = []
            for one in sessions:
                texts = {name: next(made) for name in one._chosen}
                runs += one._begin(texts, command, retry=retry)
            laboratory = Laboratory(runs, bench, show=self._came, late=late, mirror=mirror)
            try:
                laboratory.work()
            finally:
                self._write_tables()

    def _begin(self, taken: Mapping[str, Made], command: str, *, retry: bool) -> list[Run]:
        """Enter the whole plan in the results, and return the runs of its chosen variants."""
        made = {name: taken.get(name) or self._known(name) for name in self.contents}
        runs = self._runs(made)
        chosen = [run for run in runs if run.variant in self._chosen]
        self.bench.records.forgive(chosen, only_killed=not retry)
        self.bench.records.add_plan(self.plan.name, self._entry(command, runs, made))
        return chosen

    def _known(self, name: str) -> Made:
        """Return a variant's tokens, or what the results say of them where they are not here."""
        content = self.contents[name]
        if (found := self._tokens.find(content)) is not None:
            return found
        entry = self.bench.records.content["plans"].get(self.plan.name)
        if entry is None or name not in entry["texts"]:
            return unmade(content)
        text, parameters = entry["texts"][name], entry["parameters"][name]
        own = {k: v for k, v in flatten(content).items() if k.startswith(("data.", "tokenizer."))}
        if any(parameters.get(key) != value for key, value in own.items()):
            return unmade(content)
        return Made(Path(), text["key"], text["tokens"])

    def _entry(self, command: str, runs: Sequence[Run], made: Mapping[str, Made]) -> dict[str, Any]:
        """Return what the results keep of the plan."""
        return {
            "plan": dataclasses.asdict(self.plan),
            "command": command,
            "changes": [*self._changes],
            "parameters": {name: flatten(content) for name, content in self.contents.items()},
            "texts": {n: {"key": m.key, "tokens": m.train_tokens} for n, m in made.items()},
            "runs": [
                {"variant": r.variant, "seed": r.seed, "replicate": r.replicate, "keys": {**r.keys}}
                for r in runs
            ],
        }

    def _came(self, run: Run, stage: str) -> None:
        """Say what a stage found, and write the tables anew."""
        record = self.bench.records.stage(run.keys[stage])
        assert record is not None
        metrics = record["metrics"]
        found = [f"{key} {_figure(metrics[key])}" for key in SAID if key in metrics]
        head = f"{run.label}: {stage} {record['wall_seconds']:.0f} s"
        say(f"lab: {', '.join([head, *found])}")
        self._write_tables()

    def _write_tables(self) -> None:
        records = self.bench.records
        pages = [summarize(records.content, other) for other in sorted(records.content["plans"])]
        records.add_rows([row for page in pages for row in rows(page)])
        write_text(records.page, "\n".join(map(markdown, pages)))


def _figure(value: float) -> str:
    return f"{value:.4f}" if value < 100 else f"{value:,.0f}"
