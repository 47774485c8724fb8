"""A trained model as calibrate and quantize read it: weights, configuration, families."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from paramgolf.errors import ParamGolfError
from paramgolf.files import file_size
from paramgolf.model.config import ModelConfig
from paramgolf.model.head import Mask
from paramgolf.model.shapes import Shape, shapes
from paramgolf.schema import Natural, Positive, read_record

TRAIN_PATH = Path("artifacts/train")
SCHEMA = 1
FIX = "make it with `dvc repro train`"

# Matrices that read the same input share its Hessian. They are solved together, their rows stacked.
# The embedding is a family too: as the head it makes logits of the last layer's output.
FAMILIES = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "up": ("up",),
    "down": ("down",),
    "embedding": ("embedding",),
}
# among the Hessians of calibrate: sequences that they saw, and before the name of a field of Mask
TEXTS, MASK = "texts", "mask."
SENSITIVITY = ".sensitivity"  # follows the name of a parameter, among the Hessians of calibrate


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """config.json of a trained model."""

    schema: Natural
    vocab_size: Positive
    sequence_length: Positive
    seed: Natural
    model: ModelConfig
    token_mask: bool = False
    """Of the training loss; configurations of before it was known do not say."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model; `state` is float32, named and shaped as paramgolf.model.shapes says."""

    model: ModelConfig
    vocab_size: int
    sequence_length: int
    state: dict[str, Tensor]
    config: dict[str, Any]  # what config.json says, to be handed on
    mask: Mask | None = None  # that it was trained under

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.config["seed"])

    @property
    def token_mask(self) -> bool:
        """The training loss left out what the tokenizer never writes."""
        return bool(self.config.get("token_mask", False))


def load_trained(folder: str | Path = TRAIN_PATH) -> Trained:
    """Read config.json and model.safetensors; the tensors must be those of the configuration."""
    config = read_record(Described, Path(folder) / "config.json", version=SCHEMA, fix=FIX)
    path = Path(folder) / "model.safetensors"
    state = load_tensors(path, fix=FIX, types=(torch.float32,))
    expected = shapes(config.model, config.vocab_size)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        raise ParamGolfError(
            "the weights do not fit their configuration",
            where=folder,
            expected=_differences(expected, found),
            found=_differences(found, expected),
            fix=FIX,
        )
    return Trained(
        config.model, config.vocab_size, config.sequence_length, state, dataclasses.asdict(config)
    )


def stacked(tensor: Tensor) -> Tensor:
    """Return a parameter as a stack of matrices [layers, out, in]; the embedding is one layer."""
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(0)


def load_tensors(
    path: str | Path, *, fix: str, types: Sequence[torch.dtype] | None = None
) -> dict[str, Tensor]:
    """Read a safetensors file, whose tensors are of `types`; None: of any.

    A missing or damaged one is a ParamGolfError that suggests `fix`.
    """
    file_size(path, fix=fix)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ParamGolfError("not a safetensors file", where=path, found=error, fix=fix) from None
    for name, tensor in tensors.items():
        if types is not None and tensor.dtype not in types:
            raise ParamGolfError(
                "a tensor of another type",
                where=f"{path}, {name}",
                expected=" or ".join(map(str, types)),
                found=tensor.dtype,
                fix=fix,
            )
    return tensors


def _differences(ours: dict[str, Shape], theirs: dict[str, Shape]) -> str:
    parts = [f"{name} {shape}" for name, shape in ours.items() if theirs.get(name) != shape]
    return ", ".join(parts) or "nothing more"
