"""Compressed files as streams: read to their end, or refused; nothing is dropped silently.

A file may hold several streams, one after another; .xz files may have zeros between them. Other
bytes after the last stream are an error, because readers that stop there lose documents. One limit
on how far a file may expand holds for all formats.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import zlib
from pathlib import Path
from typing import IO, Any, cast

import pyarrow

from paramgolf.errors import ParamGolfError

COMPRESSIONS = (".gz", ".xz", ".zst")
# what a damaged stream is told by; an OSError of the system has a number, one of a library has none
DAMAGED = (
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    # of Parquet: a footer with one wrong byte can ask for anything, and a name need not be UTF-8
    pyarrow.ArrowIndexError,
    pyarrow.ArrowInvalid,
    pyarrow.ArrowNotImplementedError,
    UnicodeDecodeError,
)
# text compresses about tenfold, a file of one repeated line a thousandfold, and a bomb more
MAX_EXPANSION = 200
FREE_BYTES = 64 << 20  # any file may expand to this size
BLOCK_BYTES = 1 << 20
MEMORY_BYTES = 1 << 29  # the most that a file's header may ask for; `xz -9` needs an eighth of it
XZ_PADDING = 4  # zeros between streams come in multiples of it


def open_stream(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed as its suffix says; errors of reading are DAMAGED."""
    file = path.open("rb")
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        return file
    limit = FREE_BYTES + MAX_EXPANSION * os.fstat(file.fileno()).st_size
    if suffix == ".gz":
        inner: Any = gzip.GzipFile(fileobj=file)
    elif suffix == ".xz":
        inner = XzStreams(file)
    else:
        inner = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    return cast(IO[bytes], io.BufferedReader(LimitedStream(inner, file, path, limit), BLOCK_BYTES))


class XzStreams:
    """The contents of all streams of an .xz file; Python's own reader stops at their padding."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(memlimit=MEMORY_BYTES)
        self._ahead = b""  # compressed bytes that no decoder has seen

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes; none at the end of the last stream."""
        while not self._decoder.eof or self._begin_next_stream():
            data = b""
            if self._decoder.needs_input:
                data = self._ahead or self._file.read(BLOCK_BYTES)
                self._ahead = b""
                if not data:
                    raise EOFError("the file ends within a stream")
            if found := self._decoder.decompress(data, size):
                return found
        return b""

    def _begin_next_stream(self) -> bool:
        """Pass the padding behind a stream; tell whether another stream follows."""
        rest, zeros = self._decoder.unused_data, 0
        while True:
            ahead = rest.lstrip(b"\0")
            zeros += len(rest) - len(ahead)
            if ahead:
                break
            if not (rest := self._file.read(BLOCK_BYTES)):
                break
        if zeros % XZ_PADDING:
            raise lzma.LZMAError(f"{zeros} zeros behind a stream, not a multiple of {XZ_PADDING}")
        if ahead:
            self._ahead = ahead
            self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)
        return bool(ahead)


class LimitedStream(io.RawIOBase):
    """A stream that is refused once it has given more bytes than `limit`."""

    def __init__(self, inner: Any, file: IO[bytes], path: Path, limit: int) -> None:
        self._inner, self._file = inner, file
        self._path, self._limit = path, limit
        self._given = 0

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """Return True, as BufferedReader asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the front of `buffer`; return how many bytes that are."""
        found = self._inner.read(len(buffer))
        self._given += len(found)
        if self._given > self._limit:
            raise ParamGolfError(
                "a compressed file expands beyond measure",
                where=self._path,
                expected=f"at most {MAX_EXPANSION} times its size, beyond {FREE_BYTES:,} bytes",
                found=f"more than {self._limit:,} bytes",
                fix="decompress the file yourself, and name the plain one, if it is meant so",
            )
        buffer[: len(found)] = found
        return len(found)
