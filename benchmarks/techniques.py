"""Techniques of the records, each a change of one common recipe: see recipes.py --techniques."""

from __future__ import annotations

import shutil
import time
from argparse import Namespace
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects import WORK, Devices, Project, StageError, assignments, cut, folder_name
from recipe_results import COMMON, Results, cells, differences

COMMON_RECIPE = "pr1493"
# momentum and average for some hundred steps, where the records take thousands
COMMON_CHANGES = (
    "train.muon_momentum=0.95",
    "train.muon_momentum_start=0.85",
    "train.ema_decay=0.99",
)
PACKING = ("calibrate", "quantize", "package", "packed")
LATER = ("calibrate.", "quantize.", "package.")  # changes that leave the training as it is
REPEATED_TWICE = "[0,1,2,3,4,5,3,4,5,3,4,5,6,7,8,9,10]"
REPEATED_ONCE = "[0,1,2,3,4,5,3,4,5,6,7,8,9,10]"
LAST_TWO_REPEATED = "[0,1,2,3,4,5,4,5,4,5,6,7,8,9,10]"
NINE_LAYERS = "model.window_layers=[0,1,2,4,5,6,8,9,10]"


@dataclass(frozen=True)
class Technique:
    """What a row of the table changes; `packed` where its merit shows in the quantised model."""

    name: str
    changes: tuple[str, ...] = ()
    packed: bool = False

    @property
    def trains(self) -> bool:
        """Whether it needs a training of its own."""
        return not self.changes or not all(one.startswith(LATER) for one in self.changes)

    def changes_at(self, batch_tokens: int) -> list[str]:
        """Return the changes with the tokens of a step in their places."""
        return [change.replace("BATCH", str(batch_tokens)) for change in self.changes]


def table(*rows: tuple[str, ...], packed: bool = False) -> tuple[Technique, ...]:
    """Return techniques of (name, change, ...)."""
    return tuple(Technique(name, changes, packed) for name, *rest in rows for changes in [(*rest,)])


TECHNIQUES = (
    Technique(COMMON, packed=True),
    *table(
        ("MLP after attention", "model.parallel=none"),
        ("two lanes (#1529)", "model.parallel=lanes"),
        ("two lanes, merge scalar (#1296)", "model.parallel=merge"),
        ("two lanes, routed (#1204)", "model.parallel=routed"),
        ("two lanes, mixed (#1289)", "model.parallel=mixed"),
        ("no recurrence", "model.recurrence=[]"),
        ("layers 3-5 twice", f"model.recurrence=[{{at: 0.35, order: {REPEATED_ONCE}}}]"),
        (
            "layers 4-5 three times",
            f"model.recurrence=[{{at: 0.35, order: {LAST_TWO_REPEATED}}}]",
        ),
        ("recurrence from the start", f"model.recurrence=[{{at: 0.0, order: {REPEATED_TWICE}}}]"),
        ("untied repeats (#1204)", "model.untied_repeats=true"),
        ("scales by place (#1204)", "model.virtual_scalars=true"),
        ("no skips", "model.skips=none"),
        ("additive skips", "model.skips=additive"),
        ("smearing by channel (#1019)", "model.smear=channel"),
        ("smearing by token (#1667)", "model.smear=token"),
        ("head gates, doubled (#1667)", "model.head_gate=doubled"),
        ("head gates, dense (#1736)", "model.head_gate=dense"),
        (
            "head gates, sparse (#1787)",
            "model.head_gate=sparse",
            "model.head_gate_scale=0.5",
        ),
        ("no XSA", "model.xsa_layers=0"),
        ("XSA in 4 layers", "model.xsa_layers=4"),
        ("value embeddings", "model.value_embedding_layers=[9,10]"),
        ("value residual", "model.value_residual=true"),
        ("bigrams", "model.bigram_buckets=2816", "model.bigram_dim=160"),
        ("no rotary channels", "model.rope_dims=0"),
        ("all channels rotary", "model.rope_dims=64"),
        ("no layer scale", "model.layer_scale=false"),
        ("query gain 1.5", "model.q_gain=1.5"),
        ("softcap 15", "model.softcap=15.0"),
        ("no attention in layer 0", "model.first_attention=false"),
        (
            "windows of 512 in every other layer",
            "model.window_layers=[0,2,4,6,8]",
            "model.window=512",
        ),
        ("windows of 256 in nine layers", NINE_LAYERS, "model.window=256"),
        ("windows of 128 in nine layers", NINE_LAYERS, "model.window=128"),
        (
            "windows of 256 in nine layers, no attention in layer 0, layers 3-5 twice",
            NINE_LAYERS,
            "model.window=256",
            "model.first_attention=false",
            f"model.recurrence=[{{at: 0.35, order: {REPEATED_ONCE}}}]",
        ),
        ("Polar Express", "train.muon_coefficients=polar_express"),
        ("rows not normalised", "train.muon_normalise_rows=false"),
        ("momentum 0.99", "train.muon_momentum=0.99", "train.muon_momentum_start=0.92"),
        ("no weight decay of matrices", "train.matrix_decay=0.0"),
        (
            "decay tapered to half (#1729)",
            "train.decay_taper_share=0.5",
        ),
        ("no clipping", "train.clip_norm=0.0"),
        ("no average", "train.ema_decay=0.0"),
        ("average of the last weights", "train.average=swa", "train.swa_every=10"),
        ("warmdown over 0.4", "train.warmdown=0.4"),
        ("warmdown over 0.85 to a tenth", "train.warmdown=0.85", "train.min_lr=0.1"),
        ("windows in order", "train.loader=sequential"),
        ("coprime windows", "train.loader=coprime"),
        ("packed documents, scored within", "train.loader=documents"),
        (
            "sequences of 512, then 2,048",
            "train.sequence_length=512",
            "train.curriculum=[{at: 0.5, batch_tokens: BATCH, sequence_length: 2048}]",
        ),
    ),
    *table(
        ("late QAT", "train.qat_below=0.15"),
        ("late QAT, soft rounding", "train.qat_below=0.15", "train.qat_rounding=soft"),
        ("rounded to nearest", "quantize.method=nearest"),
        ("columns in order", "quantize.act_order=false"),
        ("percentile grid", "quantize.grid=percentile"),
        ("Hessian in the clip (#1412)", "quantize.hessian_clip=0.175"),
        ("low-rank corrections (#1797)", "quantize.low_rank_matrices=3"),
        ("finer groups (#1908)", "quantize.finer_groups=8"),
        (
            "codec rans and trellis",
            "package.codec=rans",
            "quantize.fit_codec=rans",
            "quantize.trellis=true",
        ),
        (
            "steps by sensitivity",
            "quantize.balance=0.8",
            "calibrate.sensitivity_sequences=64",
        ),
        packed=True,
    ),
)


def run_all(options: Namespace, results: Results) -> None:
    """Run what is asked for and not in the results, print and keep each row as it comes."""
    names = [technique.name for technique in TECHNIQUES]
    if unknown := sorted({*options.only} - {*names}):
        raise SystemExit(f"no such technique: {', '.join(unknown)}; there are: {', '.join(names)}")
    settings = {
        "common recipe": f"{options.common} with {' '.join(COMMON_CHANGES)}",
        "tokens": f"{options.tokens:,}",
        "tokens a step": f"{options.batch_tokens:,}",
        "changed": " ".join(options.set) or "nothing",
    }
    wanted = [t for t in TECHNIQUES if t.name in (options.only or names) or t.name == COMMON]
    failed, devices = False, Devices(options.gpus, options.jobs)
    with ThreadPoolExecutor(devices.runs) as pool:
        for seed in options.seeds:
            due = [t for t in wanted if is_due(t, seed, results.techniques(settings), options)]
            again = TECHNIQUES[:1] if lacks_common(due, seed, options) else ()
            # what changes quantising alone takes the common model, which is trained by then
            for trains in (True, False):
                begun = {
                    pool.submit(run, technique, seed, options, devices): technique
                    for technique in dict.fromkeys([*again, *due])
                    if technique.trains == trains
                }
                for future in as_completed(begun):
                    technique = begun[future]
                    found = outcome(future, f"{technique.name}, seed {seed}")
                    failed = failed or found is None
                    if found is not None and technique in due:
                        changes = " ".join(technique.changes_at(options.batch_tokens))
                        results.add_technique(settings, technique.name, changes, seed, found)
                        row = cells(results.techniques(settings), technique.name)
                        print(" | ".join([technique.name, f"seed {seed}", *row]), flush=True)
    if failed:
        raise SystemExit("some rows are missing: run the same command again")


def outcome(future: Future[dict[str, float]], label: str) -> dict[str, float] | None:
    """Return what a run found; print why it failed."""
    try:
        return future.result()
    except StageError as error:
        print(f"{label}: {error}", flush=True)
        return None


def lacks_common(due: list[Technique], seed: int, options: Namespace) -> bool:
    """Tell whether those of `due` that only quantise have no common model yet."""
    trained = folder_of(COMMON, seed, options) / "artifacts/metrics/train.json"
    return not trained.is_file() and not all(technique.trains for technique in due)


def is_due(technique: Technique, seed: int, rows: dict[str, Any], options: Namespace) -> bool:
    """Tell whether a run is missing: of the first seed, or of others where it is a close call."""
    runs = rows.get(technique.name, {"seeds": {}})["seeds"]
    if str(seed) in runs:
        return False
    if seed == options.seeds[0] or technique.name == COMMON:
        return True
    key = "val_bpb_packed" if technique.packed else "val_bpb"
    found = differences(rows, technique.name, key) if runs else []
    return bool(found) and abs(found[0]) < options.close


def run(technique: Technique, seed: int, options: Namespace, devices: Devices) -> dict[str, float]:
    """Train, and pack where its merit shows there; return the scores."""
    with devices.take() as device:
        if time.monotonic() > options.deadline:
            raise StageError("not begun, out of time")
        project = project_of(technique, seed, options, device)
        project.take_tokens()
        trained = folder_of(COMMON, seed, options) / "artifacts"
        if not technique.trains and (trained / "metrics/train.json").is_file():
            shutil.copytree(trained / "train", project.folder / "artifacts/train")
            (project.folder / "artifacts/metrics").mkdir()
            shutil.copy(trained / "metrics/train.json", project.folder / "artifacts/metrics")
        else:
            project.run("train")
        if technique.packed:
            project.run(*PACKING)
    found = {}
    for stage, key, name in (
        ("train", "val_bpb", "val_bpb"),
        ("packed", "val_bpb", "val_bpb_packed"),
        ("package", "bytes_total", "bytes_total"),
    ):
        if metrics := project.metrics(stage):
            found[name] = metrics[key]
    if not technique.trains:  # its model is a common one, and one trained again is not the same
        found["lost"] = found["val_bpb_packed"] - found.pop("val_bpb")
    if technique.name != COMMON:  # whose weights others quantise
        shutil.rmtree(project.folder / "artifacts")
    return found


def project_of(technique: Technique, seed: int, options: Namespace, device: str) -> Project:
    """Return the folder in which a technique runs, with its parameters."""
    content = content_of(technique, seed, options)
    return Project(folder_of(technique.name, seed, options), content, device)


def content_of(technique: Technique, seed: int, options: Namespace) -> dict[str, Any]:
    """Return the parameters of a technique's run; its own changes have the last word."""
    common = [*COMMON_CHANGES, *options.set, f"train.seed={seed}", "eval_ttt.mode=none"]
    changes = assignments([*common, *technique.changes_at(options.batch_tokens)])
    return cut(options.common, changes, options.tokens, options.batch_tokens)


def folder_of(name: str, seed: int, options: Namespace) -> Path:
    """Return a technique's folder; calls with other files of results have others."""
    return WORK / options.results.stem / f"{folder_name(name)}-{seed}"
