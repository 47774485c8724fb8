"""model.bin, the container of a packed model, as the decoder reads it: see docs/container.md.

Nothing in the file is trusted: the checksum comes first, every number is checked before it is used,
and what is allocated is bounded before anything is decompressed.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paramgolf.codec.codecs import Codec, decompress, unshuffle, work
from paramgolf.codec.dequantize import restore
from paramgolf.errors import ParamGolfError
from paramgolf.files import file_size, parse_json
from paramgolf.model.config import OFF, ModelConfig
from paramgolf.model.shapes import shapes
from paramgolf.schema import Fault, parse

MAGIC = b"\x89PGOLF\r\n"  # not text, and damaged by anything that translates line ends
VERSION = 3
PREFIX = struct.Struct("<8sI32sI")  # magic, version, SHA-256 of all that follows it, header bytes
DIGEST_FROM = 44  # where the bytes that the SHA-256 covers begin: after itself
MAX_HEADER_BYTES = 2**16
# What a forged file with a right checksum may ask for: 256 MiB of float32, with all that decoding
# needs besides less than 1 GiB, and 10 s of one core. Sixteen million bytes hold a few tens of
# millions of weights, which take half of the work.
MAX_WEIGHTS = 2**26
MAX_FILE_BYTES = 2 * MAX_WEIGHTS + 2**20  # all weights as float16, uncompressed
MAX_WORK = 800_000_000  # in units of codecs.work
MAX_RANK = 64
ITEM_BYTES = {"int8": 1, "float16": 2}
CODE_BITS = {"finer": 7, "left": 2, "right": 4}  # parts of a parameter beside its integers
FIX = "pack the model again: `dvc repro -f -s package`"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEntry:
    """A run of compressed bytes: the tensors that name it, one after another."""

    codec: Codec
    shuffled: bool
    bytes: int
    raw_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A stored tensor; `bits` is the width of integers, null for float16."""

    name: str
    dtype: Literal["int8", "float16"]
    shape: tuple[int, ...]
    bits: int | None
    stream: int

    @property
    def raw_bytes(self) -> int:
        """Bytes before compression."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The JSON header: what the model is, and where its tensors are."""

    model: ModelConfig
    vocab_size: int
    sequence_length: int
    streams: tuple[StreamEntry, ...]
    tensors: tuple[TensorEntry, ...]

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together, without allocating anything."""
        if not 1 <= self.vocab_size <= 2**16 or self.sequence_length < 1:
            yield "vocab_size", "must lie in 1..65536 and `sequence_length` be at least 1"
            return
        parameters = shapes(self.model, self.vocab_size)
        if sum(math.prod(shape) for shape in parameters.values()) > MAX_WEIGHTS:
            yield "model", f"has more than {MAX_WEIGHTS} parameters"
        stored = {entry.name: entry for entry in self.tensors}
        if len(stored) < len(self.tensors):
            yield "tensors", "names a tensor twice"
        expected = dict(expected_tensors(parameters, stored))
        for name in sorted(expected.keys() | stored.keys()):
            found = stored.get(name)
            if found is None or (found.dtype, found.shape) != expected.get(name):
                yield "tensors", f"must hold {name} as {expected.get(name)}, found {found}"
            elif found.bits not in possible_bits(found):
                words = " or ".join(str(bits) for bits in possible_bits(found))
                yield "tensors", f"must give {words} as bits of {name}, found {found.bits}"
        yield from self._stream_faults()

    def correction_work(self) -> int:
        """Return what low-rank corrections take: multiplications, of which 4 are a unit."""
        stored = {entry.name: entry.shape for entry in self.tensors}
        sizes = (
            math.prod(shape) * stored[f"{name.removesuffix('left')}right"][-1]
            for name, shape in stored.items()
            if name.endswith(".left")
        )
        return sum(sizes) // 4

    def _stream_faults(self) -> Iterator[Fault]:
        sizes = [0] * len(self.streams)
        for entry in self.tensors:
            if not 0 <= entry.stream < len(sizes):
                yield "tensors", f"names stream {entry.stream} of {len(sizes)}"
                return
            sizes[entry.stream] += entry.raw_bytes
        for i, (stream, size) in enumerate(zip(self.streams, sizes, strict=True)):
            if stream.raw_bytes != size or stream.bytes < 0 or (stream.shuffled and size % 2):
                yield f"streams.{i}", f"must hold the {size} bytes of its tensors, found {stream}"


class Package(NamedTuple):
    """A model as the evaluators load it; `state` is float32, integers times scales done."""

    model: ModelConfig
    vocab_size: int
    sequence_length: int
    state: dict[str, Tensor]


def possible_bits(entry: TensorEntry) -> tuple[int | None, ...]:
    """Return the bits that a tensor may have."""
    if entry.dtype == "float16":
        return (None,)
    kind = entry.name.rpartition(".")[2]
    return (CODE_BITS[kind],) if kind in CODE_BITS else tuple(range(2, 9))


def load_package(path: str | Path) -> Package:
    """Read model.bin and return the model that it holds, on the CPU.

    A missing, damaged, cut or malformed file is a ParamGolfError.
    """
    header, tensors = read_container(path)
    state = dequantized(tensors)
    names = shapes(header.model, header.vocab_size)
    ordered = {name: state[name] for name in names}
    return Package(header.model, header.vocab_size, header.sequence_length, ordered)


def dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 parameters: restored ones from their parts, and float16 ones as they are."""
    state = {}
    for name, tensor in tensors.items():
        base, _, kind = name.partition(".")
        if kind == "integers":
            state[base] = restore(tensors, base)
        elif not kind:
            state[base] = tensor.float()
    return state


def expected_tensors(
    parameters: dict[str, tuple[int, ...]], stored: dict[str, TensorEntry]
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yield (name, (dtype, shape)) of what must be stored, given which parts are."""
    for name, shape in parameters.items():
        if f"{name}.integers" in stored:
            yield f"{name}.integers", ("int8", shape)
            yield f"{name}.scales", ("float16", shape[:-1])
            if len(shape) > 1 and min(shape) > 0:
                yield from _expected_extras(name, (1, *shape)[-3:], stored)
        else:
            yield name, ("float16", shape)


def _expected_extras(
    name: str, shape: tuple[int, ...], stored: dict[str, TensorEntry]
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yield the finer groups and corrections; their own sizes are free within bounds."""
    layers, rows, columns = shape

    def size(key: str, most: int) -> int:
        found = stored[key].shape[-1:] if key in stored else ()
        return found[0] if found and 1 <= found[0] <= most else 1

    def groups(key: str) -> int:
        found = size(key, columns)
        return found if columns % found == 0 else 1

    if f"{name}.finer" in stored:
        yield f"{name}.finer", ("int8", (layers, groups(f"{name}.finer")))
    for key in (f"{name}.{layer}" for layer in range(layers)):
        if f"{key}.left" in stored:
            rank = size(f"{key}.left", MAX_RANK)
            yield f"{key}.left", ("int8", (rows, rank))
            yield f"{key}.left_scales", ("float16", (rank,))
            yield f"{key}.right", ("int8", (rank, columns))
            yield f"{key}.right_scales", ("float16", (rank, groups(f"{key}.right_scales")))


def read_container(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """Return the header and the stored tensors (int8 and float16) of a model.bin."""
    path = Path(path)
    size = file_size(path, fix=FIX)
    try:
        if size > MAX_FILE_BYTES:
            raise ParamGolfError(f"larger than any model.bin: {size} bytes")
        return decode(path.read_bytes())
    except ParamGolfError as error:
        raise ParamGolfError(
            "model.bin cannot be decoded", where=path, found=error, fix=FIX
        ) from None


def decode(content: bytes) -> tuple[Header, dict[str, Tensor]]:
    """Return the header and the stored tensors of a container's bytes."""
    header, start = _read_header(content)
    parts: list[bytes] = []
    for stream in header.streams:
        parts.append(content[start : start + stream.bytes])
        start += stream.bytes
    refuse_too_much_work(header, parts)
    tensors: dict[str, Tensor] = {}
    for i, (stream, data) in enumerate(zip(header.streams, parts, strict=True)):
        raw = decompress(stream.codec, data, stream.raw_bytes)
        entries = [entry for entry in header.tensors if entry.stream == i]
        tensors |= _split(unshuffle(raw) if stream.shuffled else raw, entries)
    return header, tensors


def refuse_too_much_work(header: Header, parts: Sequence[bytes]) -> None:
    """Refuse what would take a decoder much longer than any model of use; nothing is decoded."""
    total = header.correction_work()
    for stream, data in zip(header.streams, parts, strict=True):
        total += work(stream.codec, data, stream.raw_bytes)
    if total > MAX_WORK:
        raise ParamGolfError("decoding would take too long", expected=MAX_WORK, found=total)


def _read_header(content: bytes) -> tuple[Header, int]:
    """Return the header, and where the streams begin."""
    if len(content) < PREFIX.size:
        raise ParamGolfError("not a model.bin: too short", found=f"{len(content)} bytes")
    magic, version, digest, length = PREFIX.unpack_from(content)
    if (magic, version) != (MAGIC, VERSION):
        expected = f"{MAGIC!r}, version {VERSION}"
        raise ParamGolfError(
            "not a model.bin", expected=expected, found=f"{magic!r}, version {version}"
        )
    if hashlib.sha256(memoryview(content)[DIGEST_FROM:]).digest() != digest:
        raise ParamGolfError("the checksum does not fit: the file is damaged or cut short")
    start = PREFIX.size + length
    if start > len(content):
        raise ParamGolfError("the header is longer than the file")
    header = _parse_header(content[PREFIX.size : start])
    total = start + sum(stream.bytes for stream in header.streams)
    if total != len(content):
        raise ParamGolfError("the streams do not fill the file", expected=total, found=len(content))
    return header, start


def _parse_header(compressed: bytes) -> Header:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(compressed, MAX_HEADER_BYTES)
        if not inflate.eof or inflate.unused_data:
            raise ParamGolfError("the header is cut short, too long or followed by something")
        content = parse_json(text.decode(), most=2 * MAX_WEIGHTS)
    except (zlib.error, ValueError) as error:
        raise ParamGolfError("the header is damaged", found=error) from None
    return parse(Header, completed(content), "", of="the header")


def completed(content: Any) -> Any:
    """Return a header's JSON with the keys that its `model` leaves out because they are off."""
    if not isinstance(content, dict) or not isinstance(model := content.get("model"), dict):
        return content
    if unknown := sorted(model.keys() - ModelConfig.__dataclass_fields__.keys()):
        listing = ", ".join(f"model.{key[:60]}" for key in unknown[:5])
        raise ParamGolfError("a key that this version of paramgolf does not know", found=listing)
    return {**content, "model": {**OFF, **model}}


def _split(raw: bytes, entries: list[TensorEntry]) -> dict[str, Tensor]:
    """Cut a stream's bytes into its tensors, and check their values."""
    tensors, start = {}, 0
    for entry in entries:
        stop = start + entry.raw_bytes
        kind = "<f2" if entry.dtype == "float16" else "i1"
        values = np.frombuffer(raw[start:stop], dtype=kind).astype(entry.dtype)
        tensor = torch.from_numpy(values).view(entry.shape)
        _check_values(entry, tensor)
        tensors[entry.name] = tensor
        start = stop
    return tensors


def _check_values(entry: TensorEntry, tensor: Tensor) -> None:
    if tensor.numel() == 0:
        return
    if entry.bits is not None:
        maximum = 2 ** (entry.bits - 1) - 1
        corrects = entry.name.endswith((".left", ".right"))  # these alone use the lowest value
        if int(tensor.min()) < -maximum - corrects or int(tensor.max()) > maximum:
            raise ParamGolfError(f"{entry.name} leaves the range of {entry.bits} bits")
    elif not tensor.isfinite().all():
        raise ParamGolfError(f"{entry.name} holds values that are not finite")
    elif entry.name.endswith("scales") and float(tensor.min()) <= 0:
        raise ParamGolfError(f"{entry.name} holds a scale that is not positive")
