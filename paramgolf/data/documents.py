"""Documents on disk: a Zstandard stream of lines, each a JSON object {"name", "text"}."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from paramgolf.data.manifests import FIX_RAW, DocumentsFile
from paramgolf.errors import ParamGolfError
from paramgolf.files import atomic_open, file_size, sha256_file

RAW_PATH = Path("data/raw")
BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from."""

    name: str
    text: str


def write_documents(path: str | Path, documents: Iterable[Document]) -> DocumentsFile:
    """Write documents as they come; return what a manifest says of the file."""
    count = size = 0
    # half of the work goes to a thread; more of them would not change the bytes
    compressor = zstandard.ZstdCompressor(level=3, threads=1)
    with atomic_open(path) as file, compressor.stream_writer(file, closefd=False) as writer:
        for document in documents:
            count, size = count + 1, size + len(document.text.encode())
            line = json.dumps({"name": document.name, "text": document.text}, ensure_ascii=False)
            writer.write(line.encode() + b"\n")
    return DocumentsFile(
        file=Path(path).name, documents=count, bytes=size, sha256=sha256_file(path)
    )


def read_lines(path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a file of documents, still JSON, so that workers can parse them."""
    file_size(path, fix=FIX_RAW)
    try:
        with open(path, "rb") as file:
            raw = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            yield from io.BufferedReader(raw, BUFFER_BYTES)
    except zstandard.ZstdError as error:
        raise ParamGolfError(
            "a file of documents is damaged", where=path, found=error, fix=FIX_RAW
        ) from None


def parse(line: bytes) -> Document:
    """Read one line of a file that `write_documents` wrote."""
    try:
        fields = json.loads(line)  # gigabytes: without the hooks of files.parse_json
        name, text = fields["name"], fields["text"]
        if not type(name) is type(text) is str:
            raise TypeError("`name` and `text` are not texts")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what, found = "a line of a file of documents is damaged", repr(error)[:200]
        raise ParamGolfError(what, where=repr(line[:60]), found=found, fix=FIX_RAW) from None
    return Document(name, text)


def read_documents(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a file in order."""
    return map(parse, read_lines(path))
