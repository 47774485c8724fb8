"""Pack a quantized model and its code, read the artifact back, and count every byte of it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramgolf.codec.byte_ledger import Part
from paramgolf.codec.config import PackageConfig
from paramgolf.codec.container import read_container
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_bytes, write_json
from paramgolf.metrics import file_hashes
from paramgolf.packing.artifact import Packer
from paramgolf.packing.code import frozen_params
from paramgolf.packing.prune import prune
from paramgolf.progress import say
from paramgolf.quant.trained import SCHEMA as DESCRIBED
from paramgolf.quant.trained import Described, load_tensors
from paramgolf.schema import Positive, read_record
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.training.config import TrainConfig

QUANTIZE_PATH = Path("artifacts/quantize")
OUT_PATH = Path("artifacts/package")
METRICS_PATH = Path("artifacts/metrics/package.json")
SCHEMA = 1
NAMED = 5  # how many of the largest parts the log names when the artifact does not fit
FIX = "make it with `dvc repro quantize`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How quantize stored the parameters."""

    bits: dict[str, Positive]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized(Described):
    """config.json of a quantized model."""

    quantize: Stored


def package(
    config: PackageConfig, training: TrainConfig, sliding: SlidingConfig, adapt: TttConfig
) -> None:
    """Write model.bin, train_gpt.py and package.json (artifacts/package) and the stage's metrics.

    An artifact above the limit is written all the same, with `fits` false: verify is the gate.
    """
    start = time.perf_counter()
    path = QUANTIZE_PATH / "model.safetensors"
    tensors = load_tensors(path, fix=FIX, types=(torch.int8, torch.float16))
    config_path = QUANTIZE_PATH / "config.json"
    described = asdict(read_record(Quantized, config_path, version=DESCRIBED, fix=FIX))
    params = frozen_params(described["model"], training, sliding, adapt)
    packer = Packer(described, params, config)
    artifact, pruning = packer.pack(tensors), None
    if config.prune:
        pruned = prune(tensors, lambda trial: packer.pack(trial).bytes, config.limit_bytes)
        tensors, pruning = pruned.tensors, asdict(pruned.record)
        artifact = packer.pack(tensors)
    write_bytes(OUT_PATH / "model.bin", artifact.model)
    check_round_trip(OUT_PATH / "model.bin", tensors)  # while the code is packed
    write_bytes(OUT_PATH / "train_gpt.py", artifact.code.content)
    totals = count(artifact.parts, artifact.code.part, config.limit_bytes)
    parts = [*sorted(artifact.parts, key=lambda part: -part.bytes), artifact.code.part]
    ledger: dict[str, Any] = {
        "schema": SCHEMA,
        "parts": [asdict(part) for part in parts],
        "sha256": {
            "model.bin": hashlib.sha256(artifact.model).hexdigest(),
            "train_gpt.py": hashlib.sha256(artifact.code.content).hexdigest(),
        },
        "prune": pruning,
        **totals,
    }
    write_json(OUT_PATH / "package.json", ledger)
    files = {
        "read": file_hashes(QUANTIZE_PATH / name for name in ("model.safetensors", "config.json")),
        "wrote": file_hashes(OUT_PATH / name for name in (*ledger["sha256"], "package.json")),
    }
    write_json(METRICS_PATH, {**totals, **files, "seconds": time.perf_counter() - start})
    _log(totals, parts)


def check_round_trip(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read model.bin from disk; every integer, scale and vector must be as it was.

    A ParamGolfError where the file breaks its format, as with integers beyond their bits.
    """
    try:
        _, stored = read_container(path)
    except ParamGolfError as error:
        what, where = "what was packed cannot be read back", QUANTIZE_PATH / "model.safetensors"
        fix = "that file may be damaged: make it again with `dvc repro -f -s quantize`"
        raise ParamGolfError(what, where=where, found=error, fix=fix) from None
    assert stored.keys() == tensors.keys(), stored.keys() ^ tensors.keys()
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype, name
        assert torch.equal(stored[name], tensor), name


def count(parts: list[Part], code: Part, limit_bytes: int) -> dict[str, Any]:
    """Return the sizes of the files, by the sums of their parts, against the limit."""
    bytes_model = sum(part.bytes for part in parts)
    total = bytes_model + code.bytes
    return {
        "bytes_model": bytes_model,
        "bytes_code": code.bytes,
        "bytes_total": total,
        "limit_bytes": limit_bytes,
        "headroom_bytes": limit_bytes - total,
        "fits": total <= limit_bytes,
    }


def _log(totals: dict[str, Any], parts: list[Part]) -> None:
    sizes = "{bytes_model:,} of weights + {bytes_code:,} of code = {bytes_total:,} bytes"
    say(f"package: {sizes.format(**totals)}; limit {totals['limit_bytes']:,}")
    if not totals["fits"]:
        largest = ", ".join(f"{part.name} {part.bytes:,}" for part in parts[:NAMED])
        say(f"package: does NOT fit, {-totals['headroom_bytes']:,} bytes too many; {largest}")
