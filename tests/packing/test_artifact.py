"""The artifact as a whole: the codec that makes model.bin and its decoder smallest."""

import pytest
from package_case import make_options, make_quantized, sections

from paramgolf.codec.container import decode
from paramgolf.codec.writer import encode
from paramgolf.packing.artifact import Packer
from paramgolf.packing.code import frozen_params, pack_code


def test_only_integers_take_it_and_auto_is_the_smallest_artifact(tiny_model, sample):
    tensors, config = make_quantized(tiny_model(width=64, mlp_hidden=2048))
    params = frozen_params(config["model"], *sections(sample))
    packed = {
        codec: Packer(config, params, make_options(codec=codec)).pack(tensors)
        for codec in ("brotli", "auto")
    }
    assert packed["auto"].bytes < packed["brotli"].bytes
    codecs = {part.name: part.codec for part in packed["auto"].parts}
    assert codecs["up"] == "rans"
    assert codecs["k"] == "brotli"  # so few rows that states and tables weigh more than they save
    assert codecs["scales"] == codecs["vectors"] == "brotli"
    assert "paramgolf.codec.rans" in packed["auto"].code.part.shares
    assert packed["auto"].code == pack_code(params, rans=True)  # whichever process packs it
    _, stored = decode(packed["auto"].model)
    assert all((stored[name] == tensor).all() for name, tensor in tensors.items())
    assert packed["auto"].bytes == len(packed["auto"].model) + len(packed["auto"].code.content)


def test_auto_does_without_where_the_decoder_costs_more_than_it_saves(tiny_model, sample):
    tensors, config = make_quantized(tiny_model(mlp_hidden=512))
    assert any(part.codec == "rans" for part in encode(tensors, config, "auto")[1])
    params = frozen_params(config["model"], *sections(sample))
    artifact = Packer(config, params, make_options(codec="auto")).pack(tensors)
    assert all(part.codec != "rans" for part in artifact.parts)
    assert "paramgolf.codec.rans" not in artifact.code.part.shares


def test_what_another_process_cannot_pack_is_told_by_this_one(tiny_model, sample):
    tensors, config = make_quantized(tiny_model())
    params = frozen_params(config["model"], *sections(sample)) | {"more": float("nan")}
    with pytest.raises(ValueError, match="JSON compliant"):
        _ = Packer(config, params, make_options(codec="brotli")).pack(tensors).code
