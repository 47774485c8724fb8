"""The report of one run: one offline HTML page, and the pictures for `dvc plots`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paramgolf.files import write_bytes, write_text
from paramgolf.recipes import flatten
from paramgolf.report import byte_map, pictures, views
from paramgolf.report.drawing import Picture
from paramgolf.report.html import template
from paramgolf.report.inputs import Inputs, load_inputs
from paramgolf.report.scores import EVALUATORS, evaluation
from paramgolf.training_log import LOG, of_event

OUT = Path("artifacts/report")


def write_report(root: Path = Path()) -> None:
    """Write artifacts/report: index.html, and the pictures in it: loss, bpb, bytes, error.png."""
    inputs = load_inputs(root)
    drawn = draw(inputs)
    write_text(root / OUT / "index.html", render(inputs, drawn))
    for name, picture in drawn.items():
        write_bytes(root / OUT / f"{name}.png", picture.png())


def draw(inputs: Inputs) -> dict[str, Picture]:
    """Return the page's pictures by name."""
    return {
        "loss": pictures.training(inputs.log),
        "bpb": pictures.waterfall(views.scores(inputs)),
        "bytes": pictures.treemap(byte_map.tiles(byte_map.leaves(inputs.parts))),
        "error": pictures.errors(views.error_grids(inputs.errors)),
    }


def render(inputs: Inputs, drawn: Mapping[str, Picture]) -> str:
    """Return the page; the same inputs give the same text."""
    package = inputs.metrics.by_stage["package"]
    leaves = byte_map.leaves(inputs.parts)
    return template("run.html").render(
        bpb=inputs.metrics.get("eval_ttt", "val_bpb"),
        facts=_facts(inputs),
        pictures=drawn,
        scores=views.scores(inputs),
        partial=_partial(inputs),
        evaluations=[evaluation(stage, inputs.param, inputs.metric) for stage in EVALUATORS],
        validations=inputs.log.validations,
        package=package,
        family_bytes=byte_map.by_family(leaves),
        leaves=leaves,
        parts=views.byte_parts(inputs),
        headroom=package["limit_bytes"] - package["bytes_total"],
        timings=views.timings(inputs),
        step_split=views.step_split(inputs),
        environment=inputs.log.environment,
        params={name: flatten(section) for name, section in inputs.params.items()},
    )


def _facts(inputs: Inputs) -> list[tuple[str, str, str]]:
    """Return name, value and note of the figures at the page's head."""
    get = inputs.metrics.get
    headroom = get("package", "limit_bytes") - get("package", "bytes_total")
    room = f"{headroom:,} bytes free" if headroom >= 0 else f"{-headroom:,} bytes over the limit"
    bits = 8 * get("package", "bytes_model") / get("train", "parameters")
    world = get("train", "world_size")
    device = f"{world} x {get('train', 'device')}" if world > 1 else get("train", "device")
    lossless = "tokens give it back exactly" if get("audit", "lossless") else "tokens alter it"
    return [
        ("artifact", f"{get('package', 'bytes_total'):,} B", room),
        ("parameters", f"{get('train', 'parameters'):,}", f"{bits:.2f} bits per weight"),
        ("training", f"{get('train', 'train_seconds'):,.1f} s", device),
        ("steps", f"{get('train', 'steps'):,}", f"{get('train', 'tokens'):,} tokens"),
        ("validation text", f"{get('audit', 'bytes_val_raw'):,} B", lossless),
    ]


def _partial(inputs: Inputs) -> str | None:
    """Return a warning where the scores are of different parts of the validation text."""
    if not inputs.log.validations:
        return None
    (last,) = of_event(inputs.log.validations[-1:], "validation", ("tokens_scored",), LOG)
    trained = last["tokens_scored"]
    scored = [inputs.metrics.get(stage, "tokens_scored") for stage in EVALUATORS]
    if {*scored} == {trained}:
        return None
    counts = f"{trained:,}, {scored[0]:,}, {scored[0]:,} and {scored[1]:,}"
    return f"The rows do not compare: they score {counts} tokens."
