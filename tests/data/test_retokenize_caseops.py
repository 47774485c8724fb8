"""tokenizer.transform caseops from text to audit: own tokenizers and published shards."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_case
from schema_case import faults_of
from shard_files import PublishedShards
from token_case import Case

from paramgolf.data.manifests import SIDECAR_RULE, TABLE_RULE
from paramgolf.data.retokenize import retokenize
from paramgolf.data.tokenizer.byte_counts import byte_table
from paramgolf.data.tokenizer.caseops import MARKS, encode_case
from paramgolf.data.tokenizer.vocabulary_sentencepiece import load_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_json

VAL, TRAIN = token_case.make_cased_texts(1, 12), token_case.make_cased_texts(2, 40)
BYTES = sum(len(text.encode()) for text in VAL)
MODEL = token_case.processor(token_case.trained_on_case())


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_case.write_raw(tmp_path_factory.mktemp("case") / "raw", VAL, TRAIN)


def config(**changes: Any) -> Any:
    return token_case.config(vocab_size=330, transform="caseops", **changes)


@pytest.mark.parametrize("transform", ["caseops", "caseops_before_space"])
def test_a_trained_tokenizer_is_lossless_and_its_bytes_are_proven(
    raw: Path, tmp_path: Path, transform: str
) -> None:
    settings = token_case.config(vocab_size=330, transform=transform)
    manifest = retokenize(settings, 1, raw, tmp_path / "tokens")
    metrics = Case(raw, tmp_path / "tokens").audit()
    assert metrics["lossless"]
    assert metrics["bytes_val_raw"] == metrics["bytes_val_counted"] == BYTES
    assert manifest.transform == transform
    model = load_tokenizer(tmp_path / "tokens/tokenizer.model")
    pieces = [model.id_to_piece(i) for i in range(330)]
    assert pieces[4:8] == [*MARKS]
    assert not any("A" <= letter <= "Z" for piece in pieces[264:] for letter in piece)
    assert manifest.bos == 1


def test_the_bytes_do_not_depend_on_the_number_of_workers(raw: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        retokenize(config(), workers, raw, tmp_path / str(workers))
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name


def marks_as_text(ids: np.ndarray) -> np.ndarray:
    return byte_table(MODEL).counts(ids)


def no_literals(ids: np.ndarray) -> np.ndarray:
    return np.where((ids >= 4) & (ids <= 7), 0, byte_table(MODEL).counts(ids))


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (marks_as_text, r"case marks are counted as text \(pg#1729\)"),
        (no_literals, "marks that the text itself holds are not counted"),
    ],
)
def test_a_false_count_is_named(
    raw: Path, tmp_path: Path, count: Callable[[np.ndarray], np.ndarray], name: str
) -> None:
    folder = tmp_path / "tokens"
    token_case.write_tokens(raw, folder, token_case.trained_on_case(), transform="caseops")
    case = Case(raw, folder)
    case.replace("val_bytes", count(case.split("val")))
    case.refuse(f"differ from its text: {name}\n  where: val:1\n")


def test_tokens_of_the_untransformed_text_are_found(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    case = Case(raw, token_case.write_tokens(raw, folder, token_case.trained_on_case()))
    write_json(folder / "manifest.json", case.manifest() | {"transform": "caseops"})
    case.refuse("the validation tokens are not those of the validation text")


def flat(parts: list[list[int]]) -> list[int]:
    return [value for part in parts for value in part]


def halves(values: list[int]) -> list[np.ndarray]:
    return np.array_split(np.array(values, dtype=np.uint16), 2)


class Published(PublishedShards):
    """data/raw of published shards of the case transform, with a sidecar."""

    def __init__(self, folder: Path, *, sidecar: bool) -> None:
        super().__init__(folder, token_case.trained_on_case())
        texts = [encode_case(text) for text in VAL]
        ids = [[1, *MODEL.encode(text)] for text in texts]
        self.add("val", halves(flat(ids)), documents=12)
        train = [[1, *MODEL.encode(encode_case(text))] for text in TRAIN]
        self.add("train", halves(flat(train)))
        # as published: counts of surfaces; a character's bytes all at one of its byte tokens
        counts = [self.sidecar(text) for text in texts]
        self.add("val_bytes", halves(flat(counts)) if sidecar else [])

    @staticmethod
    def sidecar(text: str) -> list[int]:
        ends = [end for _, end in MODEL.encode_as_offset_mapping(text)["offsets"]]
        starts = [0, *itertools.accumulate(ends, max)]
        surfaces = (text[start:end] for start, end in zip(starts, ends, strict=False))
        return [0, *token_case.bytes_without_marks(surfaces)]


@pytest.mark.parametrize("sidecar", [False, True])
def test_published_shards_pass_through(tmp_path: Path, sidecar: bool) -> None:
    published = Published(tmp_path / "raw", sidecar=sidecar)
    folder = tmp_path / "tokens"
    retokenize(config(source="published"), 1, published.folder, folder)
    metrics = Case(published.folder, folder).audit()
    assert metrics["bytes_val_raw"] == metrics["bytes_val_counted"] == BYTES
    assert metrics["lossless"]
    assert metrics["documents_train"] == 40
    assert metrics["bytes_scored_rule"] == (SIDECAR_RULE if sidecar else TABLE_RULE)
    assert (folder / "val_000001.bin").stat().st_nlink == 2


def test_a_published_sidecar_that_counts_marks_is_refused(tmp_path: Path) -> None:
    published = Published(tmp_path / "raw", sidecar=False)
    ids = np.concatenate([[1, *MODEL.encode(encode_case(text))] for text in VAL])
    published.add("val_bytes", halves(marks_as_text(ids.astype(np.uint16)).tolist()))
    retokenize(config(source="published"), 1, published.folder, tmp_path / "tokens")
    case = Case(published.folder, tmp_path / "tokens")
    case.refuse(r"case marks are counted as text \(pg#1729\)")


def test_published_tokens_of_the_case_transform_must_be_named_so(tmp_path: Path) -> None:
    published = Published(tmp_path / "raw", sidecar=True)
    stated = token_case.config(source="published", vocab_size=330)
    with pytest.raises(ParamGolfError, match=r"set tokenizer\.transform to caseops"):
        retokenize(stated, 1, published.folder, tmp_path / "tokens")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"source": "file", "path": "t.json"}, "must be none for a tokenizer that is not a"),
        ({"source": "file", "path": "t.txt"}, "must be none for a tokenizer that is not a"),
        ({"source": "file", "path": "t.model"}, None),
    ],
)
def test_parameters_that_do_not_go_together(changes: dict[str, Any], fault: str | None) -> None:
    fields = {"vocab_size": 330, "transform": "caseops"} | changes
    faults = faults_of(token_case.config(**fields))
    assert len(faults) == (fault is not None)
    assert all(fault is not None and fault in found for found in faults)
