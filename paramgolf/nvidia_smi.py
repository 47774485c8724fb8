"""What NVIDIA's driver tells of a machine's GPUs now, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from paramgolf.shell import output_of

FIELDS = "index,name,memory.used,memory.total,power.draw,utilization.gpu"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU now: MiB of memory, watts, per cent of the time at work; None where it does not say."""

    index: str
    name: str
    used_mib: float | None
    total_mib: float | None
    watts: float | None
    busy_percent: float | None


def gpus() -> list[Gpu]:
    """Return the machine's GPUs; none without NVIDIA's driver."""
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    lines = (output_of(command, seconds=2) or "").strip().splitlines()
    rows = ([field.strip() for field in line.split(",")] for line in lines)
    # a driver that finds no GPU may say so in a sentence
    rows = (row for row in rows if len(row) == len(FIELDS.split(",")))
    return [Gpu(index, name, *map(_number, rest)) for index, name, *rest in rows]


def _number(text: str) -> float | None:
    return float(text) if text.replace(".", "", 1).isdigit() else None
