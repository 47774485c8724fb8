"""Write model.bin: quantized tensors in, the container's bytes and a ledger of them out."""

from __future__ import annotations

import hashlib
import json
import lzma
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import brotli
from torch import Tensor

from paramgolf.apart import run_apart
from paramgolf.codec import rans_writer
from paramgolf.codec.byte_ledger import Kind, Part, apportion
from paramgolf.codec.codecs import LZMA_FILTERS, Codec, shuffle
from paramgolf.codec.container import (
    CODE_BITS,
    DIGEST_FROM,
    MAGIC,
    PREFIX,
    VERSION,
    Header,
    completed,
    refuse_too_much_work,
)
from paramgolf.codec.rans_writer import encodable
from paramgolf.errors import ParamGolfError
from paramgolf.model.config import OFF
from paramgolf.process import cores
from paramgolf.progress import say
from paramgolf.schema import parse

CANDIDATES: dict[str, tuple[Codec, ...]] = {
    "brotli": ("brotli",),
    "lzma": ("lzma",),
    "rans": ("rans", "brotli"),
    "auto": ("brotli", "lzma", "rans"),
}
SMALL = 2**16  # integers; above, rans was always smaller than brotli, in a tenth of its time
APART = 2**20  # integers; above, rans takes seconds, and each tensor gets a process of its own
# compressed streams, by codec, shape and the SHA-256 of the raw ones
Memo = dict[tuple[Codec, tuple[int, ...], bytes], bytes]


@dataclass(frozen=True, slots=True)
class Stream:
    """Tensors that are compressed together."""

    name: str
    kind: Kind
    names: tuple[str, ...]
    raw: bytes
    shuffled: bool
    shape: tuple[int, ...] = ()  # of integers that are one tensor


def encode(
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    codec: str,
    memo: Memo | None = None,
    *,
    without_rans: bool = False,
) -> tuple[bytes, list[Part]]:
    """Return the bytes of model.bin and its parts, whose bytes add up to them.

    `tensors` and `config` are what quantize wrote (model.safetensors, config.json). The same input
    gives the same bytes. `codec` is package.codec. With `auto` each stream takes the codec that
    makes it smallest. With `rans` a stream of more than SMALL integers takes rans, a shorter one
    the smaller of rans and brotli. Only integers can take rans; `without_rans` nothing does.
    `memo` keeps compressed streams for callers that encode almost the same tensors again.
    """
    streams = _streams(tensors)
    codecs = [_codecs(stream, codec, without_rans=without_rans) for stream in streams]
    packed = _compress(streams, codecs, {} if memo is None else memo)
    content = _header_content(streams, packed, tensors, config)
    # by the decoder's own rules, so that nothing unreadable is written
    of = "the model, which no decoder would take"
    fix = "change model.* or quantize.*; docs/container.md says what a decoder checks"
    header = parse(Header, completed(content), "", of=of, fix=fix)
    try:
        refuse_too_much_work(header, [data for _, data in packed])
    except ParamGolfError:
        if without_rans or all(taken != "rans" for taken, _ in packed):
            raise
        say("package: with codec rans decoding would take too long; going on without it")
        return encode(tensors, config, codec, memo, without_rans=True)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    compressed = zlib.compress(text, 9)
    body = len(compressed).to_bytes(4, "little") + compressed
    body += b"".join(data for _, data in packed)
    prefix = PREFIX.pack(MAGIC, VERSION, hashlib.sha256(body).digest(), 0)[:DIGEST_FROM]
    sizes = PREFIX.size + len(compressed), PREFIX.size + len(text)
    parts = [Part("header", "header", *sizes, "zlib", {"header": sizes[0]})]
    for stream, (taken, data) in zip(streams, packed, strict=True):
        parts.append(_part(stream, tensors, taken, len(data)))
    return prefix + body, parts


def _header_content(
    streams: list[Stream],
    packed: list[tuple[Codec, bytes]],
    tensors: dict[str, Tensor],
    config: dict[str, Any],
) -> dict[str, Any]:
    """Return container.Header as JSON has it; options of the model that are off are left out."""
    # a caller's tuples become lists, so that they compare equal to those of OFF
    model = json.loads(json.dumps(config["model"]))
    return {
        "model": {k: v for k, v in model.items() if k not in OFF or v != OFF[k]},
        "vocab_size": config["vocab_size"],
        "sequence_length": config["sequence_length"],
        "streams": [
            {
                "codec": codec,
                "shuffled": stream.shuffled,
                "bytes": len(data),
                "raw_bytes": len(stream.raw),
            }
            for stream, (codec, data) in zip(streams, packed, strict=True)
        ],
        "tensors": [
            {
                "name": name,
                "dtype": str(tensors[name].dtype).removeprefix("torch."),
                "shape": list(tensors[name].shape),
                "bits": _bits(name, config["quantize"]["bits"]),
                "stream": i,
            }
            for i, stream in enumerate(streams)
            for name in stream.names
        ],
    }


def _streams(tensors: dict[str, Tensor]) -> list[Stream]:
    """Group tensors: integers each alone, codes, scales, other float16; in the order of names."""
    names = sorted(tensors)
    integers = [name for name in names if name.endswith(".integers")]
    codes = tuple(name for name in names if name.rpartition(".")[2] in CODE_BITS)
    scales = tuple(name for name in names if name.endswith("scales"))
    others = tuple(name for name in names if name not in {*integers, *codes, *scales})
    streams = [
        Stream(n, "integers", (n,), _raw(tensors, (n,)), False, tuple(tensors[n].shape))
        for n in integers
    ]
    if codes:
        streams.append(Stream("codes", "integers", codes, _raw(tensors, codes), False))
    streams.append(Stream("scales", "scales", scales, shuffle(_raw(tensors, scales)), True))
    streams.append(Stream("vectors", "float16", others, shuffle(_raw(tensors, others)), True))
    return streams


def _raw(tensors: dict[str, Tensor], names: tuple[str, ...]) -> bytes:
    arrays = (tensors[name].contiguous().numpy() for name in names)
    return b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)


def _codecs(stream: Stream, codec: str, *, without_rans: bool) -> list[Codec]:
    possible = not without_rans and encodable(stream.shape)
    if possible and codec == "rans" and len(stream.raw) > SMALL:
        return ["rans"]
    return [one for one in CANDIDATES[codec] if one != "rans" or possible]


def _compress(
    streams: list[Stream], codecs: list[list[Codec]], memo: Memo
) -> list[tuple[Codec, bytes]]:
    """Return for each stream its data in the codec that makes it smallest (the first of equals)."""
    keys = [
        [(codec, stream.shape, hashlib.sha256(stream.raw).digest()) for codec in row]
        for stream, row in zip(streams, codecs, strict=True)
    ]
    raws = {key: s.raw for s, row in zip(streams, keys, strict=True) for key in row}
    todo = [key for key in raws if key not in memo]
    # brotli and lzma let go of the interpreter's lock; rans, which is Python, has processes
    with ThreadPoolExecutor(cores()) as pool:
        results = pool.map(lambda key: compress(key[0], raws[key], key[1]), todo)
        memo.update(zip(todo, results, strict=True))
    return [min(((key[0], memo[key]) for key in row), key=lambda one: len(one[1])) for row in keys]


def compress(codec: Codec, raw: bytes, shape: tuple[int, ...] = ()) -> bytes:
    """Compress at the codec's highest effort; brotli with its largest standard window, 16 MiB.

    Only rans reads the `shape` of the integers.
    """
    if codec == "rans":
        return _encode_apart(raw, shape) if len(raw) > APART else rans_writer.encode(raw, shape)
    if codec == "brotli":
        data: bytes = brotli.compress(raw, quality=11, lgwin=24)
        return data
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=LZMA_FILTERS)


def _encode_apart(raw: bytes, shape: tuple[int, ...]) -> bytes:
    data = run_apart(rans_writer.__name__, *map(str, shape), data=raw)
    return rans_writer.encode(raw, shape) if data is None else data


def _bits(name: str, bits: dict[str, int]) -> int | None:
    base, _, kind = name.rpartition(".")
    return bits[base] if kind == "integers" else CODE_BITS.get(kind)


def _part(stream: Stream, tensors: dict[str, Tensor], codec: Codec, size: int) -> Part:
    raw = {name: tensors[name].numel() * tensors[name].element_size() for name in stream.names}
    name = stream.name.removesuffix(".integers")
    return Part(name, stream.kind, size, len(stream.raw), codec, apportion(size, raw))
