"""submission.json: the scores, the sizes, the times, and which rules are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from paramgolf.experiments.statistics import Sample, sample
from paramgolf.submission.about import About
from paramgolf.submission.collect import SeedRun
from paramgolf.submission.missing import SEEDS


def submission(
    runs: Sequence[SeedRun],
    about: About,
    stage: str,
    *,
    day: date,
    limits: Mapping[str, Any],
    against: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of submission.json; `stage` is the evaluator whose scores are handed in.

    Losses are nats per token, times seconds (steps: milliseconds); deviations are those of a sample
    (n - 1), null for one seed. `limits` are the contest's, by dotted key; `against` is the
    comparison with a record, if one was asked for.
    """
    loss, bpb, size = (
        of(runs, key) for key in (f"{stage}.val_loss", f"{stage}.val_bpb", "package.bytes_total")
    )
    environment = runs[0].log.environment
    content = {
        "author": about.author,
        "github_id": about.github_id,
        "name": about.name,
        "blurb": about.blurb,
        "date": day.isoformat(),
        "track": about.track,
        "val_loss": loss.mean,
        "val_loss_std": loss.deviation,
        "val_bpb": bpb.mean,
        "val_bpb_std": bpb.deviation,
        "seeds": [run.seed for run in runs],
        "seed_results": {str(run.seed): seed_result(run, stage) for run in runs},
        "artifact_bytes_mean": size.mean,
        "artifact_bytes_max": max(run.metrics["package.bytes_total"] for run in runs),
        "bytes_total": runs[0].metrics["package.bytes_total"],
        "bytes_code": runs[0].metrics["package.bytes_code"],
        "hardware": f"{environment['world_size']} x {environment['device']}",
        "pytorch_version": environment["torch"],
        "cuda_version": environment["cuda"],
        "compliance": compliance(runs, stage, limits),
        "attribution": dict(about.credits),
    }
    return content if against is None else {**content, "comparison": dict(against)}


def of(runs: Sequence[SeedRun], metric: str) -> Sample:
    """Return what the seeds have of a metric."""
    return sample([float(run.metrics[metric]) for run in runs])


def seed_result(run: SeedRun, stage: str) -> dict[str, Any]:
    """Return a seed's line of submission.json."""
    metrics = run.metrics
    return {
        "val_loss": metrics[f"{stage}.val_loss"],
        "val_bpb": metrics[f"{stage}.val_bpb"],
        "artifact_bytes": metrics["package.bytes_total"],
        "steps": metrics["train.steps"],
        "step_avg_ms": 1000 * metrics["train.train_seconds"] / metrics["train.steps"],
        "train_time_s": metrics["train.train_seconds"],
        "eval_time_s": metrics[f"{stage}.seconds"],
    }


def compliance(runs: Sequence[SeedRun], stage: str, limits: Mapping[str, Any]) -> dict[str, bool]:
    """Return the contest's questions answered: by verify, by the seeds, or by what does not exist.

    This project has no SLOT, no training on validation text before it is scored, and no fitted
    logit biases; docs/legality.md tells.
    """

    def kept(rule: str, *keys: str) -> bool:
        held = all(run.metrics[f"verify.rules.{rule}"] != "fail" for run in runs)
        return held and all(run.params[k] <= limits[k] for run in runs for k in keys)

    return {
        "train_under_600s": kept("R2", "verify.train_seconds"),
        "artifact_under_16mb": kept("R1", "package.limit_bytes"),
        "eval_under_600s": kept("R3", "verify.eval_seconds"),
        "no_slot": True,
        "no_pre_quant_ttt": True,
        "no_etlb": True,
        "no_ngram_cache": runs[0].params[f"{stage}.mixture.kind"] == "none",
        "score_first_ttt": kept("R8"),
        "three_seeds": len({run.seed for run in runs}) >= SEEDS,
    }
