"""Parameters of the machine, apart from `runtime`: commands that only read them need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from paramgolf.schema import Range

Processes = Annotated[int, Range(0, 1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """What processes run on and how they compute; train_gpt.py has these as options."""

    device: Literal["auto", "cpu", "cuda"]
    processes: Processes
    attention: Literal["auto", "fa3", "fa4", "cudnn", "sdpa"]
    kernels: Literal["auto", "reference", "fused"]
    compile: Literal["auto", "on", "off"]
    deterministic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig(ProcessConfig):
    """Facts of the machine, which no stage's result depends on; see recipes/base.yaml."""

    workers: Processes
    mirror: str | None
    live_plots: bool
