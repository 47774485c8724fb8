"""Small tokenizers and folders of documents and tokens, for the tests of retokenize and audit."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import strategies as st
from shard_files import write_shard

from paramgolf.data.audit import audit
from paramgolf.data.config import AuditConfig, TokenizerConfig
from paramgolf.data.documents import Document, write_documents
from paramgolf.data.manifests import SCHEMA, DocumentsFile, TextManifest, write_manifest
from paramgolf.data.retokenize import retokenize
from paramgolf.data.shards import ShardStream
from paramgolf.data.tokenizer.caseops import ESCAPE, MARKS, encode_case
from paramgolf.data.tokenizer.training import OPTIONS, train_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json, sha256_file, write_json

WORDS = ["the", "of", "and", "in", "to", "a", "is", "that", "for", "it", "as", "was", "with", "be"]
PUBLISHED = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}


def mixed_text(favoured: Sequence[str]) -> st.SearchStrategy[str]:
    """Texts of favoured parts and of any characters, each in about half of the places.

    st.text of both would merge them into one alphabet, in which the favoured ones are never drawn.
    """
    parts = st.one_of(st.sampled_from(favoured), st.characters(exclude_categories=["Cs"]))
    return st.lists(parts).map("".join)


def make_text(rng: np.random.Generator) -> str:
    """A text with runs of spaces, newlines, tabs, digits and characters beyond the vocabulary."""
    parts = rng.choice([*WORDS, "\n\n", "\t", "  x", "é", "語", "12", "\U0001f600"], 30)
    return " ".join(parts)


def make_texts(seed: int, count: int) -> list[str]:
    """Distinct texts, each with a rare character but for seed 0, which tokenizers are made of."""
    rng = np.random.default_rng(seed)
    rare = " \u2603" if seed else ""
    return [f"{make_text(rng)}{rare} {seed}.{index}" for index in range(count)]


def make_cased_texts(seed: int, count: int) -> list[str]:
    """Distinct texts with capitals of every kind, and with marks of the case transform."""
    rng = np.random.default_rng(seed)
    forms = [str, str.title, str.upper, str.capitalize, "m{}".format]
    parts = [*WORDS, "  x", "É", "mcDonald", "\ue001", "\ue004\ue002", "語", "12", "\0", "\n\n"]

    def word() -> str:
        form, part = forms[rng.integers(len(forms))], parts[rng.integers(len(parts))]
        return form(part)

    return [f"{' '.join(word() for _ in range(30))} {seed}.{index}" for index in range(count)]


def bytes_without_marks(surfaces: Iterable[str]) -> list[int]:
    """Bytes of each part of a text by the published rule: a mark counts only behind an ESCAPE."""
    counts, literal = [], False
    for surface in surfaces:
        total = 0
        for character in surface:
            if literal or character not in MARKS:
                total += len(character.encode())
            literal = character == ESCAPE and not literal
        counts.append(total)
    return counts


@functools.cache
def trained_on_case() -> bytes:
    """A tokenizer as retokenize trains it with tokenizer.transform caseops."""
    texts = map(encode_case, make_cased_texts(0, 100))
    return train_tokenizer(texts, 330, symbols=MARKS)


@functools.cache
def trained(vocab_size: int = 320) -> bytes:
    """A tokenizer as retokenize trains it."""
    return train_tokenizer(make_texts(0, 100), vocab_size)


@functools.cache
def other(**options: Any) -> bytes:
    """A tokenizer with other options than ours."""
    model = io.BytesIO()
    arguments: dict[str, Any] = OPTIONS | {"vocab_size": 330} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(0, 100)), model_writer=model, **arguments
    )
    return model.getvalue()


@functools.cache
def spaceless() -> bytes:
    """A tokenizer of a text without spaces: it has no piece U+2581 (issue pg#897)."""
    texts = ["".join(text.split()) for text in make_texts(0, 100)]
    return train_tokenizer(texts, 320)


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def write_raw(folder: Path, val: Sequence[str], train: Sequence[str]) -> Path:
    """Write data/raw with the given texts."""

    def write(split: str, texts: Sequence[str]) -> DocumentsFile:
        documents = (Document(f"{split}:{i}", text) for i, text in enumerate(texts, 1))
        return write_documents(folder / f"{split}.jsonl.zst", documents)

    manifest = TextManifest(
        schema=SCHEMA,
        kind="documents",
        source="files",
        val=write("val", val),
        train=write("train", train),
        skipped={},
        validation_files=(),
        files=("given",),
    )
    write_manifest(folder, manifest)
    return folder


def config(**changes: Any) -> TokenizerConfig:
    fields: dict[str, Any] = {
        "source": "train",
        "path": None,
        "transform": "none",
        "vocab_size": 320,
        "training_bytes": 1_000_000,
        "shard_tokens": 1000,
    }
    return TokenizerConfig(**(fields | changes))


def audit_config(**changes: Any) -> AuditConfig:
    fields = {"allowed_overlap": 0, "near_copy_share": 0.5, "allowed_near_copies": 1.0}
    return AuditConfig(**(fields | changes))


def write_tokens(raw: Path, folder: Path, model: bytes, **changes: Any) -> Path:
    """Retokenize `raw` with a given model."""
    path = folder.parent / "given.model"
    path.write_bytes(model)
    size = processor(model).vocab_size()
    retokenize(config(source="file", path=str(path), vocab_size=size, **changes), 1, raw, folder)
    return folder


class Case:
    """A folder of documents and one of tokens, and ways to break them."""

    def __init__(self, raw: Path, tokens: Path) -> None:
        self.raw, self.tokens = raw, tokens

    def audit(self, **config: Any) -> dict[str, Any]:
        return audit(audit_config(**config), self.raw, self.tokens)

    def refuse(self, expected: str) -> None:
        with pytest.raises(ParamGolfError) as caught:
            self.audit()
        assert re.search(expected, str(caught.value)), caught.value

    def manifest(self) -> dict[str, Any]:
        return read_json(self.tokens / "manifest.json")

    def split(self, name: str) -> np.ndarray:
        stream = ShardStream(
            [self.tokens / file["name"] for file in self.manifest()[name]["files"]]
        )
        return stream.read(0, len(stream))

    def replace(self, name: str, values: np.ndarray, **changes: Any) -> None:
        """Write other values of a split in one shard, with a manifest that hides it."""
        path, manifest = self.tokens / f"{name}_000000.bin", self.manifest()
        write_shard(path, values.astype(np.uint16))
        file = {"name": path.name, "tokens": len(values), "sha256": sha256_file(path)}
        manifest[name] |= {"files": [file]} | changes
        if name != "val_bytes":
            manifest[name] |= {"tokens": len(values)}
        write_json(self.tokens / "manifest.json", manifest)


def tokenized(
    folder: Path, path: Path, size: int, val: Sequence[str], train: Sequence[str]
) -> Case:
    """Write data/raw and data/tokens of texts, by the tokenizer of so many tokens at `path`."""
    raw = write_raw(folder / "raw", val, train)
    options = config(source="file", path=str(path), vocab_size=size, shard_tokens=10**6)
    retokenize(options, 1, raw, folder / "tokens")
    return Case(raw, folder / "tokens")
