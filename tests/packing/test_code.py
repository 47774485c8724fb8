"""train_gpt.py: what goes in, what is stripped, and that it runs alone in an empty folder."""

import ast
import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from package_case import VOCAB, make_options, make_quantized

from paramgolf.codec.writer import encode
from paramgolf.packing.code import (
    ENTRY,
    RANS,
    ROOT,
    embedded_files,
    frozen_params,
    literal,
    module_name,
    pack_code,
    program,
)
from paramgolf.packing.entry import ADAPT, MIXTURE, RUNTIME, SLIDING
from paramgolf.params import parse, read_yaml
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import score_adaptive, score_sliding

LIMIT_BYTES = 45_000  # of code, for the evaluators and the training of a recipe
WHERE = """
import runpy, sys
sys.argv = ["train_gpt.py", *sys.argv[1:]]
runpy.run_path("train_gpt.py", run_name="__main__")
modules = [m for n, m in sys.modules.items() if n.split(".")[0] == "paramgolf"]
print("modules", len(modules), {m.__spec__.origin.partition(":")[0] for m in modules})
"""


@pytest.fixture
def packed_params(sample, tiny_model):
    """Parameters frozen into the code: two steps of a tiny network."""
    train = dataclasses.replace(
        sample.train, steps=2, batch_tokens=128, micro_batch_tokens=64, sequence_length=32
    )
    model = dataclasses.asdict(tiny_model())
    return frozen_params(model, train, sample.eval_sliding, sample.eval_ttt)


@pytest.fixture
def artifact(tmp_path, tiny_model, packed_params):
    """A folder that holds model.bin and train_gpt.py and nothing else."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    content, _ = encode(*make_quantized(tiny_model()), make_options())
    (folder / "model.bin").write_bytes(content)
    (folder / "train_gpt.py").write_bytes(pack_code(packed_params).content)
    return folder


def run(*arguments, cwd):
    # -I: no PYTHONPATH, no user site, not the script's folder
    command = [sys.executable, "-I", *map(str, arguments)]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("eval", []),
        ("eval_ttt", ["--chunk-tokens", "320", "--epochs", "1", "--lr", "1e-3"]),
    ],
)
def test_it_scores_as_the_library_does(artifact, tokens_folder, command, extra):
    common = ["--data", tokens_folder, "--stride", "16", "--max-tokens", "1000", "--device", "cpu"]
    found = run("train_gpt.py", command, *common, *extra, "--json", "out.json", cwd=artifact)
    assert found.returncode == 0, found.stderr
    mixture = {**MIXTURE, "kind": "none"}
    common = {"window": 32, "stride": 16, "max_tokens": 1000, "mixture": mixture}
    sliding = {**SLIDING, **common, "mode": "strided"}
    adapt = {**ADAPT, **common, "mode": "sgd", "chunk_tokens": 320, "epochs": 1, "lr": 1e-3}
    alone, model = Runtime(0, 1, torch.device("cpu")), artifact / "model.bin"
    if command == "eval":
        config = parse(SlidingConfig, sliding, "eval")
        expected = score_sliding(model, tokens_folder, config, alone).metrics
    else:
        config = parse(TttConfig, adapt, "eval_ttt")
        expected = score_adaptive(model, tokens_folder, config, alone).metrics
    written = json.loads((artifact / "out.json").read_text())
    for key in ("val_bpb", "val_loss", "val_bpb_plain", "tokens_scored", "bytes_scored"):
        assert written[key] == expected[key]
    assert json.loads(found.stdout) == written


def test_it_trains_from_its_own_modules(artifact, tokens_folder):
    (artifact / "data").mkdir()
    (artifact / "data/tokens").symlink_to(tokens_folder)
    found = run("-c", WHERE, "train", "--device", "cpu", cwd=artifact)
    assert found.returncode == 0, found.stderr
    assert (artifact / "artifacts/train/model.safetensors").is_file()
    config = json.loads((artifact / "artifacts/train/config.json").read_text())
    assert (config["vocab_size"], config["model"]["width"]) == (VOCAB, 32)
    _, count, where = found.stdout.splitlines()[-1].split(maxsplit=2)
    assert int(count) > 30
    assert ast.literal_eval(where) == {"train_gpt.py"}


def test_errors_are_one_message(artifact):
    found = run("train_gpt.py", "eval", "--stride", "0", "--device", "cpu", cwd=artifact)
    assert found.returncode == 2
    assert "stride` must be at least 1" in found.stderr
    assert "Traceback" not in found.stderr
    (artifact / "model.bin").write_bytes(b"nothing")
    found = run("train_gpt.py", "eval", "--device", "cpu", cwd=artifact)
    assert found.returncode == 2
    assert "not a model.bin: too short" in found.stderr


def test_the_decoder_of_rans_comes_along_where_it_is_needed(
    tmp_path, tiny_model, packed_params, tokens_folder, monkeypatch
):
    def codecs(stream, options, *, without_rans):
        return ["rans" if stream.shape else "brotli"]

    monkeypatch.setattr("paramgolf.codec.writer._codecs", codecs)
    content, _ = encode(*make_quantized(tiny_model()), make_options(codec="rans"))
    (tmp_path / "model.bin").write_bytes(content)
    options = ["--data", tokens_folder, "--max-tokens", "100", "--stride", "16", "--device", "cpu"]
    for rans in (True, False):
        (tmp_path / "train_gpt.py").write_bytes(pack_code(packed_params, rans=rans).content)
        found = run("train_gpt.py", "eval", *options, cwd=tmp_path)
        assert (found.returncode, "damaged rans data" in found.stderr) == (
            (0, False) if rans else (2, True)
        ), found.stderr


def test_tracebacks_show_lines_and_source_writes_them_out(tmp_path):
    (tmp_path / "paramgolf").mkdir()
    (tmp_path / "paramgolf/__init__.py").write_text("")
    (tmp_path / "paramgolf/other.py").write_text("def fall():\n    return 1 / 0  # on purpose\n")
    entry = tmp_path / "paramgolf/entry.py"
    entry.write_text("from paramgolf.other import fall\n\ndef main(params):\n    fall()\n")
    code = pack_code({}, entry=Path("paramgolf/entry.py"), root=tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/train_gpt.py").write_bytes(code.content)
    found = run("train_gpt.py", cwd=tmp_path / "empty")
    assert "paramgolf.other" in found.stderr
    assert "return 1 / 0" in found.stderr
    assert run("train_gpt.py", "source", "out", cwd=tmp_path / "empty").returncode == 0
    written = tmp_path / "empty/out/paramgolf/other.py"
    assert written.read_text() == "def fall():\n return 1 / 0"
    assert not (tmp_path / "empty/out/paramgolf.py").exists()


def test_size_and_shares(packed_params):
    code = pack_code(packed_params)
    assert len(code.content) == code.part.bytes == sum(code.part.shares.values())
    assert len(code.content) < LIMIT_BYTES
    assert code.content == pack_code(packed_params).content
    assert {*code.part.shares} == {"params", "loader", *program(packed_params)}
    assert module_name(RANS) not in code.part.shares
    assert module_name(RANS) in pack_code(packed_params, rans=True).part.shares


def test_parameters_of_training_that_nothing_reads_stay_out(tmp_path, packed_params):
    (tmp_path / "train_gpt.py").write_bytes(pack_code(packed_params).content)
    frozen = json.loads(runpy.run_path(str(tmp_path / "train_gpt.py"))["PARAMS"])
    assert packed_params["train"]["qat_below"] == 0
    assert "qat_below" not in frozen["train"]
    assert frozen["train"].items() < packed_params["train"].items()
    assert frozen["model"] == json.loads(json.dumps(packed_params["model"]))


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_literal_keeps_every_byte(newline):
    """Also where something turned the file's line ends into those of another system."""
    data = bytes(range(256)) * 2 + b'\0001\\n\r\n""'
    script = b"# coding: latin-1\nfound = " + literal(data).encode("latin-1") + b"\n"
    scope: dict = {}
    exec(compile(script.replace(b"\n", newline), "script", "exec"), scope)
    assert scope["found"].encode("latin-1") == data


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(list(b'\0\n\r\\"0178x\xff\x1aA'))).map(bytes))
def test_a_literal_keeps_what_looks_like_an_escape(data):
    scope: dict = {}
    exec(
        compile(b"# coding: latin-1\nfound = " + literal(data).encode("latin-1"), "s", "exec"),
        scope,
    )
    assert scope["found"].encode("latin-1") == data


def test_only_what_the_entry_imports_is_embedded():
    files = embedded_files()
    assert files == sorted(set(files))
    assert ENTRY in files
    assert Path("paramgolf/codec/container.py") in files
    for absent in ("codec/writer.py", "codec/code.py", "quant/gptq.py", "report/page.py", "cli.py"):
        assert (ROOT / "paramgolf" / absent).is_file()
        assert Path("paramgolf", absent) not in files


def test_defaults_are_those_of_the_base_recipe():
    base = read_yaml(ROOT / "recipes/base.yaml")
    for section, defaults in (("eval_sliding", SLIDING), ("eval_ttt", ADAPT)):
        frozen = {"mode": base[section]["mode"], "window": base[section]["window"]}
        mixture = {**MIXTURE, "kind": base[section]["mixture"]["kind"]}
        assert {**defaults, **frozen, "mixture": mixture} == base[section]
    assert base["runtime"] == RUNTIME


def test_another_way_than_the_frozen_one_is_refused(artifact, tokens_folder, tiny_model):
    """What the program has no code for: a mode, and a network that it was not packed for."""
    arguments = ["eval", "--device", "cpu", "--data", tokens_folder, "--stride", "16"]
    found = run("train_gpt.py", *arguments, "--mode", "documents", cwd=artifact)
    assert (found.returncode, "`eval.mode` must be one of strided" in found.stderr) == (2, True)
    other = tiny_model(smear="channel")
    (artifact / "model.bin").write_bytes(encode(*make_quantized(other), make_options())[0])
    found = run("train_gpt.py", *arguments, cwd=artifact)
    assert (found.returncode, "model.smear` must be one of none" in found.stderr) == (2, True)
