"""Parameters of verify, and the machine that the contest runs on."""

from __future__ import annotations

from dataclasses import dataclass

from paramgolf.schema import PositiveFloat

CONTEST_GPU, CONTEST_GPUS = "H100", 8


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """Which limits the run is held to; units and meanings are in recipes/base.yaml."""

    enforce: bool
    train_seconds: PositiveFloat
    eval_seconds: PositiveFloat
    allow_normalisation: bool
    full_validation: bool
    guard_training: bool
