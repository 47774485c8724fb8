"""Atomic writes, strict reads of JSON, and hashes of files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from paramgolf.errors import ParamGolfError

# of a JSON or YAML file: manifests of thousands of shards have one, not what an attacker sends
MAX_TEXT_BYTES = 64 << 20
MAX_INTEGER = 2**63 - 1


@contextlib.contextmanager
def atomic_open(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; it becomes `path` only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = ""  # where none is made there is nothing to unlink
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        error.add_note(str(path))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_open(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON, keys sorted and floats in full, so that Git shows readable diffs."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path, *, fix: str | None = None) -> dict[str, Any]:
    """Read a JSON file that holds an object; any other is a ParamGolfError that suggests `fix`."""
    return parse_object(read_text(path, fix=fix), path, fix=fix)


def parse_object(text: str | bytes, where: object, *, fix: str | None = None) -> dict[str, Any]:
    """Parse JSON that must hold an object; `where` names it in messages, bytes are UTF-8."""
    try:
        content = parse_json(text if isinstance(text, str) else decoded(text, where, fix=fix))
    except ValueError as error:
        raise ParamGolfError("not JSON", where=where, found=error, fix=fix) from None
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ParamGolfError("not a JSON object", where=where, found=found, fix=fix)
    return content


def parse_json(text: str, most: int = MAX_INTEGER) -> Any:
    """Parse JSON strictly; ValueError where it is none, or holds what no file of ours does.

    That is: a key twice, of which Python would keep the last; numbers that are not finite, or
    integers beyond `most`; nesting that exhausts the stack.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=functools.partial(_bounded, most),
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:60]!r} comes twice")
        content[key] = value
    return content


def _bounded(most: int, digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) > most:
        raise ValueError(f"the number {digits[:20]} is out of range")
    return value


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:20]} is out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def file_size(path: str | Path, *, fix: str | None = None) -> int:
    """Return the bytes of a file, before it is opened: a pipe would be waited for without end.

    A missing file, a pipe, a device or a folder is a ParamGolfError that suggests `fix`.
    """
    if not os.path.exists(path):
        raise ParamGolfError(f"there is no file {path}", fix=fix)
    if not os.path.isfile(path):
        raise ParamGolfError("not a regular file", where=path, fix=fix)
    return os.path.getsize(path)


def read_text(path: str | Path, *, fix: str | None = None) -> str:
    """Read a small UTF-8 file of the user's or of a stage's; a byte order mark is taken off.

    What `file_size` refuses, a file that is too large, and bytes that are not UTF-8 are each a
    ParamGolfError that suggests `fix`.
    """
    size = file_size(path, fix=fix)
    if size > MAX_TEXT_BYTES:
        limit = f"at most {MAX_TEXT_BYTES:,} bytes"
        found = f"{size:,} bytes"
        raise ParamGolfError("a file is too large", where=path, expected=limit, found=found)
    return decoded(Path(path).read_bytes(), path, fix=fix)


def decoded(content: bytes, where: object, *, fix: str | None = None) -> str:
    """Return the text of UTF-8 bytes without a byte order mark; others are a ParamGolfError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParamGolfError("a file is not UTF-8", where=where, found=error, fix=fix) from None


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    file_size(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
