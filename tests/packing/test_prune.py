"""Selective pruning: what goes first, that the artifact fits, and what is said when it cannot."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from package_case import make_options, make_quantized, sections, write_quantized

from paramgolf.codec.container import load_package, read_container
from paramgolf.codec.writer import encode
from paramgolf.packing.package import package
from paramgolf.packing.prune import SLACK_BYTES, candidates, prune, search, zeroed

BLOCKS = ("q", "k", "v", "o", "up", "down")


@pytest.fixture
def quantized(tiny_model):
    return make_quantized(tiny_model())


def test_the_finest_rows_go_first(quantized):
    tensors, _ = quantized
    order = candidates(tensors)
    scales = torch.cat(
        [
            tensors[f"{n}.scales"].float()[..., None].expand_as(tensors[f"{n}.integers"]).flatten()
            for n in BLOCKS
        ]
    )
    integers = torch.cat([tensors[f"{n}.integers"].flatten() for n in BLOCKS])
    assert sorted(order) == (integers.abs() == 1).nonzero().flatten().tolist()
    assert (np.diff(scales[torch.from_numpy(order)]) >= 0).all()
    pruned = zeroed(tensors, order, 100)
    changed = torch.cat([pruned[f"{n}.integers"].flatten() for n in BLOCKS]) != integers
    assert set(changed.nonzero().flatten().tolist()) == set(order[:100].tolist())
    assert all(pruned[n] is t for n, t in tensors.items() if n[: n.find(".")] not in BLOCKS)
    assert torch.equal(zeroed(tensors, order, 0)["up.integers"], tensors["up.integers"])


def test_finer_columns_are_cheaper(quantized):
    tensors, _ = quantized
    tensors["up.finer"] = torch.tensor([[0, 16]] * 4, dtype=torch.int8)
    first = zeroed(tensors, candidates(tensors), 50)["up.integers"] != tensors["up.integers"]
    assert int(first.sum()) == 50
    assert not first[:, :, :16].any()


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(0, 10**6),
    start=st.integers(1000, 10**6),
    share=st.floats(0.0, 1.2),
    wobble=st.integers(0, 50),
)
def test_search_ends_below_the_limit(most, start, share, wobble):
    def size_of(count):
        return start - count // 8 + (count * 7919) % (wobble + 1)

    least = min(size_of(count) for count in (0, most))
    limit = int(start - share * (start - least))
    tries = search(size_of, most, limit)
    fitting = [one for one in tries if one.bytes <= limit]
    assert all(0 <= one.zeroed <= most and one.bytes == size_of(one.zeroed) for one in tries)
    if not fitting:
        assert tries[-1].zeroed == most or size_of(0) > limit
        assert size_of(most) > limit
        return
    best = min(fitting, key=lambda one: one.zeroed)
    if best.zeroed and len(tries) < 16:
        near = limit - best.bytes <= SLACK_BYTES
        assert near or any(one.zeroed == best.zeroed - 1 for one in tries)


def test_a_model_that_fits_is_left_alone(quantized):
    tensors, config = quantized
    size = len(encode(tensors, config, "brotli")[0])
    pruned = prune(tensors, lambda t: len(encode(t, config, "brotli")[0]), size)
    assert pruned.record.zeroed == pruned.record.missing_bytes == 0
    assert len(pruned.record.tries) == 1
    assert all(torch.equal(pruned.tensors[name], t) for name, t in tensors.items())


def test_a_model_that_cannot_fit_is_left_alone_and_says_so(quantized, capsys):
    tensors, config = quantized
    pruned = prune(tensors, lambda t: len(encode(t, config, "brotli")[0]), 1000)
    assert pruned.record.zeroed == 0
    last = pruned.record.tries[-1]
    assert last.zeroed == pruned.record.candidates
    assert pruned.record.missing_bytes == last.bytes - 1000
    assert f"{pruned.record.missing_bytes:,} bytes too many" in capsys.readouterr().err
    assert all(torch.equal(pruned.tensors[name], t) for name, t in tensors.items())


def test_the_stage_prunes_until_it_fits(tmp_path, quantized, sample, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tensors, config = quantized
    write_quantized(tmp_path, tensors, config)
    package(make_options(), *sections(sample))
    path = tmp_path / "artifacts/package/package.json"
    before = json.loads(path.read_text())
    assert before["prune"] is None
    limit = before["bytes_total"] - 700
    package(make_options(limit_bytes=limit, prune=True), *sections(sample))
    ledger = json.loads(path.read_text())
    assert ledger["fits"] is True
    assert 0 <= ledger["headroom_bytes"] <= SLACK_BYTES
    record = ledger["prune"]
    assert 0 < record["zeroed"] < record["candidates"]
    assert record["missing_bytes"] == 0
    assert {"zeroed": record["zeroed"], "bytes": ledger["bytes_total"]} in record["tries"]
    _, stored = read_container(tmp_path / "artifacts/package/model.bin")
    found = sum(
        int((stored[f"{n}.integers"] != tensors[f"{n}.integers"]).sum())
        for n in (*BLOCKS, "embedding")
    )
    assert found == record["zeroed"]
    assert load_package(tmp_path / "artifacts/package/model.bin").vocab_size == 64
    first = path.read_bytes()
    package(make_options(limit_bytes=limit, prune=True), *sections(sample))
    assert path.read_bytes() == first
