"""The artifact as it will be shipped: the model and the code that decodes it, measured together."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paramgolf.apart import run_apart
from paramgolf.codec.byte_ledger import Part
from paramgolf.codec.config import PackageConfig
from paramgolf.codec.writer import CANDIDATES, Memo, encode
from paramgolf.packing import code
from paramgolf.packing.code import PackedCode, pack_code


@dataclass(frozen=True, slots=True)
class Artifact:
    """The bytes of model.bin, their parts, and the code, which may not be packed yet."""

    model: bytes
    parts: list[Part]
    packing: Future[PackedCode]

    @property
    def code(self) -> PackedCode:
        """Wait for the code."""
        return self.packing.result()

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
        self.codes: dict[bool, Future[PackedCode]] = {}
        self._pool = ThreadPoolExecutor()

    def pack(self, tensors: dict[str, Tensor]) -> Artifact:
        """Return the smallest artifact."""
        artifact = self._pack(tensors, without_rans=False)
        if self.options.codec != "auto":
            return artifact
        other = self._pack(tensors, without_rans=True)
        return min(artifact, other, key=lambda one: one.bytes)

    def _pack(self, tensors: dict[str, Tensor], *, without_rans: bool) -> Artifact:
        codec, memo = self.options.codec, self.memo
        self._code(rans="rans" in CANDIDATES[codec] and not without_rans)  # as is likely
        model, parts = encode(tensors, self.config, codec, memo, without_rans=without_rans)
        return Artifact(model, parts, self._code(rans=any(part.codec == "rans" for part in parts)))

    def _code(self, *, rans: bool) -> Future[PackedCode]:
        if rans not in self.codes:
            self.codes[rans] = self._pool.submit(_pack_apart, self.params, rans=rans)
        return self.codes[rans]


def _pack_apart(params: dict[str, Any], *, rans: bool) -> PackedCode:
    """Return what `pack_code` does, which takes seconds, by a process of its own."""
    data = run_apart(code.__name__, data=json.dumps([params, rans]).encode())
    if data is None:
        return pack_code(params, rans=rans)
    content, part = json.loads(data)
    return PackedCode(content.encode("latin-1"), Part(**part))
