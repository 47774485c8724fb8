"""Mutants of model.bin with right checksums, so that the checks behind the checksum are reached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import brotli
import torch

from paramgolf.codec.container import DIGEST_FROM, MAGIC, PREFIX, VERSION, decode, dequantized
from paramgolf.codec.rans import HEADER
from paramgolf.codec.writer import encode
from paramgolf.errors import ParamGolfError
from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, shapes
from paramgolf.params import load_params

PARAMS = Path(__file__).parents[1] / "params.yaml"
VOCAB = 64
CODECS = ("brotli", "lzma", "rans")
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 4096, 2**16, 2**20, 2**26, 2**27, 2**31, 2**63)
OTHERS = (
    0.5,
    -1.5,
    1e-308,
    1e38,
    1e308,
    "",
    "x",
    "lanes",
    "rans",
    "lzma",
    None,
    True,
    [],
    {},
    [[]],
)
Json = Any


def mutant(number: int) -> bytes:
    """Return mutant `number` of a valid file, always the same."""
    rng = random.Random(number)
    header, streams = parts_of(valid_file(rng.choice(CODECS)))
    kind = rng.choice((change_values, change_values, change_text, change_streams, lay_out, grow))
    return kind(rng, header, streams)


def read(content: bytes) -> str:
    """Read a model.bin as the evaluators do; return what came of it, in a word or two."""
    try:
        header, tensors = decode(content)
        state = dequantized(tensors)
    except ParamGolfError:
        return "refused"
    assert state.keys() == shapes(header.model, header.vocab_size).keys()
    del tensors
    for name, tensor in state.items():
        least, most = tensor.aminmax() if tensor.numel() else (torch.zeros(()), torch.zeros(()))
        assert bool(least.isfinite() & most.isfinite()), f"{name} is not finite"
    return "the same weights" if digest(state) in known_digests() else "other weights"


@cache
def valid_file(codec: str) -> bytes:
    """Return a model.bin of a codec, with finer groups and corrections."""
    sample = load_params(ModelConfig, "model", PARAMS)
    narrow = {"width": 32, "heads": 4, "kv_heads": 2, "rope_dims": 4}
    # more integers than that rans takes in any case
    model = dataclasses.replace(sample, **narrow, mlp_hidden=512 if codec == "rans" else 64)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in shapes(model, VOCAB).items():
        values = torch.randn(shape, generator=generator)
        if name in (*MATRICES, "embedding"):
            tensors[f"{name}.integers"] = (2.4 * values).round().clamp(-31, 31).to(torch.int8)
            tensors[f"{name}.scales"] = torch.full(shape[:-1], 0.01).half()
        else:
            tensors[name] = values.half()
    layers, _, columns = tensors["down.integers"].shape
    tensors["up.finer"] = torch.full((layers, 4), 5, dtype=torch.int8)
    tensors["down.1.left"] = torch.ones(model.width, 2, dtype=torch.int8)
    tensors["down.1.right"] = torch.ones(2, columns, dtype=torch.int8)
    tensors["down.1.left_scales"] = torch.ones(2).half()
    tensors["down.1.right_scales"] = torch.ones(2, 4).half()
    config = {"model": json.loads(json.dumps(dataclasses.asdict(model))), "vocab_size": VOCAB}
    bits = dict.fromkeys((*MATRICES, "embedding"), 6)
    config |= {"sequence_length": 32, "quantize": {"bits": bits}}
    return encode(tensors, config, codec)[0]


@cache
def known_digests() -> frozenset[str]:
    """Return the digests of the weights of the valid files."""
    return frozenset(digest(dequantized(decode(valid_file(codec))[1])) for codec in CODECS)


def digest(state: dict[str, torch.Tensor]) -> str:
    """Return a hash of names, shapes and weights."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().numpy().data)
    return total.hexdigest()


def parts_of(content: bytes) -> tuple[Json, bytes]:
    """Return the header and the streams of a container."""
    end = PREFIX.size + int.from_bytes(content[DIGEST_FROM : PREFIX.size], "little")
    return json.loads(zlib.decompress(content[PREFIX.size : end])), content[end:]


def sealed(header: Json, streams: bytes) -> bytes:
    """Return a container with a right checksum; the header may be bytes that are no JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    compressed = zlib.compress(text, 1)
    body = len(compressed).to_bytes(4, "little") + compressed + streams
    prefix = PREFIX.pack(MAGIC, VERSION, hashlib.sha256(body).digest(), 0)
    return prefix[:DIGEST_FROM] + body


def change_values(rng: random.Random, header: Json, streams: bytes) -> bytes:
    """Put other values into the header, wherever they may be."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        item, key = a_value(rng, header)
        old = item[key]
        near = [old + 1, old - 1, 2 * old] if type(old) is int else []
        item[key] = rng.choice([*near, rng.choice(NUMBERS), rng.choice(OTHERS)])
    return sealed(header, streams)


def a_value(rng: random.Random, document: Json) -> tuple[Json, Any]:
    """Return a mapping or list somewhere in a document, and the key of a value in it."""
    item = document
    while True:
        key = rng.choice([*item] if isinstance(item, dict) else range(len(item)))
        inner = item[key]
        if not (isinstance(inner, dict | list) and inner and rng.random() < 0.9):
            return item, key
        item = inner


def change_text(rng: random.Random, header: Json, streams: bytes) -> bytes:
    """Change the text of the header, or its compressed bytes."""
    text = bytearray(json.dumps(header).encode())
    for _ in range(rng.choice((1, 3))):
        start = rng.randrange(len(text))
        piece = (b"9", b"-", b"", b'"', b"]", b"}", b"1e999", b"NaN", b"[" * 1000, b"\xff")
        text[start : start + rng.randrange(4)] = rng.choice(piece)
    return sealed(bytes(text), streams)


def change_streams(rng: random.Random, header: Json, streams: bytes) -> bytes:
    """Change bytes of the compressed streams."""
    content = bytearray(streams)
    for _ in range(rng.choice((1, 1, 4, 100))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return sealed(header, bytes(content))


def lay_out(rng: random.Random, header: Json, streams: bytes) -> bytes:
    """Put rans data of any layout, and any words, in the place of a stream."""
    index = rng.randrange(len(header["streams"]))
    stream = header["streams"][index]
    start = sum(other["bytes"] for other in header["streams"][:index])
    size = stream["raw_bytes"]
    rows = rng.choice([n for n in range(1, 5000) if size % n == 0])
    columns = rng.choice([n for n in range(1, 5000) if size // rows % n == 0])
    layout = [size // rows // columns, rows, columns, rng.choice((0, 0, 17, 4000)), 64]
    steps = rng.randbytes(layout[0] * rows)
    steps = brotli.compress(steps, quality=1) if rng.random() < 0.5 else b""
    layout += [rng.randrange(2), rng.randrange(2), rng.randrange(64), len(steps), 0]
    if rng.random() < 0.3:
        layout[rng.randrange(10)] = rng.randrange(2**8)
    data = HEADER.pack(*layout) + steps + rng.randbytes(2 * rng.randrange(size + 4 * columns))
    streams = streams[:start] + data + streams[start + stream["bytes"] :]
    stream |= {"codec": "rans", "bytes": len(data), "shuffled": False}
    return sealed(header, streams)


def grow(rng: random.Random, header: Json, _: bytes) -> bytes:
    """Make a consistent file of a network of any size, its weights all the same: a bomb."""
    model, layers = header["model"], rng.choice((1, 2, 12, 1000))
    model |= {"layers": layers, "recurrence": [], "parallel": "none", "skip_rows": None}
    model |= {"window_layers": [], "value_embedding_layers": []}
    model |= {"width": 4 * rng.choice((4, 64, 250, 2048)), "rope_dims": 4}
    model |= {"mlp_hidden": rng.choice((1, 64, 8192))}
    known = load_params(ModelConfig, "model", PARAMS)
    fields = {name: model[name] for name in model} | {"recurrence": (), "window_layers": ()}
    config = dataclasses.replace(known, **fields | {"value_embedding_layers": ()})
    vocab = rng.choice((64, 2**13, 60_000, 2**16))
    parameters = shapes(config, vocab)
    tensors, rank = [], rng.choice((0, 1, 64))
    for name, shape in parameters.items():
        if name in (*MATRICES, "embedding") and rng.random() < 0.5:
            tensors += _quantized(name, shape, rank)
        else:
            tensors.append(_tensor(name, "float16", shape, None))
    items = {"int8": 1, "float16": 2}
    streams, raws = [], [0, 0]
    for tensor in tensors:
        tensor["stream"] = int(tensor["dtype"] == "float16")
        raws[tensor["stream"]] += items[tensor["dtype"]] * math.prod(tensor["shape"])
    data = [_constant(b"\1", raws[0]), _constant(b"\0<", raws[1])]  # 1 as int8 and as float16
    for raw, compressed in zip(raws, data, strict=True):
        stream = {"codec": "brotli", "shuffled": False, "bytes": len(compressed), "raw_bytes": raw}
        streams.append(stream)
    header |= {"vocab_size": vocab, "streams": streams, "tensors": tensors}
    return sealed(header, b"".join(data))


def _quantized(name: str, shape: tuple[int, ...], rank: int) -> list[Json]:
    parts = [_tensor(f"{name}.integers", "int8", shape, 8)]
    parts.append(_tensor(f"{name}.scales", "float16", shape[:-1], None))
    rows, columns = shape[-2:]
    if rank:
        key = f"{name}.0"
        parts.append(_tensor(f"{key}.left", "int8", (rows, rank), 2))
        parts.append(_tensor(f"{key}.right", "int8", (rank, columns), 4))
        parts.append(_tensor(f"{key}.left_scales", "float16", (rank,), None))
        parts.append(_tensor(f"{key}.right_scales", "float16", (rank, 1), None))
    return parts


def _tensor(name: str, dtype: str, shape: tuple[int, ...], bits: int | None) -> Json:
    return {"name": name, "dtype": dtype, "shape": [*shape], "bits": bits}


@cache
def _constant(unit: bytes, size: int) -> bytes:
    """Return brotli data of `unit` repeated; beyond what a reader takes, of some of it."""
    return brotli.compress(unit * (min(size, 2**28) // len(unit)), quality=1)
