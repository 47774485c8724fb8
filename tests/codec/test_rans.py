"""The entropy coder of integers: exact round trips, its size, and damaged data."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from package_case import make_options, make_quantized, sections

from paramgolf.codec.artifact import Packer
from paramgolf.codec.code import frozen_params
from paramgolf.codec.codecs import decompress
from paramgolf.codec.container import decode as decode_container
from paramgolf.codec.rans import HEADER, MAX_ROWS, TABLES, decode
from paramgolf.codec.rans_writer import encodable, encode
from paramgolf.codec.writer import compress
from paramgolf.codec.writer import encode as encode_container
from paramgolf.errors import ParamGolfError


def gaussian(rows, columns, *, deviation=2.4, spread=0.0, seed=0):
    generator = np.random.default_rng(seed)
    sizes = deviation * np.exp(spread * generator.standard_normal(columns))
    values = np.round(generator.standard_normal((rows, columns)) * sizes)
    return np.clip(values, -127, 127).astype(np.int8)


def entropy_bytes(values):
    _, counts = np.unique(values, return_counts=True)
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    deviation=st.floats(0.0, 200.0),
    spread=st.floats(0.0, 2.0),
    seed=st.integers(0, 10**6),
)
def test_round_trip(rows, columns, deviation, spread, seed):
    raw = gaussian(rows, columns, deviation=deviation, spread=spread, seed=seed).tobytes()
    data = encode(raw, columns)
    assert decode(data, len(raw)) == raw == decompress("rans", data, len(raw))
    assert encode(raw, columns) == data == compress("rans", raw, columns)


@pytest.mark.parametrize("raw", [b"\0", b"\x80" * 64, b"\x7f" * 64, bytes(range(256)) * 3])
@pytest.mark.parametrize("columns", [1, 32])
def test_extremes(raw, columns):
    if encodable(len(raw), columns):
        assert decode(encode(raw, columns), len(raw)) == raw
    else:
        assert len(raw) % columns


def test_what_the_decoder_would_refuse_is_not_encodable():
    assert not encodable(0, 4)
    assert not encodable(10, 4)
    assert not encodable(10, 0)
    assert encodable(MAX_ROWS, 1)
    assert not encodable(MAX_ROWS + 1, 1)


def test_size_is_near_the_entropy_and_columns_of_unlike_size_pay():
    alike = gaussian(4096, 64)
    brotli = len(compress("brotli", alike.tobytes()))
    ours = len(encode(alike.tobytes(), 64))
    assert ours < 1.02 * entropy_bytes(alike)
    assert ours < brotli
    unlike = gaussian(4096, 64, spread=0.5)
    assert len(encode(unlike.tobytes(), 64)) < 0.97 * entropy_bytes(unlike)


def test_every_truncation_and_whatever_follows_is_refused():
    raw = gaussian(50, 16).tobytes()
    data = encode(raw, 16)
    for size in range(0, len(data), 3):
        with pytest.raises(ParamGolfError):
            decode(data[:size], len(raw))
    for more in (b"x", b"xy"):
        with pytest.raises(ParamGolfError):
            decode(data + more, len(raw))
    for size in (0, 16, len(raw) - 16, len(raw) + 16, len(raw) - 1, 2**28):
        with pytest.raises(ParamGolfError):
            decode(data, size)


def test_mutations_do_not_crash():
    raw = gaussian(50, 16).tobytes()
    data, generator, refused = encode(raw, 16), random.Random(0), 0
    for _ in range(600):
        mutant = bytearray(data)
        end = len(mutant) if generator.random() < 0.5 else HEADER.size + 40
        mutant[generator.randrange(end)] ^= 1 << generator.randrange(8)
        try:
            assert len(decode(bytes(mutant), len(raw))) == len(raw)
        except ParamGolfError:
            refused += 1
    assert refused > 550  # a flipped bit shows in the states at the end


def test_tables_that_do_not_add_up_are_refused():
    record = np.zeros(1, TABLES)
    record["frequencies"][0, :, 128] = 2**14 - 1
    tables = compress("brotli", record.tobytes())
    data = HEADER.pack(1, 0, len(tables)) + tables + b"\1\0\0\0"
    with pytest.raises(ParamGolfError, match="tables"):
        decode(data, 1)


def test_only_integers_take_it_and_auto_is_the_smallest_artifact(tiny_model, sample):
    tensors, config = make_quantized(tiny_model(width=64, mlp_hidden=1024))
    _, parts = encode_container(tensors, config, make_options(codec="rans"))
    codecs = {part.name: part.codec for part in parts}
    assert codecs["up"] == "rans"
    assert codecs["k"] == "brotli"  # so few rows that states and tables weigh more than they save
    assert codecs["scales"] == codecs["vectors"] == "brotli"
    params = frozen_params(config["model"], *sections(sample))
    packed = {
        codec: Packer(config, params, make_options(codec=codec)).pack(tensors)
        for codec in ("brotli", "auto")
    }
    assert packed["auto"].bytes < packed["brotli"].bytes
    assert "paramgolf.codec.rans" in packed["auto"].code.part.shares
    _, stored = decode_container(packed["auto"].model)
    assert all((stored[name] == tensor).all() for name, tensor in tensors.items())
    assert packed["auto"].bytes == len(packed["auto"].model) + len(packed["auto"].code.content)


def test_auto_does_without_where_the_decoder_costs_more_than_it_saves(tiny_model, sample):
    tensors, config = make_quantized(tiny_model())
    params = frozen_params(config["model"], *sections(sample))
    artifact = Packer(config, params, make_options(codec="auto")).pack(tensors)
    assert all(part.codec != "rans" for part in artifact.parts)
    assert "paramgolf.codec.rans" not in artifact.code.part.shares
