"""The artifact as it will be shipped: the model and the code that decodes it, measured together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paramgolf.codec.byte_ledger import Part
from paramgolf.codec.config import PackageConfig
from paramgolf.codec.writer import Memo, encode
from paramgolf.packing.code import PackedCode, pack_code


@dataclass(frozen=True, slots=True)
class Artifact:
    """The bytes of model.bin, their parts, and the code."""

    model: bytes
    parts: list[Part]
    code: PackedCode

    @property
    def bytes(self) -> int:
        """Bytes of both files."""
        return len(self.model) + self.code.part.bytes


class Packer:
    """Packs tensors again and again; what does not change is compressed once.

    `config` is what quantize wrote into config.json, `params` what is frozen into the code. Where a
    decoder for rans would cost more code than it saves, codec `auto` does without.
    """

    def __init__(
        self, config: dict[str, Any], params: dict[str, Any], options: PackageConfig
    ) -> None:
        self.config, self.params, self.options = config, params, options
        self.memo: Memo = {}
        self.codes: dict[bool, PackedCode] = {}

    def pack(self, tensors: dict[str, Tensor]) -> Artifact:
        """Return the smallest artifact."""
        artifacts = [self._pack(tensors, without_rans=False)]
        if self.options.codec == "auto":
            artifacts.append(self._pack(tensors, without_rans=True))
        return min(artifacts, key=lambda artifact: artifact.bytes)

    def _pack(self, tensors: dict[str, Tensor], *, without_rans: bool) -> Artifact:
        model, parts = encode(
            tensors, self.config, self.options, self.memo, without_rans=without_rans
        )
        rans = any(part.codec == "rans" for part in parts)
        if rans not in self.codes:
            self.codes[rans] = pack_code(self.params, rans=rans)
        return Artifact(model, parts, self.codes[rans])
