"""The files of an evaluation stage."""

from __future__ import annotations

from pathlib import Path

from paramgolf.files import write_json
from paramgolf.runtime import Ranks
from paramgolf.scoring.documents import write_documents
from paramgolf.scoring.evaluation import Evaluation

ARTIFACTS = Path("artifacts")
PACKAGE_PATH = ARTIFACTS / "package" / "model.bin"


def write_evaluation(name: str, evaluation: Evaluation, ranks: Ranks) -> None:
    """Write documents.parquet and the metrics of stage `name`."""
    if not ranks.is_main:
        return
    write_documents(ARTIFACTS / name / "documents.parquet", evaluation.text, evaluation.nats)
    write_json(ARTIFACTS / "metrics" / f"{name}.json", evaluation.metrics)
