"""model.bin: round trips, and files that are damaged, cut or made to deceive."""

import dataclasses
import json
import lzma
import random
import sys
import tracemalloc
import zlib

import brotli
import pytest
import torch
from container_case import join, seal, split
from package_case import LENGTH, QUANTIZED, VOCAB, make_quantized

from paramgolf.codec import writer
from paramgolf.codec.codecs import decompress, shuffle, unshuffle
from paramgolf.codec.container import (
    DIGEST_FROM,
    MAX_WEIGHTS,
    PREFIX,
    decode,
    dequantized,
    load_package,
)
from paramgolf.codec.writer import compress, encode
from paramgolf.errors import ParamGolfError
from paramgolf.model.config import OFF, ModelConfig
from paramgolf.model.shapes import shapes
from paramgolf.schema import parse

CODECS = ("brotli", "lzma")
# a network of one layer, which has no row of skip weights
ONE_LAYER = {"layers": 1, "recurrence": (), "parallel": "none", "parallel_start": 0}
ONE_LAYER |= {"skips": "gated", "skip_rows": None}


def come_back(tensors, config, codec="brotli"):
    """Encode and decode tensors, which must stay what they are; return the bytes and parts."""
    content, parts = encode(tensors, config, codec)
    _, stored = decode(content)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[n], t) and stored[n].dtype == t.dtype for n, t in tensors.items())
    assert sum(part.bytes for part in parts) == len(content)
    return content, parts


@pytest.mark.parametrize("codec", [*CODECS, "rans", "auto"])
def test_a_written_model_is_read_back_exactly(model, tmp_path, codec):
    tensors, config = make_quantized(model)
    content, parts = come_back(tensors, config, codec)
    (tmp_path / "model.bin").write_bytes(content)
    package = load_package(tmp_path / "model.bin")
    assert (package.model, package.vocab_size, package.sequence_length) == (model, VOCAB, LENGTH)
    expected = tensors["up.integers"].float() * tensors["up.scales"].float()[..., None]
    assert torch.equal(package.state["up"], expected)
    assert torch.equal(package.state["q_gain"], tensors["q_gain"].float())
    assert all(tensor.dtype == torch.float32 for tensor in package.state.values())
    for part in parts:
        assert sum(part.shares.values()) == part.bytes
    assert encode(tensors, config, codec)[0] == content


def test_a_process_encodes_what_this_one_does(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    integers = (9 * torch.randn(4, 16, 64, generator=generator)).round().to(torch.int8)
    raw, shape = integers.numpy().tobytes(), tuple(integers.shape)
    here = compress("rans", raw, shape)
    monkeypatch.setattr(writer, "APART", 100)
    with monkeypatch.context() as patch:
        patch.setattr(writer.rans_writer, "encode", None)  # not in this process
        assert compress("rans", raw, shape) == here
    monkeypatch.setattr(sys, "executable", "/bin/false")  # as if it were killed
    assert compress("rans", raw, shape) == here


def add_extras(tensors, config):
    """Add finer groups to `up`, corrections of rank 3 to a layer of `down` and the embedding."""
    generator = torch.Generator().manual_seed(5)
    tensors["up.finer"] = torch.tensor([[0, 16], [-3, 0], [16, 16], [0, 5]], dtype=torch.int8)
    tensors["up.integers"][0, :, 16:] = 124
    config["quantize"]["bits"]["up"] = 8
    for name, rows, columns in (("down.1", 32, 64), ("embedding.0", VOCAB, 32)):
        left = torch.randint(-2, 2, (rows, 3), generator=generator)
        right = torch.randint(-8, 8, (3, columns), generator=generator)
        tensors[f"{name}.left"] = left.to(torch.int8)
        tensors[f"{name}.right"] = right.to(torch.int8)
        tensors[f"{name}.left_scales"] = torch.rand(3, generator=generator).half() + 0.01
        tensors[f"{name}.right_scales"] = torch.rand(3, 2, generator=generator).half() + 0.01
    return tensors, config


def test_finer_groups_and_corrections_round_trip(model):
    tensors, config = add_extras(*make_quantized(model))
    come_back(tensors, config)
    state = dequantized(tensors)
    plain = tensors["up.integers"].float() * tensors["up.scales"].float()[..., None]
    expected = plain.clone()
    expected[0, :, 16:] /= 4
    expected[1, :, :16] *= 2 - 2 * 5 / 16
    expected[2] /= 4
    expected[3, :, 16:] *= 1 - 5 / 16
    assert torch.equal(state["up"], expected)
    for name, layer in (("down", 1), ("embedding", 0)):
        plain = tensors[f"{name}.integers"].float() * tensors[f"{name}.scales"].float()[..., None]
        stack, found = (t if t.dim() == 3 else t[None] for t in (plain, state[name]))
        key = f"{name}.{layer}"
        left = tensors[f"{key}.left"].double() * tensors[f"{key}.left_scales"].double()
        scales = tensors[f"{key}.right_scales"].double()
        scales = scales.repeat_interleave(stack.shape[2] // 2, 1)
        right = tensors[f"{key}.right"].double() * scales
        torch.testing.assert_close(found[layer], stack[layer] + (left @ right).float())
        others = [i for i in range(len(stack)) if i != layer]
        assert torch.equal(found[others], stack[others])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up.finer": torch.zeros(4, 5, dtype=torch.int8)}, "must hold up.finer"),
        ({"up.finer": torch.zeros(3, 2, dtype=torch.int8)}, "must hold up.finer"),
        ({"up.finer": torch.zeros(0, dtype=torch.int8)}, "must hold up.finer"),
        ({"up.finer": torch.full((4, 2), -64, dtype=torch.int8)}, "up.finer leaves the range"),
        ({"down.1.left": torch.zeros(32, 65, dtype=torch.int8)}, "must hold down.1.left"),
        ({"down.1.left": torch.zeros(31, 3, dtype=torch.int8)}, "must hold down.1.left"),
        ({"down.1.right_scales": torch.ones(3, 7).half()}, "must hold down.1.right_scales"),
        ({"down.1.right": None}, "must hold down.1.right"),
        ({"down.1.left": None}, "must hold down.1.left_scales"),
        ({"down.4.left": torch.zeros(32, 3, dtype=torch.int8)}, "must hold down.4.left"),
        ({"q_gain.finer": torch.zeros(1, 1, dtype=torch.int8)}, "must hold q_gain.finer"),
        ({"down.1.left": torch.full((32, 3), 2, dtype=torch.int8)}, "range of 2 bits"),
        ({"down.1.right": torch.full((3, 64), -9, dtype=torch.int8)}, "range of 4 bits"),
        ({"down.1.left_scales": torch.zeros(3).half()}, "not positive"),
    ],
)
def test_extras_that_lie_are_named(model, changes, message):
    """The encoder holds the header, the decoder all else as well, against the same rules."""
    tensors, config = add_extras(*make_quantized(model))
    tensors = {n: t for n, t in {**tensors, **changes}.items() if t is not None}
    with pytest.raises(ParamGolfError, match=message):
        decode(encode(tensors, config, "brotli")[0])


@pytest.mark.parametrize(
    ("name", "bits", "message"),
    [
        ("up.finer", 8, "must give 7 as bits of up.finer, found 8"),
        ("down.1.left", 8, "must give 2 as bits of down.1.left, found 8"),
        ("down.1.right", None, "must give 4 as bits of down.1.right, found None"),
        ("q_gain", 8, "must give None as bits of q_gain, found 8"),
    ],
)
def test_bits_of_extras_are_fixed(model, name, bits, message):
    """Steps halved 16 times, or codes of 8 bits, would make weights that are not finite."""
    header, streams = split(encode(*add_extras(*make_quantized(model)), "brotli")[0])
    entry = next(entry for entry in header["tensors"] if entry["name"] == name)
    entry["bits"] = bits
    with pytest.raises(ParamGolfError, match=message):
        decode(join(header, streams))


def test_a_matrix_without_rows_takes_no_extras(tiny_model):
    tensors, config = make_quantized(tiny_model(**ONE_LAYER))
    tensors["skip_weight.integers"] = tensors.pop("skip_weight").to(torch.int8)
    tensors["skip_weight.scales"] = torch.ones(0).half()
    config["quantize"]["bits"]["skip_weight"] = 8
    state = dequantized(decode(encode(tensors, config, "brotli")[0])[1])
    assert state["skip_weight"].shape == (0, 32)


def test_memory_of_streams_changes_nothing(model):
    tensors, config = make_quantized(model)
    memo = {}
    plain = encode(tensors, config, "auto")[0]
    assert encode(tensors, config, "auto", memo)[0] == plain
    count = len(memo)
    assert encode(tensors, config, "auto", memo)[0] == plain
    assert len(memo) == count > 10


def test_state_has_the_order_and_the_names_of_the_network(model, packed):
    from paramgolf.model.network import Network

    network = Network(model, VOCAB, seed=0)
    state = dequantized(decode(packed)[1])
    assert state.keys() == network.state_dict().keys()
    network.load_state_dict(state)


def test_auto_is_never_larger_than_either(model):
    tensors, config = make_quantized(model)
    tensors["embedding.integers"] = torch.zeros_like(tensors["embedding.integers"])
    sizes = {c: len(encode(tensors, config, c)[0]) for c in (*CODECS, "auto")}
    header = 40  # names of codecs in the compressed header
    assert sizes["auto"] <= min(sizes["brotli"], sizes["lzma"]) + header


@pytest.mark.parametrize("fill", [0, 31, -31])
def test_constant_integers(model, fill):
    tensors, config = make_quantized(model)
    for name, tensor in tensors.items():
        if name.endswith(".integers"):
            tensor.fill_(fill)
    come_back(tensors, config)


def test_empty_tensors(tiny_model):
    tensors, config = make_quantized(tiny_model(**ONE_LAYER))
    assert tensors["skip_weight"].numel() == 0
    come_back(tensors, config)


def test_float16_keeps_its_bits(model):
    tensors, config = make_quantized(model)
    extremes = torch.tensor([-0.0, 65504.0, -65504.0, 6e-8], dtype=torch.float16)
    tensors["q_gain"] = extremes.repeat(4, 1)
    _, stored = decode(encode(tensors, config, "brotli")[0])
    found, expected = stored["q_gain"].view(torch.int16), tensors["q_gain"].view(torch.int16)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("raw", [b"", b"\0", b"\0" * 100_000, bytes(range(256)) * 40])
def test_codecs_round_trip_and_are_strict(codec, raw):
    data = compress(codec, raw)
    assert decompress(codec, data, len(raw)) == raw
    for size in {len(raw) - 1, len(raw) + 1, 0} - {len(raw), -1}:
        with pytest.raises(ParamGolfError, match="another length"):
            decompress(codec, data, size)
    with pytest.raises(ParamGolfError):
        decompress(codec, data + b"x", len(raw))
    with pytest.raises(ParamGolfError):
        decompress(codec, data[:-1], len(raw))


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_is_cut_off(codec):
    """64 MiB of zeros behind a declared megabyte: memory stays near what was declared."""
    zeros = b"\0" * 2**26
    if codec == "brotli":
        bomb = brotli.compress(zeros, quality=1)
    else:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
        bomb = lzma.compress(zeros, format=lzma.FORMAT_RAW, filters=filters)
    assert len(bomb) < 2**17
    tracemalloc.start()
    with pytest.raises(ParamGolfError, match="another length"):
        decompress(codec, bomb, 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**20 <= peak < 2**25  # the dictionary of LZMA is 16 MiB


@pytest.mark.parametrize("raw", [b"", b"ab", b"abcdef"])
def test_shuffle_puts_low_bytes_before_high_ones(raw):
    assert unshuffle(shuffle(raw)) == raw
    assert shuffle(b"abcdef") == b"acebdf"


def test_every_truncation_is_refused(packed):
    for size in [*range(0, 400), *range(400, len(packed), 997), len(packed) - 1]:
        with pytest.raises(ParamGolfError):
            decode(packed[:size])


def test_whatever_follows_is_refused(packed):
    with pytest.raises(ParamGolfError, match="checksum"):
        decode(packed + b"\0")
    with pytest.raises(ParamGolfError, match="do not fill the file"):
        decode(seal(packed[DIGEST_FROM:] + b"\0"))


def test_mutations_are_refused(packed):
    rng = random.Random(0)
    for _ in range(10_000):
        content = bytearray(packed)
        for _ in range(rng.choice((1, 1, 2, 20))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        if bytes(content) != packed:
            with pytest.raises(ParamGolfError):
                decode(bytes(content))


def test_a_damaged_header_under_a_right_checksum_is_refused(packed):
    """test_fuzz.py has what else can be damaged behind the checksum."""
    end = PREFIX.size + int.from_bytes(packed[DIGEST_FROM : PREFIX.size], "little")
    for place in range(DIGEST_FROM, end, 3):
        content = bytearray(packed)
        content[place] ^= 1 << place % 8
        with pytest.raises(ParamGolfError):
            decode(seal(bytes(content[DIGEST_FROM:])))


def edit(header, path, value):
    """Return a copy of `header` with the item at a dotted path replaced."""
    copy = json.loads(json.dumps(header))
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    item = copy
    for key in parents:
        item = item[key]
    item[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.layers", 10**6, "model.layers` must lie in"),
        ("model.layers", 10**12, "out of range"),
        ("model.width", 2**26, "width` must lie in"),
        ("model.mlp_hidden", 2**20, "more than"),
        ("model.skip_rows", -3, "skip_rows` must be at least 0"),
        ("model.softcap", "warm", "softcap"),
        ("model.colour", 1, r"(?s)paramgolf does not know.*model\.colour"),
        ("model.rope_trained_length", 0, "must be at least 1"),
        ("model.mlp_slope", 1e308, "must lie in 0"),
        ("model", [], "must be a mapping"),
        ("vocab_size", 0, "vocab_size"),
        ("vocab_size", 2**17, "vocab_size"),
        ("vocab_size", 63, "embedding"),
        ("sequence_length", 0, "sequence_length"),
        ("streams.0.codec", "zip", "codec"),
        ("streams.0.bytes", 2**27, "do not fill the file"),
        ("streams.0.bytes", -1, "must hold"),
        ("streams.0.raw_bytes", 2**27, "must hold"),
        ("streams", [], "names stream 0 of 0"),
        ("tensors.0.stream", 99, "names stream 99"),
        ("tensors.0.stream", -1, "names stream -1"),
        ("tensors.0.shape", [2**13, 2**13], "must hold down.integers"),
        ("tensors.0.shape", [-4, -32, 64], "must hold down.integers"),
        ("tensors.0.dtype", "float64", "dtype"),
        ("tensors.0.dtype", "float16", "must hold down.integers"),
        ("tensors.0.bits", None, "must give 2 or 3 or .* or 8 as bits of down.integers"),
        ("tensors.0.bits", 9, "must give 2 or 3 or .* or 8 as bits of down.integers"),
        ("tensors.0.bits", 2, "leaves the range of 2 bits"),
        ("tensors.0.name", "up.integers", "twice"),
        ("tensors.0.name", "down", "must hold down as"),
        ("tensors.0.name", "../down", "must hold"),
        ("tensors", [], "must hold"),
        ("tensors", None, "must be a list"),
    ],
)
def test_a_header_that_lies_is_named(packed, path, value, message):
    header, streams = split(packed)
    with pytest.raises(ParamGolfError, match=message):
        decode(join(edit(header, path, value), streams))


def test_the_header_names_only_options_that_are_on(tiny_model):
    model = tiny_model(smear="token", bos_mask=False, head_gate="none", window_layers=())
    content, _ = encode(*make_quantized(model), "brotli")
    named = split(content)[0]["model"].keys()
    assert {"layers", "smear", "bos_mask"} <= named
    assert not {"head_gate", "window_layers"} & named
    assert decode(content)[0].model == model


def test_files_that_name_every_option_are_read(model, packed):
    """Those of before left none out."""
    header, streams = split(packed)
    every = json.loads(json.dumps(dataclasses.asdict(model)))
    assert decode(join({**header, "model": every}, streams))[0].model == model


def test_what_is_off_adds_no_parameter_and_new_keys_can_be_off():
    """A key that comes must be off in the files that lack it."""
    first = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "mlp_hidden": 64}
    first |= {"mlp_slope": 0.5, "rope_dims": 8, "rope_base": 1e4, "q_gain": 1.0, "softcap": 30.0}
    assert first.keys() | OFF.keys() == {field.name for field in dataclasses.fields(ModelConfig)}
    model = parse(ModelConfig, {**OFF, **first}, "model")
    assert shapes(model, VOCAB).keys() == {
        *QUANTIZED, "q_gain", "attn_scale", "mlp_scale", "resid_mix",
    }  # fmt: skip


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[" * 60_000,
        b"null",
        b"[]",
        b'"text"',
        b'{"vocab_size": NaN}',
        b'{"vocab_size": 1e999}',
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b" " * 100_000,
        b'{"model": {"layers": {}}}',
    ],
)
def test_a_header_that_is_no_header_is_refused(packed, header):
    with pytest.raises(ParamGolfError, match="header"):
        decode(join(header, split(packed)[1]))


def test_bytes_behind_the_header_are_refused(packed):
    header, streams = split(packed)
    compressed = zlib.compress(json.dumps(header).encode()) + b"x"
    with pytest.raises(ParamGolfError, match="followed by something"):
        decode(seal(len(compressed).to_bytes(4, "little") + compressed + streams))


def test_header_bytes_that_lie_are_refused(packed):
    body = packed[PREFIX.size :]
    for length in (0, 1, len(body) + 1, 2**32 - 1):
        with pytest.raises(ParamGolfError, match="header"):
            decode(seal(length.to_bytes(4, "little") + body))


@pytest.mark.parametrize(
    ("name", "value"), [("q.scales", 0.0), ("q.scales", -1.0), ("q_gain", float("nan"))]
)
def test_values_that_cannot_be_are_refused(model, name, value):
    tensors, config = make_quantized(model)
    tensors[name].view(-1)[0] = value
    content, _ = encode(tensors, config, "brotli")
    with pytest.raises(ParamGolfError, match=f"{name} holds"):
        decode(content)


def test_the_message_names_the_file_and_what_to_do(packed, tmp_path):
    path = tmp_path / "model.bin"
    with pytest.raises(ParamGolfError, match=r"(?s)there is no file.*dvc repro"):
        load_package(path)
    path.write_bytes(packed[:-1])
    with pytest.raises(ParamGolfError, match=r"(?s)model\.bin cannot be decoded.*checksum.*dvc"):
        load_package(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1, padded to the prefix's length")
    with pytest.raises(ParamGolfError, match=r"(?s)not a model\.bin.*version"):
        load_package(path)
    with path.open("wb") as file:
        file.truncate(5 * MAX_WEIGHTS)  # sparse
    with pytest.raises(ParamGolfError, match="larger than any"):
        load_package(path)


@pytest.mark.gpu
def test_weights_have_the_same_bits_on_a_gpu(packed):
    """Integers, scales, finer groups and corrections: elementwise, in a fixed order."""
    _, tensors = decode(packed)
    on_gpu = dequantized({name: tensor.cuda() for name, tensor in tensors.items()})
    for name, expected in dequantized(tensors).items():
        assert torch.equal(on_gpu[name].cpu(), expected), name
