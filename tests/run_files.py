"""A made-up run: the files that report and verify read, consistent with one another."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from shard_files import write_token_set

from paramgolf.data import documents
from paramgolf.data.manifests import TextManifest, write_manifest
from paramgolf.files import read_json, sha256_file, write_bytes, write_json, write_text
from paramgolf.recipes import RECIPES, build
from paramgolf.verify.bindings import EVALUATORS, documents_path, used_files

ROOT = Path(__file__).parents[1]
TOKENS, BYTES = 2001, 7000  # validation tokens (one more than targets) and the bytes they stand for

PROBE = {
    "passes": 8,
    "positions": 128,
    "causal_error": 0.0,
    "sum_error": 3e-7,
    "score_error": 2e-6,
}


def evaluation(bits_per_byte: float, plain: float, updates: int) -> dict[str, Any]:
    """Return an evaluator's metrics, its loss and bytes in agreement with its score."""
    targets = TOKENS - 1
    ledger = {"scored_once": True, "score_first": True, "targets": targets, "entries": 32}
    ledger |= {"updates": updates, "targets_trained": 1500 if updates else 0}
    metrics = {
        "val_bpb": bits_per_byte,
        "val_loss": bits_per_byte * math.log(2) * BYTES / targets,
        "val_bpb_plain": plain,
        "tokens_scored": targets,
        "bytes_scored": BYTES,
        "train_tokens_read": 0,
        "seconds": 118.4,
        "ledger": ledger,
        "probe": dict(PROBE),
    }
    return metrics | ({"updates": updates} if updates else {})


def metrics() -> dict[str, dict[str, Any]]:
    """Return the metrics of every stage that keeps every rule."""
    return {
        "audit": {
            "documents_train": 900,
            "documents_val": 64,
            "bytes_val_raw": BYTES,
            "bytes_val_counted": BYTES,
            "lossless": True,
            "near_copies": 1,
            "normalization": "none",
            "train_val_overlap": 0,
            "bytes_per_token": 3.5,
        },
        "train": {
            "parameters": 1_216_536,
            "steps": 400,
            "tokens": 3_276_800,
            "train_seconds": 96.5,
            "tokens_per_second": 33_957.0,
            "step_ms_median": 231.0,
            "startup_seconds": 2.1,
            "peak_memory_bytes": 900_000_000,
            "mfu": None,
            "val_bpb": 1.8012,
            "val_loss": 4.3,
            "world_size": 1,
            "device": "cpu",
        },
        "calibrate": {"seconds": 6.25, "tokens": 65_536, "source": "train"},
        "quantize": {
            "seconds": 3.5,
            "adjust_seconds": 0.0,
            "bits_per_weight": 3.61,
            "mean_relative_error": 0.118,
        },
        "package": {
            "bytes_model": 560_000,
            "bytes_code": 18_000,
            "bytes_total": 578_000,
            "limit_bytes": 16_000_000,
            "headroom_bytes": 15_422_000,
            "fits": True,
            "seconds": 2.0,
        },
        "eval_sliding": evaluation(1.7931, 1.8127, 0),
        "eval_ttt": evaluation(1.7702, 1.8127, 93),
    }


def log_lines(steps: int = 400) -> list[dict[str, Any]]:
    """Return a training log whose loss falls."""
    chance = random.Random(1)
    lines: list[dict[str, Any]] = [
        {"event": "start", "device": "cpu", "torch": "2.13.0", "cores": 2, "cuda": None}
    ]
    for step in range(1, steps + 1):
        loss = 3.6 + 3.3 * math.exp(-step / 60) + chance.gauss(0, 0.05)
        rate = min(1.0, (steps - step) / (0.6 * steps))
        lines.append(
            {"event": "step", "step": step, "loss": loss, "lr": rate, "tokens": step * 8192}
        )
        if step % 100 == 0:
            scores = {"val_loss": loss + 0.03, "val_bpb": loss / 2, "tokens_scored": TOKENS - 1}
            lines.append({"event": "validation", "step": step, **scores})
    return lines


def errors(layers: int = 6) -> dict[str, Any]:
    """Return quantize's report.json."""
    chance = random.Random(2)
    names = [
        (name, layer) for name in ("q", "k", "v", "o", "up", "down") for layer in range(layers)
    ]
    tensors = [
        {
            "name": name,
            "layer": layer,
            "relative_error": 0.1 + chance.random() / 20,
            "output_error": 0.004 + chance.random() / 200,
        }
        for name, layer in [*names, ("embedding", 0)]
    ]
    return {"schema": 1, "tensors": tensors}


def write_run(root: Path, changes: dict[str, dict[str, Any]] | None = None) -> None:
    """Write the run's files below `root`; `changes` are merged into the metrics, by stage."""
    changed = {stage: m | (changes or {}).get(stage, {}) for stage, m in metrics().items()}
    write_text(
        root / "artifacts/train/log.jsonl", "".join(json.dumps(line) + "\n" for line in log_lines())
    )
    write_json(root / "artifacts/quantize/report.json", errors())
    write_json(root / "artifacts/package/package.json", package())
    write_text(root / "params.yaml", yaml.safe_dump(build("sample", folder=ROOT / RECIPES)))
    write_text(root / "dvc.yaml", (ROOT / "dvc.yaml").read_text())
    validation = np.ones(TOKENS, dtype=np.uint16)
    write_token_set(root / "data/tokens", val=[validation], val_bytes=[], vocab_size=1024)
    write_text(root / "data/tokens/tokenizer.model", "a tokenizer")
    write_raw(root / "data/raw")
    write_bytes(root / "artifacts/package/model.bin", bytes(metrics()["package"]["bytes_model"]))
    write_script(root / "artifacts/package/train_gpt.py", build("sample", folder=ROOT / RECIPES))
    for stage in EVALUATORS:
        write_documents(root / documents_path(stage), changed[stage])
    for stage, content in changed.items():
        write_json(root / f"artifacts/metrics/{stage}.json", content)
    bind(root)


def write_script(path: Path, params: dict[str, Any]) -> None:
    """Write a packed script without modules, of the size that package recorded."""
    packed = brotli.compress(f"loader\0{json.dumps(params)}".encode()).decode("latin-1")
    content = f"# coding: latin-1\nPACKED = {packed!r}\n".encode("latin-1")
    write_bytes(path, content.ljust(metrics()["package"]["bytes_code"], b"#"))


def bind(root: Path) -> None:
    """Let each stage's metrics name the files of the run, as they are now."""
    for stage, paths in used_files(root).items():
        path = root / f"artifacts/metrics/{stage}.json"
        read = [
            {"path": file.as_posix(), "sha256": sha256_file(root / file)}
            for file in paths
            if (root / file).is_file()
        ]
        write_json(path, read_json(path) | {"read": read})


def write_raw(folder: Path) -> None:
    """Write data/raw as download does of a sample."""
    train, val = (
        documents.write_documents(
            folder / f"{split}.jsonl.zst", [documents.Document("one", f"A text of {split}.")]
        )
        for split in ("train", "val")
    )
    manifest = TextManifest(
        schema=1, kind="documents", source="sample", train=train, val=val, skipped={},
        validation_files=(),
    )  # fmt: skip
    write_manifest(folder, manifest)


def write_documents(path: Path, figures: dict[str, Any]) -> None:
    """Write an evaluator's table of documents, in two rows that add up to its figures."""
    tokens, size = figures["tokens_scored"], figures["bytes_scored"]
    nats = figures["val_loss"] * tokens
    table = {
        "tokens": [10, tokens - 10],
        "bytes": [30, size - 30],
        "nats": [0.25 * nats, 0.75 * nats],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)


def package() -> dict[str, Any]:
    """Return package.json, its parts adding up to the metrics' bytes."""
    weights = {"embedding": 131_072, "q": 98_304, "k": 49_152, "v": 49_152, "o": 98_304}
    weights |= {"up": 393_216, "down": 393_216}
    sizes = {name: int(0.43 * count) for name, count in weights.items()}
    left = 560_000 - sum(sizes.values()) - 10_200
    parts = [
        part("header", "header", 1200, 5000, {"header": 1200}),
        *(part(n, "integers", size, weights[n], {n: size}) for n, size in sizes.items()),
        part("scales", "scales", 9000, 9100, {"q": 4000, "up": 5000}),
        part("vectors", "float16", left, left, {"attn_scale": left}),
        part("code", "code", 18_000, 60_000, {"paramgolf.errors": 500, "loader": 17_500}),
    ]
    return {"schema": 1, "parts": parts}


def part(name: str, kind: str, size: int, raw: int, shares: dict[str, int]) -> dict[str, Any]:
    """Return a part of the byte ledger."""
    sizes = {"bytes": size, "raw_bytes": raw}
    return {"name": name, "kind": kind, **sizes, "codec": "brotli", "shares": shares}
