"""The user's own text: .jsonl, .txt and .parquet, plain or compressed, as a stream of documents.

A path is a file, a folder (all files of a known kind below it) or a glob. Relative paths are looked
up in the working folder, then in the project's own folder, which DVC names in DVC_ROOT when it runs
a stage in a temporary copy.
"""

from __future__ import annotations

import codecs
import glob
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from paramgolf.data.documents import Document
from paramgolf.data.source.streams import COMPRESSIONS, DAMAGED, open_stream
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say

KINDS = (".jsonl", ".txt", ".parquet")
EXPECTED = f"{', '.join(KINDS)}, plain or followed by {', '.join(COMPRESSIONS)}"
GLOB_CHARACTERS = frozenset("*?[")
BATCH_ROWS = 256
MEND = {
    "missing field": "set data.text_field to the field of the text",
    "bad UTF-8": "convert the file to UTF-8 (`iconv`)",
}
# documents by their places in a file, before they are decoded; None where a field is empty
Records = Iterator[tuple[str, bytes | None]]


@dataclass(slots=True)
class DocumentErrors:
    """What to do with a document that cannot be read: stop the run, or count it and go on."""

    on_error: Literal["stop", "skip"]
    skipped: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, where: str, found: object) -> None:
        """Raise, naming the place, or count the fault under its kind."""
        if self.on_error == "stop":
            fix = f"{MEND.get(kind, 'mend the file')}, or set data.on_error to skip"
            raise ParamGolfError(
                f"cannot read a document: {kind}", where=where, found=found, fix=fix
            )
        self.skipped[kind] += 1


def read_texts(
    patterns: Sequence[str], text_field: str, errors: DocumentErrors
) -> Iterator[Document]:
    """Yield every document that the paths, folders and globs `patterns` name, in their order.

    Files of a folder or glob come sorted by name, and no file comes twice. A .txt file is one
    document; a .jsonl line or a .parquet row is one, its text in `text_field`.
    """
    for name, path in find_files(patterns).items():
        yield from read_file(path, name, text_field, errors)


def find_files(patterns: Sequence[str]) -> dict[str, Path]:
    """Return the files that `patterns` name, by name; nothing found or an unknown kind is an error.

    A file that is named in several ways comes once, by the first of its names. Links are files of
    their own: DVC may link those of equal content to one.
    A name is relative to the folder in which the pattern was looked up, so that documents keep
    their names, and data/raw its bytes, when DVC runs the stage elsewhere.
    """
    found: dict[str, Path] = {}
    known: set[str] = set()
    bases = [Path(), Path(os.environ.get("DVC_ROOT", "."))]
    for pattern in patterns:
        base, paths = _expand(pattern, bases)
        for path in paths:
            if (place := os.path.abspath(path)) not in known:
                known.add(place)
                name = path.relative_to(base) if path.is_relative_to(base) else path
                found.setdefault(_printable(name), path)
    return found


def _printable(name: Path) -> str:
    """Return a file's name as text; Linux allows bytes in it that are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _expand(pattern: str, bases: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Return the first of `bases` in which `pattern` names files, and these files."""
    for base in bases:
        path = base / pattern
        if path.is_dir():
            return base, _inside(path)
        if os.path.lexists(path):
            return base, [_known(path)]
        matched = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if files := [_known(path) for path in matched if not path.is_dir()]:
            return base, files
    what = (
        "no file matches a pattern" if GLOB_CHARACTERS & set(pattern) else "there is no such file"
    )
    found, fix = None, "mend data.files or data.validation_files"
    if not os.path.isabs(pattern):
        places = " and ".join(dict.fromkeys(str(base.resolve()) for base in bases))
        found, fix = f"nothing in {places}", f"{fix}; paths are relative to the project's folder"
    raise ParamGolfError(what, where=pattern, found=found, fix=fix)


def _inside(folder: Path) -> list[Path]:
    """Return the files of known kinds below a folder, sorted; links to folders are followed."""
    paths = list(_walk(folder, ()))
    known = [_known(path) for path in paths if _kind(path) in KINDS]
    if not known:
        raise ParamGolfError("a folder holds no text", where=folder, expected=f"files {EXPECTED}")
    if others := len(paths) - len(known):
        say(f"{folder}: {others} files of other kinds are left alone")
    return sorted(known)


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield what is no folder below `folder`; one that holds itself by a link is an error."""
    real = folder.resolve()
    if real in above:
        fix = "remove the link, or name the folders in it one by one"
        raise ParamGolfError("a folder holds itself, by a link", where=folder, found=real, fix=fix)
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    for path in paths:
        if path.is_dir():
            yield from _walk(path, (*above, real))
        else:
            yield path


def _unreadable(path: Path, error: OSError) -> ParamGolfError:
    fix = "mend its permissions, or leave it out of data.files"
    return ParamGolfError("cannot be read", where=path, found=error.strerror or error, fix=fix)


def _kind(path: Path) -> str:
    """Return the suffix that tells the format, below a suffix that tells the compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def check_kind(path: Path) -> None:
    """Refuse a file whose name tells no kind that can be read."""
    if _kind(path) not in KINDS:
        raise ParamGolfError("a file of an unknown kind", where=path, expected=EXPECTED)


def _known(path: Path) -> Path:
    if not path.exists():
        found = f"a link to {os.readlink(path)}, where nothing is"
        raise ParamGolfError("a link leads nowhere", where=path, found=found)
    check_kind(path)
    if not path.is_file():  # reading a pipe would wait for a writer
        raise ParamGolfError("not a regular file", where=path)
    return path


def read_file(path: Path, name: str, text_field: str, errors: DocumentErrors) -> Iterator[Document]:
    """Yield the documents of one file, named `name` and the line or row."""
    kind = _kind(path)
    records = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}[kind]
    try:
        for place, content in records(path, name, text_field):
            try:
                text = _text(content, kind, text_field)
            except BadDocumentError as error:
                errors.note(error.kind, place, error.found)
            else:
                yield Document(place, text)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreadable(path, error) from None
        # what follows a damaged block is lost, so there is nothing to go on with
        fix = "fetch or make the file again"
        raise ParamGolfError("a file is damaged", where=path, found=error, fix=fix) from None


class BadDocumentError(Exception):
    """Why a document cannot be read: the kind of fault, and what was found."""

    def __init__(self, kind: str, found: str) -> None:
        self.kind, self.found = kind, found
        super().__init__(kind)


def _text(content: bytes | None, kind: str, text_field: str) -> str:
    """Return the text of a document: all of `content`, or a field of the object that it holds."""
    try:
        value: Any = None if content is None else content.decode()
        if kind == ".jsonl":
            fields = json.loads(value)
            value = fields.get(text_field) if isinstance(fields, dict) else None
            if value is None:
                raise BadDocumentError("missing field", _without(fields, text_field))
        if not isinstance(value, str):
            found = "none" if value is None else type(value).__name__
            raise BadDocumentError("missing field", f"field `{text_field}`: {found}")
        value.encode()  # JSON can spell half a surrogate pair, which UTF-8 cannot hold
    except UnicodeError as error:
        column = f"column `{text_field}`: " if kind == ".parquet" else ""
        raise BadDocumentError("bad UTF-8", f"{column}{error}") from None
    except RecursionError:
        raise BadDocumentError("not JSON", "nested too deeply") from None
    except ValueError as error:
        raise BadDocumentError("not JSON", str(error)) from None
    if not value.strip():
        raise BadDocumentError("empty document", repr(value[:20]))
    return value


def _without(fields: Any, text_field: str) -> str:
    """Say what a line of JSON holds in the place of a text."""
    if not isinstance(fields, dict):
        return f"a {type(fields).__name__}, no object with a field `{text_field}`"
    return f"field `{text_field}`: none; fields: {', '.join(fields)}"


def _txt(path: Path, name: str, _: str) -> Records:
    with open_stream(path) as file:
        content = file.read()
    yield name, content.removeprefix(codecs.BOM_UTF8)


def _jsonl(path: Path, name: str, _: str) -> Records:
    """Yield the lines of a file; those of white space are nothing, as JSON Lines has it."""
    with open_stream(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield f"{name}:{number}", line


def _parquet(path: Path, name: str, text_field: str) -> Records:
    with open_stream(path) as file, tempfile.TemporaryFile() as plain:
        if path.suffix.lower() in COMPRESSIONS:
            shutil.copyfileobj(file, plain)  # Parquet is read from its end, so it must be seekable
            file = plain
        table = pyarrow.parquet.ParquetFile(file)
        _check_column(table.schema_arrow, text_field, path)
        row = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[text_field]):
            for value in _bytes_of(batch.column(0)):
                row += 1
                yield f"{name}:row {row}", value


def _check_column(schema: pyarrow.Schema, name: str, path: Path) -> None:
    """Refuse a table that lacks the column of the text, or has something else in it."""
    fix = "set data.text_field to the column of the text"
    if name not in schema.names:
        found = f"columns {', '.join(schema.names)}"
        raise ParamGolfError(f"no column `{name}`", where=path, found=found, fix=fix)
    if schema.names.count(name) > 1:
        what, fix = f"more than one column `{name}`", "write the table with one column of that name"
        raise ParamGolfError(what, where=path, found=", ".join(schema.names), fix=fix)
    kind, types = schema.field(name).type, pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if not any(is_text(kind) for is_text in (*texts, types.is_null)):
        what = f"the column `{name}` does not hold text"
        raise ParamGolfError(what, where=path, found=str(kind), fix=fix)


def _bytes_of(column: pyarrow.Array) -> Iterator[bytes | None]:
    """Yield the values of a column of text as bytes: Arrow does not check that they are UTF-8."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    large = pyarrow.types.is_large_string(column.type)
    yield from column.cast(pyarrow.large_binary() if large else pyarrow.binary()).to_pylist()
