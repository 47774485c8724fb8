"""Whether metrics are of the files on disk: each stage recorded the SHA-256 of what it used.

A metrics file alone proves nothing, since anyone can write one. The stages that prove or score
record under `read` and `wrote` which files their figures are of; here those are hashed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paramgolf.data.documents import RAW_PATH
from paramgolf.data.manifests import read_raw_manifest
from paramgolf.data.token_set import TOKENS_PATH, open_tokens
from paramgolf.files import sha256_file
from paramgolf.metrics import Metrics

PACKAGE = Path("artifacts/package")
EVALUATORS = ("eval_sliding", "eval_ttt")
SAME = 1e-9  # relative, of sums of the same float64 values in another order


def documents_path(stage: str) -> Path:
    """Return the table of an evaluator's scores by document."""
    return Path("artifacts") / stage / "documents.parquet"


def unbound(metrics: Mapping[str, Mapping[str, Any]], root: Path) -> Iterator[str]:
    """Yield what is wrong with the files that the stages of `metrics` recorded, a line each."""
    hash_of = cache(lambda path: sha256_file(root / path) if (root / path).is_file() else None)
    for stage, needed in used_files(root).items():
        entries = [entry for key in ("read", "wrote") for entry in metrics[stage].get(key, ())]
        recorded = {entry["path"]: entry["sha256"] for entry in entries}
        for path in sorted({path.as_posix() for path in needed} - recorded.keys()):
            yield f"{stage} does not say which {path} its figures are of"
        for path, expected in recorded.items():
            if (found := hash_of(path)) != expected:
                state = "is not there" if found is None else "is another file"
                yield f"{path} {state} than {stage} used"


def used_files(root: Path) -> dict[str, list[Path]]:
    """Return the files that each stage must name: what it reads of data, and what is shipped."""
    tokens = open_tokens(root / TOKENS_PATH)
    raw, made = read_raw_manifest(root / RAW_PATH).hashes, tokens.manifest.hashes
    scored = [TOKENS_PATH / name for name in ("manifest.json", *tokens.scored_files)]
    model = PACKAGE / "model.bin"
    return {
        "audit": [
            folder / name
            for folder, files in ((RAW_PATH, raw), (TOKENS_PATH, made))
            for name in ("manifest.json", *files)
        ],
        "package": [model, PACKAGE / "train_gpt.py"],
        **{stage: [model, *scored, documents_path(stage)] for stage in EVALUATORS},
    }


def disagreements(metrics: Metrics, root: Path) -> Iterator[str]:
    """Yield where an evaluator's figures are not the sums of its table of documents."""
    for stage in EVALUATORS:
        path = root / documents_path(stage)
        if not path.is_file():
            continue  # which is said of the files
        try:
            table = pq.read_table(path, columns=["tokens", "bytes", "nats"])
            tokens, size, nats = (pc.sum(table[name]).as_py() or 0 for name in table.column_names)
        except (pa.ArrowException, OSError) as error:
            yield f"{documents_path(stage)} cannot be read: {str(error).splitlines()[0]}"
            continue
        sums = {
            "tokens_scored": tokens,
            "bytes_scored": size,
            "val_loss": nats / max(tokens, 1),
            "val_bpb": nats / math.log(2) / max(size, 1),
        }
        for name, found in sums.items():
            recorded = metrics.get(stage, name)
            if not math.isclose(found, recorded, rel_tol=SAME):
                yield f"{stage}: {name} is {recorded}, its documents add up to {found}"
