"""The user's own text: .jsonl, .txt and .parquet, plain or compressed, as a stream of documents.

A path is a file, a folder (all files of a known kind below it) or a glob. Relative paths are looked
up in the working folder, then in the project's own folder, which DVC names in DVC_ROOT when it runs
a stage in a temporary copy.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import lzma
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow
import pyarrow.parquet

from paramgolf.data.documents import Document
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say

KINDS = (".jsonl", ".txt", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
EXPECTED = f"{', '.join(KINDS)}, plain or followed by {', '.join(COMPRESSIONS)}"
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, pyarrow.ArrowInvalid)
GLOB_CHARACTERS = frozenset("*?[")
BATCH_ROWS = 256
BLOCK_BYTES = 1 << 20


@dataclass(slots=True)
class DocumentErrors:
    """What to do with a document that cannot be read: stop the run, or count it and go on."""

    on_error: Literal["stop", "skip"]
    skipped: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, where: str, found: object) -> None:
        """Raise, naming the place, or count the fault under its kind."""
        if self.on_error == "stop":
            fix = "mend the file, or set data.on_error to skip"
            raise ParamGolfError(
                f"cannot read a document: {kind}", where=where, found=found, fix=fix
            )
        self.skipped[kind] += 1


def read_texts(
    patterns: Sequence[str], text_field: str, faults: DocumentErrors
) -> Iterator[Document]:
    """Yield every document that the paths, folders and globs `patterns` name, in their order.

    Files of a folder or glob come sorted by name, and no file comes twice. A .txt file is one
    document; a .jsonl line or a .parquet row is one, its text in `text_field`.
    """
    for name, path in find_files(patterns).items():
        yield from read_file(path, name, text_field, faults)


def find_files(patterns: Sequence[str]) -> dict[str, Path]:
    """Return the files that `patterns` name, by name; nothing found or an unknown kind is an error.

    A name is relative to the folder in which the pattern was looked up, so that documents keep
    their names, and data/raw its bytes, when DVC runs the stage elsewhere.
    """
    found: dict[str, Path] = {}
    bases = [Path(), Path(os.environ.get("DVC_ROOT", "."))]
    for pattern in patterns:
        base, paths = _expand(pattern, bases)
        for path in paths:
            name = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
            found.setdefault(name, path)
    return found


def _expand(pattern: str, bases: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Return the first of `bases` in which `pattern` names files, and these files."""
    for base in bases:
        path = base / pattern
        if path.is_dir():
            return base, _inside(path)
        if path.is_file():
            return base, [_known(path)]
        if matched := sorted(glob.glob(str(path), recursive=True)):
            return base, [_known(Path(name)) for name in matched if Path(name).is_file()]
    what = (
        "no file matches a pattern" if GLOB_CHARACTERS & set(pattern) else "there is no such file"
    )
    places = " and ".join(dict.fromkeys(str(base.resolve()) for base in bases))
    fix = "mend data.files or data.validation_files; paths are relative to the project's folder"
    raise ParamGolfError(what, where=pattern, found=f"nothing in {places}", fix=fix)


def _inside(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    known = [path for path in files if _kind(path) in KINDS]
    if not known:
        raise ParamGolfError("a folder holds no text", where=folder, expected=f"files {EXPECTED}")
    if len(known) < len(files):
        say(f"{folder}: {len(files) - len(known)} files of other kinds are left alone")
    return known


def _kind(path: Path) -> str:
    """Return the suffix that tells the format, below a suffix that tells the compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _known(path: Path) -> Path:
    if _kind(path) not in KINDS:
        raise ParamGolfError("a file of an unknown kind", where=path, expected=EXPECTED)
    return path


def read_file(path: Path, name: str, text_field: str, faults: DocumentErrors) -> Iterator[Document]:
    """Yield the documents of one file, named `name` and the line or row."""
    readers = {".jsonl": _read_jsonl, ".txt": _read_txt, ".parquet": _read_parquet}
    try:
        for document in readers[_kind(path)](path, name, text_field, faults):
            if document.text.strip():
                yield document
            else:
                faults.note("empty document", document.name, repr(document.text[:20]))
    except DAMAGED as error:
        # what follows a damaged block is lost, so there is nothing to go on with
        fix = "fetch or make the file again"
        raise ParamGolfError("a file is damaged", where=path, found=error, fix=fix) from None


def _read_jsonl(
    path: Path, name: str, text_field: str, faults: DocumentErrors
) -> Iterator[Document]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            place = f"{name}:{number}"
            text = _decode(line, place, faults)
            if text is None:
                continue
            try:
                fields = json.loads(text)
            except ValueError as error:
                faults.note("not JSON", place, error)
                continue
            value = fields.get(text_field) if isinstance(fields, dict) else None
            yield from _checked(value, place, text_field, faults)


def _read_txt(
    path: Path,
    name: str,
    text_field: str,  # noqa: ARG001 (every reader takes the same)
    faults: DocumentErrors,
) -> Iterator[Document]:
    with _open(path) as file:
        text = _decode(file.read(), name, faults)
    if text is not None:
        yield Document(name, text)


def _read_parquet(
    path: Path, name: str, text_field: str, faults: DocumentErrors
) -> Iterator[Document]:
    with _open(path) as file, tempfile.TemporaryFile() as plain:
        if path.suffix in COMPRESSIONS:
            shutil.copyfileobj(file, plain)  # Parquet is read from its end, so it must be seekable
            file = plain
        table = pyarrow.parquet.ParquetFile(file)
        if text_field not in table.schema_arrow.names:
            found = f"columns {', '.join(table.schema_arrow.names)}"
            fix = "set data.text_field to the column of the text"
            raise ParamGolfError(f"no column `{text_field}`", where=path, found=found, fix=fix)
        row = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[text_field]):
            for value in _column(batch.column(0)):
                row += 1
                place = f"{name}:row {row}"
                if isinstance(value, bytes):
                    value = _decode(value, place, faults)
                    if value is None:
                        continue
                yield from _checked(value, place, text_field, faults)


def _column(column: pyarrow.Array) -> Iterator[Any]:
    """Yield the values of a column, texts as bytes: Arrow does not check that they are UTF-8."""
    if pyarrow.types.is_string(column.type):
        column = column.cast(pyarrow.binary())
    elif pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    yield from column.to_pylist()


def _checked(value: Any, name: str, text_field: str, faults: DocumentErrors) -> Iterator[Document]:
    """Yield the value if it is a text that UTF-8 can hold; JSON can spell half a surrogate pair."""
    if not isinstance(value, str):
        found = "none" if value is None else type(value).__name__
        faults.note("missing field", name, f"field `{text_field}`: {found}")
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        faults.note("bad UTF-8", name, error)
        return
    yield Document(name, value)


def _decode(content: bytes, name: str, faults: DocumentErrors) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        faults.note("bad UTF-8", name, error)
        return None


def _open(path: Path) -> IO[Any]:
    if path.suffix == ".gz":
        return cast(IO[Any], gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BLOCK_BYTES)
    return open(path, "rb")
