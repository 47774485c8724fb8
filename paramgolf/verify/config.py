"""Parameters of verify."""

from __future__ import annotations

from dataclasses import dataclass

from paramgolf.schema import PositiveFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """Which limits the run is held to; units and meanings are in recipes/base.yaml."""

    enforce: bool
    train_seconds: PositiveFloat
    eval_seconds: PositiveFloat
    allow_normalisation: bool
    full_validation: bool
