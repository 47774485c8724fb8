"""The package stage: the files, the ledger, the limit, and the comparison after reading back."""

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from package_case import make_options, make_quantized, sections, write_quantized
from safetensors.torch import load_file, save_file

from paramgolf.codec.byte_ledger import apportion
from paramgolf.codec.container import load_package
from paramgolf.errors import ParamGolfError
from paramgolf.packing.package import check_round_trip, package

KEYS = {"bytes_model", "bytes_code", "bytes_total", "limit_bytes", "headroom_bytes", "fits"}


@pytest.fixture
def project(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_quantized(tmp_path, *make_quantized(tiny_model()))
    return tmp_path


@pytest.fixture
def pack(project, sample):
    """Package the project's model; return the metrics."""

    def call(training=None, **options):
        package(make_options(**options), *sections(sample, **training or {}))
        return json.loads((project / "artifacts/metrics/package.json").read_text())

    return call


def test_every_byte_is_accounted_for(project, pack, capsys):
    metrics, folder = pack(), project / "artifacts/package"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == {"model.bin", "train_gpt.py", "package.json"}
    ledger = json.loads(files["package.json"])
    assert metrics.keys() == KEYS | {"seconds", "read", "wrote"}
    assert {file["path"]: file["sha256"] for file in metrics["wrote"]} == {
        f"artifacts/package/{name}": hashlib.sha256(content).hexdigest()
        for name, content in files.items()
    }
    assert metrics["bytes_model"] == len(files["model.bin"])
    assert metrics["bytes_code"] == len(files["train_gpt.py"])
    assert metrics["bytes_total"] == len(files["model.bin"]) + len(files["train_gpt.py"])
    assert metrics["headroom_bytes"] == 16_000_000 - metrics["bytes_total"]
    assert metrics["fits"] is True
    assert {key: ledger[key] for key in KEYS} == {key: metrics[key] for key in KEYS}
    *model, code = ledger["parts"]
    assert code["kind"] == "code"
    assert sum(part["bytes"] for part in model) == len(files["model.bin"])
    assert code["bytes"] == len(files["train_gpt.py"])
    assert all(sum(part["shares"].values()) == part["bytes"] for part in ledger["parts"])
    sizes = [part["bytes"] for part in model]
    assert sizes == sorted(sizes, reverse=True)
    assert {part["name"] for part in model} == {
        "header", "scales", "vectors", "q", "k", "v", "o", "up", "down", "embedding"
    }  # fmt: skip
    for name, digest in ledger["sha256"].items():
        assert hashlib.sha256(files[name]).hexdigest() == digest
    assert "does NOT fit" not in capsys.readouterr().err


def test_same_input_same_bytes(project, pack):
    pack()
    folder = project / "artifacts/package"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    pack()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_artifact_too_large_is_written_and_explained(project, pack, capsys):
    metrics = pack(limit_bytes=1000)
    assert metrics["fits"] is False
    assert metrics["headroom_bytes"] == 1000 - metrics["bytes_total"] < 0
    assert load_package(project / "artifacts/package/model.bin").vocab_size == 64
    log = capsys.readouterr().err
    assert f"{-metrics['headroom_bytes']:,} bytes too many" in log
    assert "up " in log
    assert "down " in log


def test_the_limit_itself_fits(pack):
    total = pack()["bytes_total"]
    assert pack(limit_bytes=total)["fits"] is True
    assert pack(limit_bytes=total - 1)["fits"] is False


def test_training_parameters_are_in_the_code(project, pack):
    path = project / "artifacts/package/train_gpt.py"
    pack()
    before = path.read_bytes()
    pack({"matrix_lr": 0.5})
    assert path.read_bytes() != before


def test_reading_back_notices_any_difference(project, pack, tiny_model):
    pack()
    path = project / "artifacts/package/model.bin"
    tensors, _ = make_quantized(tiny_model())
    check_round_trip(path, tensors)
    for name in ("up.integers", "k.scales", "attn_scale"):
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[3] += torch.ones((), dtype=tensors[name].dtype)
        with pytest.raises(AssertionError, match=name):
            check_round_trip(path, changed)
    with pytest.raises(AssertionError, match="more"):
        check_round_trip(path, {**tensors, "more": tensors["q_gain"]})


def test_integers_beyond_their_bits_are_a_fault_of_the_input(project, pack):
    path = project / "artifacts/quantize/model.safetensors"
    tensors = load_file(path)
    tensors["q.integers"][0, 0, 0] = 127
    save_file(tensors, path)
    message = r"cannot be read back\n  where: artifacts/quantize/(.|\n)*range of(.|\n)* -s quantize"
    with pytest.raises(ParamGolfError, match=message):
        pack()


def test_a_missing_input_says_what_to_do(tmp_path, sample, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamGolfError, match=r"(?s)no file.*dvc repro quantize"):
        package(make_options(), *sections(sample))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 0}, "another version"),
        ({"model": 3}, "`model` must be a mapping"),
        ({"quantize": None}, "`quantize` must be a mapping"),
        ({"quantize": {"bits": {"q": "six"}}}, "`quantize.bits.q` must be a whole number"),
    ],
)
def test_a_damaged_description_is_one_message(project, pack, change, message):
    path = project / "artifacts/quantize/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ParamGolfError, match=f"(?s){message}.*config.json.*dvc repro quantize"):
        pack()


def test_a_tensor_that_model_bin_does_not_store_is_one_message(project, pack, tiny_model):
    tensors, config = make_quantized(tiny_model())
    write_quantized(project, tensors | {"q.scales": tensors["q.scales"].float()}, config)
    with pytest.raises(ParamGolfError, match=r"(?s)another type.*q\.scales\n.*float32"):
        pack()


@settings(max_examples=100, deadline=None)
@given(total=st.integers(0, 10**8), sizes=st.lists(st.integers(0, 10**7), min_size=1, max_size=30))
def test_shares_add_up_and_are_fair(total, sizes):
    named = {str(i): size for i, size in enumerate(sizes)}
    shares = apportion(total, named)
    assert sum(shares.values()) == total
    assert min(shares.values()) >= 0
    if sum(sizes):
        for name, size in named.items():
            assert abs(shares[name] - total * size / sum(sizes)) <= 1 + 1e-6
