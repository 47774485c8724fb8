"""What a training run leaves: the weights with their configuration, and the metrics."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from paramgolf.bits_per_byte import Tally
from paramgolf.files import write_bytes, write_json
from paramgolf.model.config import ModelConfig
from paramgolf.model.flops import peak_flops
from paramgolf.model.shapes import shapes
from paramgolf.progress import say
from paramgolf.runtime import Runtime, device_name

OUT = Path("artifacts/train")
METRICS = Path("artifacts/metrics/train.json")
SCHEMA = 1


@dataclasses.dataclass(slots=True)
class Progress:
    """How far a run has come: what its checkpoint holds beside the weights and moments."""

    step: int = 0
    tokens: int = 0
    """Trained on so far, by all processes."""
    flops: float = 0.0
    """Floating-point operations of the network that these tokens took."""
    phase: int = 0
    """Of recurrence, an index into the model's orders."""
    sizes: int = 0
    """An index into the batch sizes of the run."""
    seconds: float = 0.0
    """On the clock of training, when the checkpoint was written."""
    step_ms: list[float] = dataclasses.field(default_factory=list)


def write_model(
    model: ModelConfig, progress: Progress, weights: dict[str, Tensor], described: dict[str, Any]
) -> None:
    """Write model.safetensors and config.json; `described` are the other keys of the latter."""
    if progress.phase < len(model.recurrence):
        phase = progress.phase
        say(f"train: the budget ended in phase {phase} of recurrence; the model keeps it")
    trained, tensors = without_unreached_phases(model, progress.phase, weights)
    write_bytes(OUT / "model.safetensors", save(tensors))
    content = {"schema": SCHEMA, **described, "model": dataclasses.asdict(trained)}
    write_json(OUT / "config.json", content)


def without_unreached_phases(
    model: ModelConfig, phase: int, tensors: dict[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the configuration and the tensors of a model whose training ended in `phase`.

    Phases of recurrence that never began leave the configuration, or evaluation would run an
    order that was never trained; rows that only their repeats have leave the tensors.
    """
    config = model
    if phase < len(model.recurrence):
        kept = dataclasses.replace(model, recurrence=model.recurrence[:phase])
        config = dataclasses.replace(  # the layers that there are keep their skips and their XSA
            kept,
            skip_rows=model.skip_count,
            xsa_layers=max(0, model.xsa_layers - (model.slots - kept.slots)),
        )
    wanted = shapes(config, len(tensors["embedding"]))
    return config, {n: tensors[n][: shape[0]].contiguous() for n, shape in wanted.items()}


def metrics_of(
    progress: Progress, seconds: float, score: Tally, runtime: Runtime
) -> dict[str, Any]:
    """Return the metrics of a run that took `seconds` on its clock; docs/formats.md explains them.

    mfu is the share of the GPUs' peak arithmetic that went into the network's own operations.
    """
    name = device_name(runtime.device)
    peak = peak_flops(name)
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_seconds": seconds,
        "tokens_per_second": progress.tokens / seconds if seconds else 0.0,
        "step_ms_median": statistics.median(progress.step_ms) if progress.step_ms else 0.0,
        "peak_memory_bytes": peak_memory(runtime.device),
        "mfu": progress.flops / seconds / peak / runtime.world if peak and seconds else None,
        "val_bpb": score.bits_per_byte,
        "val_loss": score.loss,
        "world_size": runtime.world,
        "device": name,
        "torch": torch.__version__,
    }


def peak_memory(device: torch.device) -> int:
    """Return the most memory in use so far, bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # POSIX only

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
