"""Atomic writes, JSON with sorted keys, file hashes and locks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from paramgolf.errors import ParamGolfError


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; it becomes `path` only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
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


def read_json(path: str | Path, *, fix: str | None = None) -> Any:
    """Read a JSON file; a missing or damaged one is a ParamGolfError that suggests `fix`."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ParamGolfError(f"there is no file {path}", fix=fix) from None
    except ValueError as error:
        raise ParamGolfError("not a JSON file", where=path, found=error, fix=fix) from None


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file if nobody holds it, or wait for it; the lock goes when it is closed.

    Linux drops it when the process ends, however it ends. Threads that open the file for themselves
    keep each other out as processes do.
    """
    import fcntl  # POSIX only

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
