"""The metrics that the stages wrote, read strictly: a missing file or key is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json, sha256_file

METRICS = Path("artifacts/metrics")
# that measure a run; `verify` writes its verdict beside them
STAGES = ("audit", "train", "calibrate", "quantize", "package", "eval_sliding", "eval_ttt")


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics by stage."""

    by_stage: Mapping[str, Mapping[str, Any]]

    def get(self, stage: str, key: str) -> Any:
        """Return a metric; a missing one is a ParamGolfError that names the file."""
        fix = f"make it again with `dvc repro -f -s {stage}`"
        return need(self.by_stage[stage], key, METRICS / f"{stage}.json", fix=fix)


def load_metrics(stages: Iterable[str], root: Path = Path()) -> Metrics:
    """Read the metrics files of `stages`."""
    files = {stage: root / METRICS / f"{stage}.json" for stage in stages}
    return Metrics(
        {
            stage: read_json(path, fix=f"make it with `dvc repro {stage}`")
            for stage, path in files.items()
        }
    )


def file_hashes(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Return path and SHA-256 of each file, as metrics record which files they are of.

    A list, which `dvc metrics` leaves out of its tables.
    """
    return [{"path": path.as_posix(), "sha256": sha256_file(path)} for path in paths]


def need(content: Mapping[str, Any], key: str, where: object, *, fix: str | None = None) -> Any:
    """Return content[key]; a missing key is a ParamGolfError that lists those that exist."""
    if key not in content:
        found = ", ".join(sorted(content))
        raise ParamGolfError(f"`{key}` is missing", where=where, found=found, fix=fix)
    return content[key]
