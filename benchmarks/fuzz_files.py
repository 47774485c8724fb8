"""Mutants of the small files that readers take from outside: bytes, values and structure change.

A kind of file has a few sound examples, and a mutant is one of them with a few changes. Readers go
as far as the stages do before their work begins.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.torch
import tokenizers
import torch
import yaml
import zstandard
from fuzz_models import NUMBERS, OTHERS, a_value

from paramgolf.data.manifests import read_raw_manifest, read_tokens_manifest
from paramgolf.data.shards import ShardStream, header, split_documents
from paramgolf.data.source.fetch import RepositoryManifest
from paramgolf.data.source.text_files import DocumentErrors, read_file
from paramgolf.data.tokenizer.text_tokenizer import TokenizerFile, open_tokenizer
from paramgolf.data.tokenizer.training import train_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json
from paramgolf.params import read_yaml
from paramgolf.quant.trained import load_tensors
from paramgolf.recipes import check
from paramgolf.schema import parse

PROBE = "The cat, 12 dogs\n\u00e9 \u8a9e \U0001f600  and  so on."
PIECES = (b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\n", b'"', b"{", b"}", b"[" * 500, b"9" * 5000)
PIECES += (b"-1", b"1e999", b"NaN", b"null", b"&a ", b"*a", b"!!python/name:os.system ", b"\\ud800")


@dataclass(frozen=True)
class Kind:
    """Sound examples by the name of the file, and the reader of one."""

    examples: Callable[[], dict[str, bytes]]
    read: Callable[[Path], object]


def mutant(kind: str, number: int) -> bytes:
    """Return mutant `number` of a kind, always the same: a name, a line's end, the content."""
    rng = random.Random(f"{kind} {number}")
    name, content = rng.choice(sorted(_examples(kind).items()))
    if Path(name).suffix in (".json", ".yaml") and rng.random() < 0.6:
        content = _change_values(rng, name, content)
    if rng.random() < 0.5 or content == _examples(kind)[name]:
        content = _change_bytes(rng, content)
    return name.encode() + b"\n" + content


def read(kind: str, content: bytes) -> str:
    """Read a mutant; say whether it was taken."""
    name, _, content = content.partition(b"\n")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / name.decode()
        path.write_bytes(content)
        message = ""
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                KINDS[kind].read(path)
            except ParamGolfError as error:
                message = str(error)
    assert len(message) < 20_000, "a message without end"
    return "refused" if message else "read"


def _change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cut, insert, replace or repeat some bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        start = rng.randrange(len(changed) + 1)
        stop = min(len(changed), start + rng.choice((0, 1, 1, 2, 4, 100)))
        piece = rng.choice((rng.choice(PIECES), rng.randbytes(stop - start), changed[:start]))
        changed[start:stop] = piece
    return bytes(
        changed[: rng.choice((len(changed), len(changed), rng.randrange(len(changed) + 1)))]
    )


def _change_values(rng: random.Random, name: str, content: bytes) -> bytes:
    """Put other values into a document of JSON or YAML."""
    document = [yaml.safe_load(content) if name.endswith(".yaml") else json.loads(content)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        item, key = a_value(rng, document)
        old = item[key]
        near = [old + 1, -old, old * 10**6] if type(old) is int else []
        item[key] = rng.choice([*near, rng.choice(NUMBERS), rng.choice(OTHERS), "x" * 10**5])
        if isinstance(item, dict) and rng.random() < 0.2:
            item[rng.choice(("", "x", "schema", "y" * 1000))] = item.pop(key)
    if name.endswith(".yaml"):
        return yaml.safe_dump(document[0], sort_keys=False).encode()
    return json.dumps(document[0]).encode()


@cache
def _examples(kind: str) -> dict[str, bytes]:
    return KINDS[kind].examples()


def _texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = [
        "the",
        "of",
        "and",
        "in",
        "to",
        "a",
        "is",
        "\u00e9t\u00e9",
        "\u8a9e",
        "12",
        "\n",
        "x  y",
    ]
    return [" ".join(rng.choice(words, 40)) + f" {i}" for i in range(60)]


def _shards() -> dict[str, bytes]:
    ids = np.random.default_rng(0).integers(0, 300, 500).astype("<u2")
    ids[::50] = 1
    return {"val_000000.bin": header(len(ids)) + ids.tobytes()}


def _read_shard(path: Path) -> None:
    for _ in split_documents(ShardStream([path])):
        pass


SHARD = {"name": "val_000000.bin", "tokens": 500, "sha256": "0" * 64}
SPLIT = {"files": [SHARD], "tokens": 500, "documents": 10}
DOCUMENTS = {"file": "val.jsonl.zst", "documents": 3, "bytes": 100, "sha256": "0" * 64}
MANIFESTS: dict[str, Any] = {
    "texts.json": {
        **{"schema": 1, "kind": "documents", "source": "files", "train": DOCUMENTS},
        **{"val": DOCUMENTS, "skipped": {"empty document": 2}, "validation_files": []},
        **{"files": ["a.txt"]},
    },
    "shards.json": {
        **{"schema": 1, "kind": "shards", "source": "hub", "repository": "a/b", "variant": "sp400"},
        **{"revision": "main", "commit": "0" * 40, "train": SPLIT, "val": SPLIT},
        "val_bytes": SPLIT,
        "tokenizer": {"file": "tokenizer.model", "published": "a.model", "sha256": "0" * 64},
    },
    "tokens.json": {
        **{"schema": 1, "vocab_size": 400, "bos": 1, "tokenizer": "tokenizer.model"},
        **{"tokenizer_sha256": "0" * 64, "tokenizer_bos": 1, "transform": "none"},
        **{"train": SPLIT, "val": SPLIT},
        "val_bytes": {
            **{"files": [SHARD], "bytes": 900},
            "rule": "token table, at most the bytes of the document's text",
        },
    },
    "published.json": {
        "datasets": [{"name": "a", "tokenizer_name": "b", "stats": {"docs_val": 3}}],
        "tokenizers": [{"name": "b", "model_path": "b.model"}],
    },
}


def _read_manifest(path: Path) -> None:
    if path.name == "published.json":
        parse(RepositoryManifest, read_json(path), "", where=path, of="the manifest")
        return
    kind = path.stem
    path = path.rename(path.with_name("manifest.json"))
    (read_tokens_manifest if kind == "tokens" else read_raw_manifest)(path.parent)


def _tokenizers() -> dict[str, bytes]:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    words = "\n".join([*"abcdefghijklmnopqrstuvwxyz ", "the", " of", "\\n", "\\xc3", "\\\\"])
    return {
        "tokenizer.model": train_tokenizer(iter(_texts()), 310),
        "tokenizer.json": tokenizer.to_str().encode(),
        "vocab.txt": words.encode(),
    }


def _read_tokenizer(path: Path) -> None:
    tokenizer = open_tokenizer(TokenizerFile(str(path), "none"))
    for ids, _ in tokenizer.encode([PROBE, ""], count_bytes=True):
        tokenizer.decode(ids)


def _safetensors() -> dict[str, bytes]:
    tensors = {"a": torch.zeros(3, 4), "b.integers": torch.ones(5, dtype=torch.int8)}
    tensors["c"] = torch.ones(2, 2).half()
    return {"model.safetensors": safetensors.torch.save(tensors)}


def _read_safetensors(path: Path) -> None:
    for tensor in load_tensors(path, fix="make it again").values():
        tensor.float().sum()


def _text_files() -> dict[str, bytes]:
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in _texts()[:20])
    table = pyarrow.table({"text": _texts()[:20]})
    files = {"a.jsonl": lines, "b.txt": _texts()[0].encode(), "f.jsonl.xz": lzma.compress(lines)}
    for name, codec in (("c.parquet", "none"), ("d.parquet", "zstd"), ("e.parquet", "snappy")):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer, compression=codec)
        files[name] = buffer.getvalue()
    files["g.jsonl.gz"] = gzip.compress(lines, mtime=0)
    files["h.jsonl.zst"] = zstandard.compress(lines)
    return files | {"i.parquet.gz": gzip.compress(files["c.parquet"], mtime=0)}


def _read_text(path: Path) -> None:
    for on_error in ("skip", "stop"):
        for document in read_file(path, path.name, "text", DocumentErrors(on_error)):
            document.text.encode()


def _params() -> dict[str, bytes]:
    return {"params.yaml": (Path(__file__).parents[1] / "params.yaml").read_bytes()}


KINDS = {
    "shards": Kind(_shards, _read_shard),
    "manifests": Kind(
        lambda: {name: json.dumps(content).encode() for name, content in MANIFESTS.items()},
        _read_manifest,
    ),
    "tokenizers": Kind(_tokenizers, _read_tokenizer),
    "safetensors": Kind(_safetensors, _read_safetensors),
    "text": Kind(_text_files, _read_text),
    "params": Kind(_params, lambda path: check(read_yaml(path), where=path)),
}


def sound(kind: str) -> Iterator[bytes]:
    """Yield the examples of a kind as `read` takes them."""
    for name, content in _examples(kind).items():
        yield name.encode() + b"\n" + content
