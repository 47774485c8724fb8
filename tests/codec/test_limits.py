"""A model.bin that asks for more memory or time than any model needs is refused at once."""

import dataclasses
import json
import math
import tracemalloc

import brotli
import pytest
import torch
from container_case import join, split
from package_case import LENGTH, make_quantized

from paramgolf.codec.container import MAX_WEIGHTS, MAX_WORK, decode
from paramgolf.codec.dequantize import low_rank
from paramgolf.codec.rans import HEADER, layout_work
from paramgolf.codec.rans_model import Layout
from paramgolf.codec.writer import encode
from paramgolf.errors import ParamGolfError
from paramgolf.model.shapes import shapes


def bomb(model, vocab_size, **extras):
    """A container of zeros, consistent and with a right checksum: some KB for any size."""
    parameters = shapes(model, vocab_size)
    tensors = [
        {"name": name, "dtype": "float16", "shape": shape, "bits": None, "stream": 0}
        for name, shape in parameters.items()
    ]
    size = sum(2 * math.prod(shape) for shape in parameters.values())
    zeros = brotli.compress(bytes(min(size, 2**20)), quality=1)
    stream = {"codec": "brotli", "shuffled": False, "bytes": len(zeros), "raw_bytes": size}
    header = {"model": json.loads(json.dumps(dataclasses.asdict(model))), "vocab_size": vocab_size}
    header |= {"sequence_length": LENGTH, "streams": [stream], "tensors": tensors, **extras}
    return join(header, zeros)


def test_more_weights_than_any_model_are_refused_before_they_are_held(tiny_model):
    """4 KB asked for 3.9 GiB once."""
    model = tiny_model(width=2048, mlp_hidden=8192)
    assert sum(math.prod(s) for s in shapes(model, 2**16).values()) > MAX_WEIGHTS
    content = bomb(model, 2**16)
    assert len(content) < 2**14
    tracemalloc.start()
    with pytest.raises(ParamGolfError, match=r"parameters|out of range"):
        decode(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_corrections_beyond_any_use_are_refused(model):
    """Rank 64 of a matrix of 60 million weights: 43 s and 4.2 GB for three times as many, once."""
    rows, columns = 58_000, 1024
    wide = dataclasses.replace(model, width=columns, heads=4, mlp_hidden=16, rope_dims=16)
    wide = dataclasses.replace(wide, layers=1, recurrence=(), parallel="none")
    header, streams = split(bomb(wide, rows))
    header["tensors"] = [e for e in header["tensors"] if e["name"] != "embedding"]
    for name, dtype, shape, bits in (
        ("embedding.integers", "int8", [rows, columns], 8),
        ("embedding.scales", "float16", [rows], None),
        ("embedding.0.left", "int8", [rows, 64], 2),
        ("embedding.0.left_scales", "float16", [64], None),
        ("embedding.0.right", "int8", [64, columns], 4),
        ("embedding.0.right_scales", "float16", [64, 1], None),
    ):
        entry = {"name": name, "dtype": dtype, "shape": shape, "bits": bits, "stream": 0}
        header["tensors"].append(entry)
    items = {"int8": 1, "float16": 2}
    raw = sum(math.prod(e["shape"]) * items[e["dtype"]] for e in header["tensors"])
    header["streams"][0]["raw_bytes"] = raw
    with pytest.raises(ParamGolfError, match="decoding would take too long"):
        decode(join(header, streams))


def test_a_correction_is_the_same_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-2, 2, (37, 5), generator=generator, dtype=torch.int8)
    right = torch.randint(-8, 8, (5, 24), generator=generator, dtype=torch.int8)
    scales = torch.rand(5, generator=generator).half(), torch.rand(5, 3, generator=generator).half()
    whole = low_rank(left, scales[0], right, scales[1])
    monkeypatch.setattr("paramgolf.codec.dequantize.AT_ONCE", 100)
    assert torch.equal(low_rank(left, scales[0], right, scales[1]), whole)


def test_integers_that_take_too_long_to_decode_are_refused(model):
    """Rows that are predicted from each other, one column each: hours in 100 KB once."""
    tensors, config = make_quantized(model)
    content, _ = encode(tensors, config, "brotli")
    header, streams = split(content)
    index = next(e["stream"] for e in header["tensors"] if e["name"] == "up.integers")
    sizes = [stream["bytes"] for stream in header["streams"]]
    start = sum(sizes[:index])
    layout = Layout(4, 2048, 1, 4000, 64, 0, 0, 20, 0, 0)
    forged = HEADER.pack(*layout._replace(blocks=2**20)) + bytes(8)
    header["streams"][index] |= {"codec": "rans", "bytes": len(forged)}
    body = streams[:start] + forged + streams[start + sizes[index] :]
    with pytest.raises(ParamGolfError, match="decoding would take too long"):
        decode(join(header, body))


def test_the_encoder_does_without_rans_where_decoding_would_take_too_long(model, monkeypatch):
    tensors, config = make_quantized(dataclasses.replace(model, mlp_hidden=4096))
    _, parts = encode(tensors, config, "rans")
    assert "rans" in {part.codec for part in parts}
    monkeypatch.setattr("paramgolf.codec.container.MAX_WORK", 3_000_000)
    content, parts = encode(tensors, config, "rans")
    assert "rans" not in {part.codec for part in parts}
    _, stored = decode(content)
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())


def test_networks_of_the_recipes_have_room_in_what_decoding_may_take():
    """11 layers of width 512, every matrix in the layout that takes longest."""
    matrices = [(11, 512, 512)] * 2 + [(11, 256, 512)] * 2 + [(11, 512, 2048), (8, 512, 1024)]
    predicted = [Layout(*shape, 4000, 64, 0, 0, 20, 0, 0) for shape in matrices]
    up = Layout(1, 11 * 2048, 512, 0, 64, 0, 0, 20, 0, 0)
    assert sum(layout_work(layout) for layout in (*predicted, up)) < 0.75 * MAX_WORK
