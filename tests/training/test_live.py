"""The tables of a training under way, as `dvc plots` reads them."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from paramgolf.training.live import LiveLog
from paramgolf.training.log import Log

ROOT = Path(__file__).parents[2]
START = {"event": "start", "torch": "2"}
VALIDATION = {
    "event": "validation",
    "step": 0,
    "val_bpb": 4.5,
    "val_loss": 3.0,
    "tokens_scored": 99,
}


def step(number: int) -> dict[str, object]:
    return {"event": "step", "step": number, "loss": 5.0 - number, "lr": 1.0, "tokens": 8}


def rows(folder: Path, name: str) -> list[list[str]]:
    with (folder / f"plots/{name}.tsv").open() as file:
        return list(csv.reader(file, delimiter="\t"))


def test_each_figure_is_a_table_beside_the_log(tmp_path):
    live, plain = LiveLog(tmp_path / "log.jsonl", show=True), Log(tmp_path / "plain", show=True)
    for record in (START, VALIDATION, step(1), step(2)):
        live.write(record)
        plain.write(record)
    assert (tmp_path / "log.jsonl").read_text() == (tmp_path / "plain").read_text()
    assert rows(tmp_path, "loss") == [["step", "loss"], ["1", "4.0"], ["2", "3.0"]]
    assert rows(tmp_path, "val_bpb") == [["step", "val_bpb"], ["0", "4.5"]]


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path):
    killed = LiveLog(tmp_path / "log.jsonl", show=True)
    for record in (START, VALIDATION, step(1)):
        killed.write(record)
    saved = [*killed.lines]
    killed.write(step(2))
    resumed = LiveLog(tmp_path / "log.jsonl", show=True)
    resumed.restore(saved)
    resumed.write(step(2))
    resumed.write(step(3))
    assert [row[0] for row in rows(tmp_path, "loss")] == ["step", "1", "2", "3"]


def test_other_processes_write_nothing(tmp_path):
    silent = LiveLog(tmp_path / "log.jsonl", show=False)
    silent.restore([])
    silent.write(step(1))
    assert not any(tmp_path.iterdir())


def test_the_plots_of_the_plan_are_tables_that_training_writes(tmp_path):
    live = LiveLog(tmp_path / "log.jsonl", show=True)
    live.write(START)
    plots = [plot for plot in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
             if isinstance(plot, dict)]  # fmt: skip
    assert len(plots) == 2
    for path, axes in (item for plot in plots for item in plot.items()):
        name = Path(path).stem
        assert Path(path).parent == Path("artifacts/train/plots")
        assert rows(tmp_path, name) == [[axes["x"], axes["y"]]]
