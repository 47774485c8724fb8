"""The audit, held against each published accounting bug: it must name the fault or show it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import token_case
from shard_files import PublishedShards, write_shard

from paramgolf.data.manifests import SIDECAR_RULE
from paramgolf.data.near_copies import SEPARATOR
from paramgolf.data.overlap import Part, Split, compare
from paramgolf.data.shards import read_shard
from paramgolf.data.tokenizer.byte_counts import ByteTable, byte_table
from paramgolf.data.tokenizer.vocabulary_sentencepiece import load_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file, write_json

VAL, TRAIN = token_case.make_texts(1, 12), token_case.make_texts(2, 40)
Counter = Callable[[ByteTable, np.ndarray], np.ndarray]


class Case(token_case.Case):
    """Two splits, by default the texts of this module, by a SentencePiece model."""

    def __init__(
        self,
        folder: Path,
        model: bytes | None = None,
        val: Sequence[str] = VAL,
        train: Sequence[str] = TRAIN,
    ) -> None:
        raw = token_case.write_raw(folder / "raw", val, train)
        model = model or token_case.trained()
        super().__init__(raw, token_case.write_tokens(raw, folder / "tokens", model))

    def model(self) -> sentencepiece.SentencePieceProcessor:
        return load_tokenizer(self.tokens / "tokenizer.model")

    def parted(self) -> np.ndarray:
        """Return the two characters of the first merge as tokens, which is never written."""
        model = self.model()
        tokens = np.array(model.piece_to_id([*model.id_to_piece(260)]), dtype=np.uint16)
        assert len(tokens) == 2
        return tokens

    def recount(self, count: Counter) -> None:
        """Count the validation bytes by a false rule."""
        self.replace("val_bytes", count(byte_table(self.model()), self.split("val")))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_sound_set_gives_its_figures(case: Case) -> None:
    total = sum(len(text.encode()) for text in VAL)
    found = case.audit(allowed_near_copies=0.0)
    read = {Path(file["path"]): file["sha256"] for file in found.pop("read")}
    files = {path for path in case.tokens.parent.glob("*/*") if path.is_file()}
    assert read == {path: sha256_file(path) for path in files}
    assert 0 < found.pop("mask_share") < 1
    assert found == {
        "pairs_forbidden": 0,
        "documents_train": 40,
        "documents_val": 12,
        "bytes_val_raw": total,
        "bytes_val_counted": total,
        "bytes_lost": 0,
        "bytes_per_token": total / len(case.split("val")),
        "bytes_scored_rule": "token table, at most the bytes of the document's text",
        "lossless": True,
        "near_copies": 0,
        "normalization": "none",
        "train_val_overlap": 0,
        "val_shingles_in_train": {
            **dict.fromkeys(("mean", "p50", "p90", "p99", "most"), 0.0),
            "sampled_every": 1,
            "unknown": 0,
        },
    }


@pytest.mark.parametrize("block_tokens", [1, 2, 1 << 22])
def test_pairs_that_the_tokenizer_never_writes_are_counted(
    case: Case, monkeypatch: pytest.MonkeyPatch, block_tokens: int
) -> None:
    case.replace("train", np.r_[case.split("train"), case.parted()])
    monkeypatch.setattr("paramgolf.data.audit.BLOCK_TOKENS", block_tokens)  # one ends in the pair
    assert case.audit()["pairs_forbidden"] == 1


def twice_the_space(table: ByteTable, ids: np.ndarray) -> np.ndarray:
    return table.counts(ids) + table.leading[ids]


def three_a_fallback(table: ByteTable, ids: np.ndarray) -> np.ndarray:
    return table.counts(ids) + 2 * table.fallback[ids]


def no_space(table: ByteTable, ids: np.ndarray) -> np.ndarray:
    return table.base[ids]


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (twice_the_space, r"each leading space is counted twice \(pg#1545\)"),
        (three_a_fallback, r"byte-fallback tokens are counted as 3 bytes \(pg#1143\)"),
        (no_space, "leading spaces are not counted"),
    ],
)
def test_a_false_count_is_named_with_its_first_document(
    case: Case, count: Counter, name: str
) -> None:
    case.recount(count)
    case.refuse(rf"differ from its text: {name}\n  where: val:1\n")


@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_too_many_or_too_few_is_found(case: Case, change: int) -> None:
    def count(table: ByteTable, ids: np.ndarray) -> np.ndarray:
        counts = table.counts(ids).astype(np.int64)
        counts[np.flatnonzero(ids == 1)[7] + 1] += change
        return counts

    case.recount(count)
    expected = len(VAL[7].encode())
    case.refuse(rf"where: val:8\n  expected: {expected} bytes\n  found: {expected + change} bytes")


def test_a_control_token_that_counts_is_found(case: Case) -> None:
    case.recount(lambda table, ids: table.counts(ids) + (ids == 1))
    case.refuse("the byte counts of a validation document differ from its text")


def test_a_tokenizer_without_a_space_piece_is_refused(case: Case) -> None:
    path = case.tokens / "tokenizer.model"
    path.write_bytes(token_case.spaceless())
    manifest = case.manifest() | {"tokenizer_sha256": sha256_file(path)}
    write_json(case.tokens / "manifest.json", manifest)
    case.refuse(r"no piece U\+2581 alone \(pg#897\)")


@pytest.mark.parametrize("split", ["val", "train"])
def test_missing_bos_is_named(case: Case, split: str) -> None:
    tokens = case.split(split)
    case.replace(split, tokens[tokens != 1])
    case.refuse(rf"the {split} shards are cut, or BOS is missing before documents \(pg#1779\)")


def test_missing_bos_is_named_even_where_the_manifest_hides_it(case: Case) -> None:
    tokens, counts = case.split("val"), case.split("val_bytes")
    case.replace("val_bytes", counts[tokens != 1])
    case.replace("val", tokens[tokens != 1], documents=0)
    case.refuse("the val shards do not hold all documents of the source")


def cut_file(case: Case) -> None:
    path = case.tokens / "val_000000.bin"
    path.write_bytes(path.read_bytes()[:-100])


def drop_documents(case: Case) -> None:
    stop = np.flatnonzero(case.split("val") == 1)[9]
    case.replace("val_bytes", case.split("val_bytes")[:stop])
    case.replace("val", case.split("val")[:stop], documents=9)


def drop_tail(case: Case) -> None:
    case.replace("val_bytes", case.split("val_bytes")[:-5])
    case.replace("val", case.split("val")[:-5])


def shorten_quietly(case: Case) -> None:
    write_shard(case.tokens / "val_000000.bin", case.split("val")[:-5])


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (cut_file, "a shard is cut short or too long"),
        (drop_documents, "the val shards do not hold all documents of the source"),
        (drop_tail, "the validation tokens are not those of the validation text\n  where: val:12"),
        (shorten_quietly, "the val shards are cut"),
    ],
)
def test_a_truncated_validation_shard_is_refused(
    case: Case, cut: Callable[[Case], None], expected: str
) -> None:
    case.replace("val", case.split("val"))  # one shard, so that all of it is in reach
    cut(case)
    case.refuse(expected)


def test_validation_documents_in_another_order_are_refused(case: Case) -> None:
    # parallel preparation made another validation set (pg#2109)
    tokens, counts = case.split("val"), case.split("val_bytes")
    stop = np.flatnonzero(tokens == 1)[1]
    case.replace("val", np.roll(tokens, -stop))
    case.replace("val_bytes", np.roll(counts, -stop))
    case.refuse("the validation tokens are not those of the validation text\n  where: val:1\n")


def test_an_exchanged_shard_is_refused(case: Case) -> None:
    counts = case.split("val_bytes")
    path = case.manifest()["val_bytes"]["files"][0]["name"]
    size = len(read_shard(case.tokens / path))
    write_shard(case.tokens / path, np.roll(counts, 1)[:size])
    case.refuse("val_bytes_000000.bin is not the file of the manifest")


@pytest.mark.parametrize(
    "name", ["raw/train.jsonl.zst", "raw/val.jsonl.zst", "tokens/train_000000.bin"]
)
def test_a_file_that_is_not_the_manifests_is_refused(case: Case, name: str) -> None:
    """An empty training text would share nothing with the validation text."""
    path = case.tokens.parent / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if path.suffix == ".bin" else b"")
    case.refuse(rf"{path} is not the file of the manifest\n(.|\n)*(download|retokenize)`")
    path.unlink()
    case.refuse("is missing|there is no file")


def test_a_split_that_leaks_is_refused_and_measured(tmp_path: Path) -> None:
    # prepared with 10,000 validation documents, the rest of the 50,000 is in training (pg#2127)
    texts = token_case.make_texts(4, 50)
    case = Case(tmp_path, val=texts, train=texts[10:] + TRAIN)
    case.refuse(r"the training text holds validation documents \(pg#2127\)")
    case.refuse(r"train:1 \(training\) = val:11 \(validation\)(.|\n)*found: 40 documents")
    with pytest.raises(ParamGolfError, match=r"at most 39 \(audit.allowed_overlap\)"):
        case.audit(allowed_overlap=39)
    metrics = case.audit(allowed_overlap=40)
    assert metrics["train_val_overlap"] == metrics["near_copies"] == 40


def test_overlap_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    val, train = (
        [[bytes(row) for row in rng.integers(0, 3, (4, 3))] for _ in range(parts)]
        for parts in (5, 13)
    )

    def read(contents: list[bytes]) -> Part:
        letters = np.frombuffer(SEPARATOR * (len(contents) + 1), np.uint8)
        return Part([str(content) for content in contents], contents, letters)

    found = compare(Split(val, read, 5), Split(train, read, 13), 1)
    held = list(itertools.chain(*val))
    twins = [content for content in itertools.chain(*train) if content in held]
    assert (found.documents_train, found.documents) == (52, len(twins))
    assert found.first == f"{twins[0]} (training) = {twins[0]} (validation)"


@pytest.mark.parametrize("dummy", [False, True])
def test_a_lossy_tokenizer_is_measured(tmp_path: Path, dummy: bool) -> None:
    model = token_case.other(**token_case.PUBLISHED, add_dummy_prefix=dummy)
    case = Case(tmp_path, model)
    metrics = case.audit()
    raw = sum(len(text.encode()) for text in VAL)
    assert not metrics["lossless"]
    assert metrics["normalization"] == "nmt_nfkc"
    assert metrics["bytes_val_raw"] == raw
    processor = token_case.processor(model)
    decoded = [len(processor.decode(processor.encode(text)).encode()) for text in VAL]
    smaller = sum(min(d, len(text.encode())) for d, text in zip(decoded, VAL, strict=True))
    assert metrics["bytes_val_counted"] == smaller < raw
    assert metrics["bytes_lost"] == raw - smaller


@pytest.mark.parametrize("published", [False, True])
def test_the_sign_for_a_space_comes_back_as_one(tmp_path: Path, published: bool) -> None:
    text = "the \u2581\u2582\u2583 of the"
    model = token_case.other(**token_case.PUBLISHED) if published else None
    metrics = Case(tmp_path, model, [text, *VAL]).audit()
    assert metrics["normalization"] == ("nmt_nfkc" if published else "space_sign")
    if not published:
        assert metrics["bytes_lost"] == 2


def test_unknown_characters_count_nothing_and_are_a_loss(tmp_path: Path) -> None:
    """A model without byte fallback: the space behind an unknown character still counts."""
    options = {"byte_fallback": False, "vocab_size": 80, "add_dummy_prefix": True}
    case = Case(tmp_path, token_case.other(**options))
    metrics = case.audit()
    known = sum(len(text.replace("\u2603", "").encode()) for text in VAL)
    assert metrics["bytes_val_counted"] == known < metrics["bytes_val_raw"]
    assert metrics["normalization"] == "other"


def test_a_normalisation_that_lengthens_does_not_flatter(tmp_path: Path) -> None:
    text = "\u00bd of the and"  # 1/2 has more bytes than U+00BD
    case = Case(tmp_path, token_case.other(**token_case.PUBLISHED), [text, *VAL])
    case.audit()
    found, ids = case.split("val_bytes"), case.split("val")
    stop = int(np.flatnonzero(ids == 1)[1])
    decoded = byte_table(case.model()).counts(ids[:stop]).sum()
    assert found[:stop].sum() == len(text.encode()) < decoded


def published(case: Case, folder: Path) -> None:
    """Turn the case into published shards: no raw text, only what the manifest says."""
    shutil.rmtree(case.raw)
    shards = PublishedShards(case.raw, b"")
    for split, documents in (("val", 12), ("train", None), ("val_bytes", None)):
        shards.add(split, [case.split(split)], documents=documents)


def test_published_shards_are_counted_by_decoding(case: Case, tmp_path: Path) -> None:
    published(case, tmp_path)
    metrics = case.audit()
    assert metrics["bytes_val_raw"] == sum(len(text.encode()) for text in VAL)
    assert metrics["documents_train"] == 40
    assert metrics["lossless"]
    case.recount(twice_the_space)
    case.refuse(r"counted twice \(pg#1545\)\n  where: validation document 0")


def test_published_tokens_that_the_tokenizer_does_not_write_are_not_lossless(
    case: Case, tmp_path: Path
) -> None:
    published(case, tmp_path)
    case.replace("val", np.r_[case.split("val"), case.parted()])
    case.replace("val_bytes", np.r_[case.split("val_bytes"), 1, 1])
    metrics = case.audit()
    assert not metrics["lossless"]
    assert (metrics["normalization"], metrics["bytes_lost"]) == ("published", 0)


def test_published_shards_that_leak_are_refused(case: Case, tmp_path: Path) -> None:
    published(case, tmp_path)
    case.replace("train", case.split("val"), documents=12)
    case.refuse(r"holds validation documents \(pg#2127\)(.|\n)*found: 12 documents")


def test_a_published_sidecar_may_count_less_but_never_more(case: Case, tmp_path: Path) -> None:
    published(case, tmp_path)
    rule = SIDECAR_RULE
    counts = case.split("val_bytes").astype(np.int64)
    counts[3] -= 1
    case.replace("val_bytes", counts, rule=rule)
    metrics = case.audit()
    assert metrics["bytes_lost"] == 1
    assert metrics["bytes_scored_rule"] == rule
    counts[3] += 2
    case.replace("val_bytes", counts, rule=rule)
    case.refuse("the byte counts of a validation document differ")
