"""Parameters of package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paramgolf.schema import Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageConfig:
    """Codec and size limit of the artifact; units and meanings are in recipes/base.yaml."""

    codec: Literal["brotli", "lzma", "rans", "auto"]
    limit_bytes: Positive
    prune: bool
