"""train_gpt.py: what goes in, what is stripped, and that it runs alone in an empty folder."""

import ast
import dataclasses
import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from package_case import VOCAB, frozen, make_quantized
from process_case import ALONE
from recipe_case import recipe

from paramgolf.codec.writer import encode
from paramgolf.imports import imported_modules, module_file
from paramgolf.model.backend import document_sources
from paramgolf.packing.code import (
    ROOT,
    frozen_params,
    literal,
    minified,
    needed_modules,
    pack_code,
    program,
)
from paramgolf.packing.entry import SCORERS
from paramgolf.params import read_yaml
from paramgolf.quant.trellis import best_paths
from paramgolf.recipes import names
from paramgolf.runtime_config import ProcessConfig
from paramgolf.schema import parse
from paramgolf.scoring.session import Session
from paramgolf.submission.evaluate import score_in_project

RECIPES = ROOT / "recipes"
RANS = "paramgolf.codec.rans"
WHERE = """
import runpy, sys
sys.argv = ["train_gpt.py", *sys.argv[1:]]
runpy.run_path("train_gpt.py", run_name="__main__")
modules = [m for n, m in sys.modules.items() if n.split(".")[0] == "paramgolf"]
print("modules", len(modules), {m.__spec__.origin.partition(":")[0] for m in modules})
"""


@pytest.fixture
def make_params(sample, tiny_model):
    """Make parameters that are frozen into the code: two steps of a tiny network."""

    def make(mode="sgd", mixture="none", *, token_mask=False, precision="bf16"):
        sizes = {"batch_tokens": 128, "micro_batch_tokens": 64, "sequence_length": 32}
        train = dataclasses.replace(sample.train, steps=2, precision=precision, **sizes)
        mixing = dataclasses.replace(sample.eval_ttt.mixture, kind=mixture)
        windows = {"window": 32, "stride": 32}
        sliding = dataclasses.replace(sample.eval_sliding, **windows)
        changes = {"mode": mode, "mixture": mixing, "token_mask": token_mask}
        adapt = dataclasses.replace(sample.eval_ttt, **windows, **changes)
        return frozen_params(dataclasses.asdict(tiny_model()), train, sliding, adapt)

    return make


@pytest.fixture
def packed_params(make_params):
    return make_params()


@functools.cache
def packed(params):
    """The script of parameters in JSON, compressed once for all tests."""
    return pack_code(json.loads(params)).content


@pytest.fixture
def artifact(tmp_path, tiny_model, packed_params):
    """A folder that holds model.bin and train_gpt.py and nothing else."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    content, _ = encode(*make_quantized(tiny_model()), "brotli")
    (folder / "model.bin").write_bytes(content)
    (folder / "train_gpt.py").write_bytes(packed(json.dumps(packed_params)))
    return folder


def run(*arguments, cwd, environment=None, **options):
    # -I: no PYTHONPATH, no user site, not the script's folder
    command = [sys.executable, "-I", *map(str, arguments)]
    environment = environment or {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    options |= {"capture_output": True, "text": True}
    return subprocess.run(command, cwd=cwd, env=environment, **options)


def score(folder, tokens, *words, command="eval", **options):
    """Run the program's evaluation of few targets."""
    few = ("--device=cpu", "--max-tokens=100", "--stride=16", "--data", tokens)
    return run("train_gpt.py", command, *few, *words, cwd=folder, **options)


@pytest.mark.parametrize(
    ("command", "mode", "mixture", "extra"),
    [
        ("eval", "none", "none", {}),
        ("eval_ttt", "none", "ngram", {}),
        ("eval_ttt", "sgd", "none", {"chunk_tokens": 320, "epochs": 1, "lr": 1e-3}),
        ("eval_ttt", "lora_stream", "none", {"chunk_tokens": 320}),
        (
            "eval_ttt",
            "lora_documents",
            "tilt",
            {"documents": {"chunk_tokens": 16, "batch_documents": 4}},
        ),
    ],
)
def test_it_scores_as_the_library_does(
    artifact, tokens_folder, make_params, command, mode, mixture, extra
):
    params = make_params(mode, mixture)
    (artifact / "train_gpt.py").write_bytes(pack_code(params).content)
    changes = {"stride": 16, "max_tokens": 1000, **extra}
    words = [f"--{key.replace('_', '-')}={json.dumps(value)}" for key, value in changes.items()]
    words += ["--data", tokens_folder, "--device", "cpu", "--json", "out.json"]
    found = run("train_gpt.py", command, *words, cwd=artifact)
    assert found.returncode == 0, found.stderr
    if "documents" in extra:  # what is not named of it stays
        changes["documents"] = params[command]["documents"] | extra["documents"]
    kind, evaluate = SCORERS[command]
    config = parse(kind, {**params[command], **changes}, command)
    session = Session(ALONE)
    expected = evaluate(artifact / "model.bin", tokens_folder, config, session).metrics
    written = json.loads((artifact / "out.json").read_text())
    for key in ("val_bpb", "val_loss", "val_bpb_plain", "tokens_scored", "bytes_scored"):
        assert written[key] == expected[key]
    assert json.loads(found.stdout) == written


SLIDING = """
mode: windowed
window: 16
stride: 4
row_windows: 3
batch_windows: 2
max_tokens: 500
token_mask: false
mixture: {kind: blend, contexts: [1, 3], min_count: 2, primer_tokens: 100, weight: 0.02,
          min_share: 0.5, beta: 1.5}
"""
TTT = """
mode: lora_documents
window: 16
stride: 4
batch_windows: 2
max_tokens: 500
token_mask: false
chunk_tokens: 64
epochs: 2
batch_sequences: 3
lr: 0.01
momentum: 0.5
clip_norm: 0.5
adapter: {targets: [v, mlp], rank: 2, alpha: 3.0, seed: 4, init_std: 0.1, per_layer: true,
          last_layers: 2, lr: 0.01, beta1: 0.5, beta2: 0.9, eps: 1.0e-8, decay: 0.1}
stream: {reset_batches: 2, learn: window, temperature: 1.1}
documents: {order: stream, batch_documents: 3, chains: 2, chunk_tokens: 8, last_window: fixed,
            warm_a: false, idle_decay: false, phases: 2, prefix_documents: 4, repeat_bos: true}
mixture: {kind: tilt, contexts: [2, 4], min_count: 2, primer_tokens: 100, weight: 0.2,
          min_share: 0.4, beta: 1.5}
"""


@pytest.mark.parametrize(
    ("stage", "command", "content"),
    [("eval_sliding", "eval", SLIDING), ("eval_ttt", "eval_ttt", TTT)],
)
def test_without_options_it_scores_as_the_stage_did(
    artifact, tokens_folder, sample, stage, command, content, tmp_path, monkeypatch
):
    """Of a recipe in which hardly an option is that of base.yaml."""
    values = yaml.safe_load(content)
    config = parse(SCORERS[command][0], values, stage)
    params = frozen(dataclasses.replace(sample, **{stage: config}))
    (artifact / "train_gpt.py").write_bytes(pack_code(params).content)
    (artifact / "data").mkdir()
    (artifact / "data/tokens").symlink_to(tokens_folder)
    found = run("train_gpt.py", command, "--device=cpu", cwd=artifact)
    assert found.returncode == 0, found.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    content = {**dataclasses.asdict(sample), stage: values}
    expected = score_in_project(
        artifact / "model.bin", tokens_folder, content, stage, scratch=tmp_path / "stage", root=ROOT
    )
    scored = json.loads(found.stdout)
    for key in ("val_bpb", "val_bpb_plain", "tokens_scored", "train_tokens_read"):
        assert scored[key] == expected[key]
    assert scored["train_tokens_read"] == 100


@pytest.mark.parametrize("precision", ["bf16", "fp8_mlp"])
def test_it_trains_from_its_own_modules(artifact, tokens_folder, make_params, precision):
    params = make_params(precision=precision)
    (artifact / "train_gpt.py").write_bytes(packed(json.dumps(params)))
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


def test_the_key_of_a_run_to_resume_is_of_all_packed_modules(artifact, packed_params):
    """Of those that are imported later too, and of none beside the program."""
    say = "import train_gpt, paramgolf.training.run as r, paramgolf.checkpoint as c"
    found = run(
        "-c", f"import sys; sys.path.insert(0, '.'); {say}; print(*c.sources())", cwd=artifact
    )
    assert found.returncode == 0, found.stderr
    named = {*found.stdout.split()}
    assert named <= {*program(packed_params)}
    assert "paramgolf.model.kernels.heads" in named


def test_compiled_code_names_documents_as_the_library_does(artifact):
    """Where the sizes of documents vary: names of arguments, which packing could change."""
    assert run("train_gpt.py", "source", "out", cwd=artifact).returncode == 0
    say = "from paramgolf.model.backend import document_sources; print(document_sources())"
    found = run("-c", f"import sys; sys.path.insert(0, 'out'); {say}", cwd=artifact)
    assert found.stdout.split() == [document_sources()], found.stderr


@pytest.mark.gpu
def test_triton_compiles_kernels_from_the_packed_source(artifact, tokens_folder):
    (artifact / "data").mkdir()
    (artifact / "data/tokens").symlink_to(tokens_folder)
    words = ["--device", "cuda", "--processes", "1", "--kernels", "fused", "--attention", "sdpa"]
    found = run("train_gpt.py", "train", *words, cwd=artifact, environment=dict(os.environ))
    assert found.returncode == 0, found.stderr
    assert (artifact / "artifacts/train/model.safetensors").is_file()


def test_errors_are_one_message(artifact):
    found = run("train_gpt.py", "eval", "--stride", "0", "--device", "cpu", cwd=artifact)
    assert found.returncode == 2
    assert "stride` must be at least 1" in found.stderr
    assert "Traceback" not in found.stderr
    (artifact / "model.bin").write_bytes(b"nothing")
    found = run("train_gpt.py", "eval", "--device", "cpu", cwd=artifact)
    assert found.returncode == 2
    assert "not a model.bin: too short" in found.stderr


def test_its_help_and_its_errors_name_every_command(artifact):
    names = "{eval,eval_ttt,train,source}"
    assert names in run("train_gpt.py", "--help", cwd=artifact).stdout
    found = run("train_gpt.py", "sources", cwd=artifact)
    assert found.returncode == 2
    assert names in found.stderr


@pytest.mark.parametrize("command", ["eval", "eval_ttt", "train", "source"])
def test_every_command_has_help_and_refuses_what_it_does_not_know(artifact, command):
    before = {*artifact.iterdir()}
    found = run("train_gpt.py", command, "--help", cwd=artifact)
    assert (found.returncode, found.stdout[:6]) == (0, "usage:")
    for words in (["--nothing=1"], ["folder", "other"], ["folder", "--nothing"], ["--", "-x"]):
        found = run("train_gpt.py", command, *words, cwd=artifact)
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
        assert found.stderr.count("error: ") == 1
    assert {*artifact.iterdir()} == before


def test_a_disk_that_is_full_is_one_message(artifact, tokens_folder):
    def refuse_writing():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    found = score(artifact, tokens_folder, "--json=out.json", preexec_fn=refuse_writing)
    assert found.returncode == 2
    assert found.stderr.endswith("paramgolf: [Errno 27] File too large\n")
    assert "Traceback" not in found.stderr


def test_the_decoder_of_rans_comes_along_where_it_is_needed(
    tmp_path, tiny_model, packed_params, tokens_folder
):
    tensors, config = make_quantized(tiny_model())
    columns = tensors["up.integers"].float().transpose(1, 2)
    paths = best_paths(columns, torch.ones_like(columns), torch.full_like(columns, 31.0), (64,))
    tensors["up.integers"] = paths.transpose(1, 2).to(torch.int8)  # which rans alone takes well
    content, parts = encode(tensors, config, "rans")
    assert "rans" in {part.codec for part in parts}
    (tmp_path / "model.bin").write_bytes(content)
    for rans in (True, False):
        (tmp_path / "train_gpt.py").write_bytes(pack_code(packed_params, rans=rans).content)
        found = score(tmp_path, tokens_folder)
        refused = "no module paramgolf.codec.rans" in found.stderr
        assert (found.returncode, refused) == ((0, False) if rans else (2, True)), found.stderr


def test_tracebacks_show_lines_and_source_writes_them_out(tmp_path):
    (tmp_path / "paramgolf").mkdir()
    (tmp_path / "paramgolf/__init__.py").write_text("")
    (tmp_path / "paramgolf/process.py").write_text("def start_process():\n    pass\n")
    (tmp_path / "paramgolf/other.py").write_text("def fall():\n    return 1 / 0  # on purpose\n")
    entry = tmp_path / "paramgolf/entry.py"
    entry.write_text(
        "from paramgolf import other, process\n\ndef main(params):\n    other.fall()\n"
    )
    code = pack_code({}, entry=Path("paramgolf/entry.py"), root=tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/train_gpt.py").write_bytes(code.content)
    found = run("train_gpt.py", cwd=tmp_path / "empty")
    assert "paramgolf.other" in found.stderr
    assert "return 1/0" in found.stderr
    assert run("train_gpt.py", "source", "out", cwd=tmp_path / "empty").returncode == 0
    written = tmp_path / "empty/out/paramgolf/other.py"
    assert written.read_text() == "def fall():return 1/0"
    assert not (tmp_path / "empty/out/paramgolf.py").exists()


def test_frozen_parameters_bring_no_checks_of_their_own(packed_params):
    """Those of training; a model.bin of another network, and options, are checked there."""
    modules = program(packed_params)
    assert "def faults" not in modules["paramgolf.training.config"]
    for name in ("paramgolf.model.config", "paramgolf.scoring.config"):
        assert "def faults" in modules[name]


def test_shares_of_modules_add_up_to_the_size_of_the_code(packed_params):
    code = pack_code(packed_params)
    assert len(code.content) == code.part.bytes == sum(code.part.shares.values())
    assert code.content == pack_code(packed_params).content
    assert {*code.part.shares} == {"params", "loader", *program(packed_params)}
    assert RANS not in code.part.shares
    assert RANS in pack_code(packed_params, rans=True).part.shares


@pytest.mark.parametrize("name", names(RECIPES))
def test_the_fit_leaves_room_for_the_code_of_a_recipe(name):
    params = recipe(name)
    assert len(pack_code(frozen(params), rans=True).content) <= params.quantize.fit_code_bytes


@pytest.mark.parametrize(
    ("mode", "mixture", "changes"),
    [
        ("none", "none", {}),
        ("sgd", "ngram", {"precision": "fp8_mlp"}),
        ("lora_stream", "none", {"token_mask": True}),
        ("lora_documents", "tilt", {}),
    ],
)
def test_a_module_that_is_left_out_is_imported_within_functions_alone(
    make_params, mode, mixture, changes
):
    params = make_params(mode, mixture, **changes)
    modules = program(params)
    needed = needed_modules(params, rans=False)
    for name, is_needed in needed.items():
        assert (name in modules) == is_needed
        assert module_file(name, ROOT)
    for source in modules.values():
        tree = ast.parse(source)
        tree.body = [s for s in tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
        files = {module_file(name, ROOT) for name in imported_modules(tree) - modules.keys()}
        assert {file.name for file in files if file} <= {"__init__.py"}


SOURCE = '''"""Module."""
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Kept:
    """Doc."""
    field: int = 3  # parse reads this annotation

    def method(self, amount: float, *, key: str = "a") -> str:
        """Doc."""
        result = f"{amount}{key}{self.field}"
        return result

def raises():
    """Only a docstring."""
    assert raises

def refuses(advice):
    raise ParamGolfError("no", fix=advice) from ParamGolfError("never", fix="dvc repro")
'''
KERNEL = '''import triton

@triton.jit
def kernel(pointer, BLOCK: triton.constexpr):
    """Doc."""
    result = pointer + BLOCK + BLOCK
    return result
'''


def test_words_go_and_behaviour_stays():
    text = minified(SOURCE)
    scope: dict = {}
    exec(text, scope)
    assert scope["Kept"].__annotations__ == {"field": "int"}
    assert scope["Kept"](4).method(1.5, key="b") == "1.5b4"
    assert scope["raises"]() is None
    assert "ParamGolfError('no',fix=advice)from ParamGolfError('never')" in text
    for word in ("Doc", "Module", "docstring", "parse reads", "float", "result"):
        assert word not in text


def test_what_triton_reads_stays():
    text = minified(KERNEL)
    for words in ("pointer,BLOCK:triton.constexpr", "result=pointer+BLOCK+BLOCK"):
        assert words in text
    assert "Doc" not in text


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


def test_what_only_packing_needs_stays_out(make_params):
    modules = program(make_params("lora_documents", "tilt"), rans=True)
    assert {"paramgolf.packing.entry", "paramgolf.codec.container"} <= modules.keys()
    for absent in ("codec.writer", "packing.code", "quant.gptq", "report.page", "cli"):
        assert module_file(f"paramgolf.{absent}", ROOT)
        assert f"paramgolf.{absent}" not in modules


def test_facts_of_the_machine_are_those_of_the_base_recipe(packed_params):
    base = read_yaml(RECIPES / "base.yaml")
    defaults = json.loads(json.dumps(packed_params))
    machine = {
        field.name: base["runtime"][field.name] for field in dataclasses.fields(ProcessConfig)
    }
    assert parse(ProcessConfig, defaults["runtime"], "r") == parse(ProcessConfig, machine, "r")


def test_what_the_program_has_no_code_for_is_refused(artifact, tokens_folder):
    found = score(artifact, tokens_folder, "--mixture={kind: ngram}")
    assert (found.returncode, "no module paramgolf.scoring.mixture" in found.stderr) == (2, True)
    found = score(artifact, tokens_folder, "--mode=lora_stream", command="eval_ttt")
    assert (found.returncode, "unrecognized arguments" in found.stderr) == (2, True)


def test_it_scores_another_network_than_its_own(artifact, tokens_folder, tiny_model):
    other = tiny_model(smear="channel")
    (artifact / "model.bin").write_bytes(encode(*make_quantized(other), "brotli")[0])
    found = score(artifact, tokens_folder)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["tokens_scored"] == 100
