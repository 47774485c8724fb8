"""Parameters of package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageConfig:
    """Codec and size limit of the artifact; units and meanings are in recipes/base.yaml."""

    codec: Literal["brotli", "lzma", "rans", "auto"]
    byte_shuffle: bool
    limit_bytes: int
    prune: bool

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if self.limit_bytes < 1:
            yield "limit_bytes` must be at least 1"
