"""What a schema finds wrong with a configuration, for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from paramgolf.schema import Fault, convert


def faults_of(config: Any) -> list[str]:
    """Return the faults of a dataclass's values, by its ranges and by what they are together."""
    faults: list[Fault] = []
    convert(type(config), dataclasses.asdict(config), "", faults)
    return [f"`{name}` {text}" for name, text in faults]
