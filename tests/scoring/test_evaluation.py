"""Both evaluators from model.bin and a folder of tokens to metrics and Parquet."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from packed_case import write_package, write_tokens
from scoring_case import (
    ALONE,
    SLIDING,
    VOCAB,
    evaluated,
    make_config,
    make_lora_config,
    make_sliding,
    make_text,
)
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from shard_files import write_token_set

from paramgolf.bits_per_byte import bits_per_byte
from paramgolf.data.special_tokens import BOS
from paramgolf.data.tokenizer.training import OPTIONS
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file
from paramgolf.model.network import Network
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import ScoredText, score_adaptive, score_sliding
from paramgolf.scoring.session import Session
from paramgolf.scoring.stage import StageSession


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A package, tokens, and the network that the package must turn into."""
    folder = tmp_path_factory.mktemp("packed")
    return folder, write_package(folder)


def scored(folder: Path, config: SlidingConfig | TttConfig, runtime: Runtime = ALONE) -> ScoredText:
    """Score the package in a folder on the tokens in it."""
    score = score_sliding if isinstance(config, SlidingConfig) else score_adaptive
    return score(folder / "model.bin", folder, config, Session(runtime))


def reference(network: Network, stride: int) -> float:
    ledger = evaluated(network, make_text(170), make_sliding(stride=stride))
    return bits_per_byte(ledger.nats.sum(), int(make_text(170).byte_counts.sum()))


def test_sliding_scores_what_the_package_holds(packed):
    folder, network = packed
    metrics = scored(folder, SLIDING).metrics
    assert metrics["val_bpb"] == reference(network, 4)
    assert metrics["val_bpb_plain"] == reference(network, 16)
    assert metrics["val_bpb"] != metrics["val_bpb_plain"]
    assert metrics["tokens_scored"] == 170
    assert metrics["bytes_scored"] == make_text(170).byte_counts.sum()
    assert metrics["ledger"]["scored_once"] is True
    assert metrics["ledger"]["updates"] == 0
    parts = [metrics[f"seconds_{part}"] for part in ("load", "plain", "score")]
    assert 0 < sum(parts) < metrics["seconds"]


def test_adaptive_scores_what_the_package_holds(packed):
    folder, network = packed
    metrics = scored(folder, make_config()).metrics
    assert metrics["val_bpb_plain"] == reference(network, 16)
    assert metrics["updates"] == metrics["ledger"]["updates"] == 12
    assert metrics["ledger"]["score_first"] is True
    assert metrics["seconds_adapt"] > 0
    frozen = scored(folder, make_config(mode="none")).metrics
    assert frozen["val_bpb"] == pytest.approx(reference(network, 4), abs=1e-6)
    assert metrics["val_bpb"] != frozen["val_bpb"]


def test_adapters_score_what_the_package_holds(packed):
    folder, _ = packed
    for mode in ("lora_stream", "lora_documents"):
        metrics = scored(folder, make_lora_config(mode)).metrics
        assert metrics["mode"] == mode
        assert metrics["ledger"]["score_first"] is True
        assert metrics["updates"] == metrics["ledger"]["updates"] > 0
    assert metrics["order"] == "length"


def test_a_mixture_leaves_the_plain_score_alone(packed):
    folder, network = packed
    metrics = scored(folder, make_sliding("ngram")).metrics
    assert metrics["val_bpb_plain"] == reference(network, 16)
    assert metrics["val_bpb"] != reference(network, 4)
    assert metrics["seconds_mixture"] > 0


def test_the_plain_score_runs_the_code_that_is_compiled_for_documents(packed, monkeypatch):
    shapes = set()

    def nll(self, tokens, targets, options, **others):
        segments = options.segments
        shapes.add((tokens.shape, segments and (segments.bounds.shape, segments.longest)))
        return run(self, tokens, targets, options, **others)

    run = Network.nll
    monkeypatch.setattr(Network, "nll", nll)
    monkeypatch.setattr("paramgolf.model.backend.compiled", lambda backend: backend)
    folder, network = packed
    config = make_sliding(mode="documents")
    compiled = dataclasses.replace(ALONE, compile=True)
    metrics = scored(folder, config, compiled).metrics
    assert len(shapes) == 1
    assert metrics["val_bpb_plain"] == pytest.approx(reference(network, 16), abs=1e-6)
    plain = scored(folder, config).metrics
    assert metrics["val_bpb"] == pytest.approx(plain["val_bpb"], abs=1e-6)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A package, a tokenizer of as many tokens, and a text that it wrote."""
    folder = tmp_path_factory.mktemp("written")
    write_package(folder)
    texts = ["".join(np.random.default_rng(i).choice([*"aaabbcd e"], 200)) for i in range(9)]
    options = OPTIONS | {"byte_fallback": False, "vocab_size": VOCAB}
    path = folder / "tokenizer.model"
    with path.open("wb") as file:
        SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=file, **options)
    documents = SentencePieceProcessor(model_file=str(path)).encode(texts)
    tokens = np.array([id for ids in documents for id in (BOS, *ids)], dtype=np.uint16)
    counts = np.where(tokens == BOS, 0, 3).astype(np.uint16)
    write_token_set(folder, val=[tokens], val_bytes=[counts], vocab_size=VOCAB)
    return folder


@pytest.mark.parametrize("mode", [None, "sgd", "lora_stream", "lora_documents"])
def test_a_mask_lowers_the_scores(written, mode):
    def metrics(**changes):
        make = functools.partial(make_lora_config, mode) if mode else make_sliding
        return scored(written, make(**changes)).metrics

    masked, plain = metrics(token_mask=True), metrics()
    for key in ("val_bpb", "val_bpb_plain"):
        assert masked[key] < plain[key] - 0.01
    assert masked["ledger"] == plain["ledger"]


def test_a_text_that_the_tokenizer_did_not_write_is_refused_with_a_mask(written, tmp_path):
    for name in ("model.bin", "tokenizer.model"):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    write_tokens(tmp_path)  # any tokens
    config = make_sliding(token_mask=True)
    with pytest.raises(ParamGolfError, match=r"token_mask forbids(.|\n)*of 170 targets"):
        scored(tmp_path, config)


def test_the_tokenizer_that_a_mask_is_made_of_is_among_the_files_read(written, monkeypatch):
    monkeypatch.chdir(written)
    config = make_sliding(token_mask=True)
    session = StageSession("eval_sliding", config, ALONE, Path("model.bin"), Path())
    session.finish(score_sliding("model.bin", ".", config, session))
    metrics = json.loads(Path("artifacts/metrics/eval_sliding.json").read_text())
    assert sha256_file("tokenizer.model") in [file["sha256"] for file in metrics["read"]]


def test_max_tokens_is_said_in_the_metrics(packed):
    folder, _ = packed
    config = make_sliding(max_tokens=100)
    evaluation = scored(folder, config)
    assert evaluation.metrics["tokens_scored"] == len(evaluation.nats) == 100
    whole = scored(folder, SLIDING)
    np.testing.assert_allclose(evaluation.nats, whole.nats[:100], atol=1e-5)


@pytest.mark.parametrize("missing", ["model.bin", "val_000000.bin"])
def test_a_missing_file_is_one_message(tmp_path, monkeypatch, missing):
    write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / missing).unlink()
    paths = Path("model.bin"), Path()
    session = StageSession("eval_sliding", SLIDING, ALONE, *paths)
    with pytest.raises(ParamGolfError, match=missing):
        score_sliding(*paths, SLIDING, session)


def test_files_of_the_stage(packed, tmp_path, monkeypatch):
    folder, _ = packed
    monkeypatch.chdir(tmp_path)
    session = StageSession("eval_sliding", SLIDING, ALONE, folder / "model.bin", folder)
    evaluation = score_sliding(folder / "model.bin", folder, SLIDING, session)
    session.finish(evaluation)
    metrics = json.loads((tmp_path / "artifacts/metrics/eval_sliding.json").read_text())
    read = {Path(file["path"]): file["sha256"] for file in metrics.pop("read")}
    assert read.keys() == {path for path in folder.iterdir() if path.is_file()}
    assert all(sha256_file(path) == digest for path, digest in read.items())
    (wrote,) = metrics.pop("wrote")
    assert wrote["path"] == "artifacts/eval_sliding/documents.parquet"
    assert wrote["sha256"] == sha256_file(wrote["path"])
    assert metrics == evaluation.metrics
    table = pq.read_table(tmp_path / "artifacts/eval_sliding/documents.parquet").to_pydict()
    score = bits_per_byte(sum(table["nats"]), sum(table["bytes"]))
    assert score == pytest.approx(metrics["val_bpb"], rel=1e-12)
    assert sum(table["tokens"]) == metrics["tokens_scored"]
