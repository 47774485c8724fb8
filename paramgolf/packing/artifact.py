"""The artifact as it will be shipped: the model and the code that decodes it, measured together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paramgolf.codec.byte_ledger import Part
from paramgolf.codec.config import PackageConfig
from paramgolf.codec.writer import CANDIDATES, Memo, encode
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
        # the code takes seconds of this process, and large integers those of others
        likely = "rans" in CANDIDATES[self.options.codec] and not without_rans
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._code, rans=likely)
            codec, memo = self.options.codec, self.memo
            model, parts = encode(tensors, self.config, codec, memo, without_rans=without_rans)
        rans = any(part.codec == "rans" for part in parts)
        return Artifact(model, parts, self._code(rans=rans))

    def _code(self, *, rans: bool) -> PackedCode:
        if rans not in self.codes:
            self.codes[rans] = pack_code(self.params, rans=rans)
        return self.codes[rans]
