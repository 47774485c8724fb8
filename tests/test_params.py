"""The parameter file: every fault is named, with its dotted key, in one message."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from paramgolf.errors import ParamGolfError
from paramgolf.model.config import ModelConfig
from paramgolf.params import load_params, parse_yaml
from paramgolf.quant.config import QuantizeConfig
from paramgolf.recipes import check, compose
from paramgolf.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
SAMPLE = compose("sample", ROOT / "recipes")
ORDER = [*range(6)]  # of its layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str


def faults_of(changes: dict[str, Any]) -> str:
    """Return the message about the sample recipe with `changes`, by dotted key."""
    content = copy.deepcopy(SAMPLE)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = content
        for part in path:
            section = section[part]
        section[last] = value
    with pytest.raises(ParamGolfError) as caught:
        check(content, where="params.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.sed": 1}, "`train.sed` is not a parameter; did you mean `train.seed`?"),
        ({"train.seed": "one"}, "`train.seed` must be a whole number, found 'one'"),
        ({"model.heads": 3}, "`model.heads` must divide `width`: 3 does not divide 128"),
        (
            {"model.recurrence": [{"at": 0.5, "order": [*ORDER, 17]}]},
            "`model.recurrence.0.order` names layers that do not exist: [17]",
        ),
        (
            {"model.recurrence": [{"at": 0.5, "order": [0, 1, 2]}]},
            "`model.recurrence.0.order` leaves out layers: [3, 4, 5]",
        ),
        ({"model.parallel_start": 1}, "`model.parallel_start` must lie in the decoder, 4..5"),
        ({"train.steps": None}, "`train.steps` or `budget_seconds` must be set"),
        ({"train.batch_tokens": 1000}, "`train.batch_tokens` must be a multiple"),
        ({"eval_sliding.stride": 257}, "`eval_sliding.stride` must lie in 1..window (256)"),
        ({"eval_ttt.chunk_tokens": 1000}, "`eval_ttt.chunk_tokens` must be a multiple"),
        ({"quantize.matrix_bits": 9}, "`quantize.matrix_bits` must lie in 2..8, found 9"),
        (
            {"quantize.embedding_method": "foo"},
            "`quantize.embedding_method` must be one of gptq, nearest, found 'foo'",
        ),
        (
            {"quantize.mlp_bits": 5, "quantize.high_bits_matrices": 3},
            "`quantize.mlp_bits` must be null with `high_bits_matrices`",
        ),
        ({"data.source": "files"}, "`data.files` must name at least one path"),
        ({"tokenizer.vocab_size": 70_000}, "`tokenizer.vocab_size` must lie in 300..65536"),
        ({"package.limit_bytes": 0}, "`package.limit_bytes` must be at least 1"),
        ({"calibrate.temperature": 0}, "`calibrate.temperature` must be above 0"),
        ({"data.validation_documents": 0}, "`data.validation_documents` must be at least 1 where"),
        ({"tokenizer.source": "file"}, "`tokenizer.path` must name a tokenizer model"),
        ({"model.rope_dims": 34}, "`model.rope_dims` must be even and at most the head size 32"),
        ({"model.window_layers": [6]}, "`model.window_layers` must lie in 0..5"),
        ({"model.bigram_buckets": 1}, "`model.bigram_buckets` must be 0 or at least 2"),
        (
            {"model.recurrence": [{"at": 1.0, "order": ORDER}]},
            "`model.recurrence.0.at` is a fraction and must be below 1, found 1.0",
        ),
        (
            {"model.recurrence": [{"at": at, "order": ORDER} for at in (0.5, 0.3)]},
            "`model.recurrence` must be in rising order of `at`: 0.5 before 0.3",
        ),
        (
            {"model.recurrence": [{"at": 0.5, "order": [*ORDER, 3, 4, 5]}]}
            | {"model.parallel": "lanes"},
            "`model.recurrence` returns to layers before 4",
        ),
        ({"train.warmdown": 2.0}, "`train.warmdown` is a fraction and must lie in 0..1, found 2.0"),
        ({"train.micro_batch_tokens": 100}, "`train.sequence_length` must divide"),
        (
            {"train.loader": "documents", "train.micro_batch_tokens": 12288},
            "`train.batch_tokens` must be a multiple of `train.micro_batch_tokens`",
        ),
        (
            {"quantize.fit_bytes": 10**6, "quantize.grid": "absmax"},
            "`quantize.fit_bytes` needs `grid` sdclip",
        ),
        (
            {"quantize.balance": 0.5, "quantize.percentile_by": "matrix"},
            "`quantize.percentile_by` must be row with `balance`",
        ),
        ({"quantize.trellis": True, "quantize.matrix_bits": 8}, "`quantize.trellis` needs bits of"),
        ({"calibrate.sensitivity_sequences": 257}, "must lie in 0..sequences (256)"),
        ({"eval_ttt.mixture.contexts": []}, "`eval_ttt.mixture.contexts` must name at least one"),
        (
            {"quantize.fit_bytes": 5000, "quantize.fit_code_bytes": 5000},
            "`quantize.fit_bytes` must be above `quantize.fit_code_bytes`",
        ),
        ({"model.smear_gate_init": -1e5}, "`model.smear_gate_init` must lie in -10000.0..10000.0"),
        ({"eval_ttt.mixture.beta": 100.0}, "`eval_ttt.mixture.beta` must lie in 0..80"),
    ],
)
def test_a_fault_of_the_pipeline_parameters_is_named(changes, message):
    assert message in faults_of(changes)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (TrainConfig, {"budget_seconds": 5.0, "reserve_seconds": 5.0}, "`train.reserve_seconds`"),
        (QuantizeConfig, {"fit_bytes": 5, "fit_code_bytes": 5}, "`quantize.fit_bytes` must"),
        (ModelConfig, {"repeat_step": 1e5}, "`model.repeat_step` must be above 0 and at most"),
    ],
)
def test_a_stage_alone_refuses_what_its_section_cannot_be(section, changes, message, tmp_path):
    name = message.partition(".")[0].strip("`")
    path = tmp_path / "params.yaml"
    content = SAMPLE[name] | changes
    path.write_text(yaml.safe_dump({name: content}))
    with pytest.raises(ParamGolfError, match=re.escape(message)):
        load_params(section, name, path)


OUTSIDE = {
    "data.hub.train_shards": 0,
    "data.max_documents": 0,
    "tokenizer.shard_tokens": 2**31,
    "audit.allowed_overlap": -1,
    "audit.near_copy_share": 1.5,
    "model.layers": 10**9,
    "model.skip_rows": -1,
    "model.rope_trained_length": 0,
    "model.mlp_slope": 1e308,
    "model.softcap": 0,
    "train.steps": 0,
    "train.seed": -1,
    "train.token_lr": -1,
    "train.ema_decay": 1.0,
    "train.matrix_lr": 1e31,
    "train.micro_batch_tokens": 2**31,
    "eval_sliding.window": 2**62,
    "eval_sliding.mixture.contexts": (1, 2**31),
    "train.curriculum": [{"at": 1.0, "batch_tokens": 256, "sequence_length": 256}],
    "calibrate.seed": 2**32,
    "quantize.low_rank": 65,
    "eval_ttt.adapter.rank": 0,
    "verify.eval_seconds": 0,
    "runtime.processes": -1,
    "runtime.workers": -1,
}


@pytest.mark.parametrize("key", OUTSIDE)
def test_a_number_outside_its_range_is_named(key):
    value = OUTSIDE[key]
    inner = {list: ".0.at", tuple: ".1"}.get(type(value), "")
    assert re.search(rf"`{key}{inner}` must (be|lie) .*, found ", faults_of({key: value}))


@pytest.mark.parametrize("word", ["on", "no", "y", "010", "1:30", "12:30:00.5", "0o17"])
def test_what_yaml_1_1_alone_takes_for_truth_or_number_is_a_text(word):
    """DVC reads YAML 1.2: of a `steps: 010` it would know 10, where YAML 1.1 has 8."""
    assert parse_yaml(word) == word
    assert f"`train.steps` must be a whole number, found '{word}'" in faults_of(
        {"train.steps": parse_yaml(word)}
    )


def test_numbers_and_truths_of_both_versions_are_read():
    text = "[true, False, 0, -12, 1_000, 0x1F, 0b11, 1.5, -.5, 1.0e+5, .5e-3]"
    expected = [True, False, 0, -12, 1000, 31, 3, 1.5, "-.5", 1e5, 5e-4]
    assert parse_yaml(text) == expected


def test_an_exponent_needs_neither_point_nor_sign():
    """As DVC writes 1e-08, which YAML 1.1 takes for a text."""
    assert parse_yaml("[1e-08, -2E5, 1.5e3, .5e1]") == [1e-08, -2e5, 1500.0, 5.0]
    assert parse_yaml("[1e, e5, 1e5x, 0x1e5]") == ["1e", "e5", "1e5x", 0x1E5]


@pytest.mark.parametrize(
    "key", ["train.seed", "eval_ttt.max_tokens", "package.limit_bytes", "tokenizer.training_bytes"]
)
def test_counts_of_bytes_and_tokens_may_be_larger(key):
    section, name = key.split(".")
    content = copy.deepcopy(SAMPLE)
    content[section][name] = 2**32 - 1
    check(content, where="params.yaml")


def test_gates_need_their_channels():
    narrow = {"model.width": 8, "model.heads": 2, "model.kv_heads": 1, "model.rope_dims": 4}
    assert "`model.head_gate` sparse needs" in faults_of({**narrow, "model.head_gate": "sparse"})
    assert "`model.smear` token needs" in faults_of({**narrow, "model.smear": "token"})


def test_a_long_value_is_shortened():
    message = faults_of({"data.source": "x" * 10_000, "train.seed": 10**4000})
    assert len(message) < 400


def test_all_faults_come_in_one_message():
    message = faults_of(
        {"train.sed": 1, "train.seed": "one", "model.heads": 3, "model.parallel_start": 1}
    )
    assert message.startswith("5 faults in the parameters\n  - ")  # 3 heads also break kv_heads
    assert message.count("\n  - ") == 5
    assert message.endswith("where: params.yaml")


def test_sections_that_disagree_are_named():
    changes = {
        "tokenizer.source": "published",
        "train.muon_kv_heads": 3,
    }
    message = faults_of(changes)
    assert "`tokenizer.source` must be published exactly when data.source is hub" in message
    assert "`train.muon_kv_heads` must divide `model.kv_heads` 2, found 3" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("a: [", "not YAML"),
        ("outer: 1\nouter: 2", "the key 'outer' comes twice"),
        ("outer: {name: x, name: y}", "the key 'name' comes twice"),
        ("a: &x [1]\nouter: *x", "an alias (*name) is not taken here"),
        ("a: !!python/object:os.system x", "a tag (!name) is not taken here"),
        ("[" * 100_000, "nested too deeply"),
        ("a: 2020-13-45", "month must be in 1..12"),
        (f"a: {'9' * 5000}", "not YAML"),
        (f"a: {'9' * 30}", "an integer beyond 64 bits"),
        ("? [1]\n: 2", "a key must be a name"),
        ("outer: {name: 2020-01-01}", "`outer.name` must be a text"),
        ("- 1", "not a YAML mapping"),
        ("train: 1", "section `outer` is missing"),
        ("outer: 1", "`outer` must be a mapping, found 1"),
    ],
)
def test_a_bad_file_is_named(content, message, tmp_path):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ParamGolfError) as caught:
        load_params(Outer, "outer", path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
