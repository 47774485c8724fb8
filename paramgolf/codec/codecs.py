"""Byte codecs as the decoder needs them: bounded decompression, and the byte shuffle undone."""

from __future__ import annotations

import lzma
from typing import Literal

import brotli

from paramgolf.errors import ParamGolfError

Codec = Literal["brotli", "lzma", "rans"]
# raw LZMA2: the container has its own lengths and checksum, .xz would count them twice
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**24}]


def decompress(codec: Codec, data: bytes, size: int) -> bytes:
    """Return the `size` bytes that `data` stands for, never holding more than a little above that.

    Data that is damaged, truncated, followed by other bytes, or of another decompressed size is a
    ParamGolfError.
    """
    try:
        if codec == "rans":
            from paramgolf.codec.rans import decode  # see packing/code.py

            return decode(data, size)
        content, ended = _brotli(data, size) if codec == "brotli" else _lzma(data, size)
    except (brotli.error, lzma.LZMAError) as error:
        raise ParamGolfError(f"damaged {codec} data", found=error) from None
    if not ended or len(content) != size:
        found = f"{'at least ' if not ended else ''}{len(content)} bytes"
        raise ParamGolfError(
            f"{codec} data of another length", expected=f"{size} bytes", found=found
        )
    return content


def work(codec: Codec, data: bytes, size: int) -> int:
    """Return what decompressing `data` to `size` bytes takes, in units of some 10 ns of one core.

    A unit is an integer of a long row of rans. Nothing is decompressed.
    """
    if codec == "rans":
        from paramgolf.codec.rans import layout_work, read_layout  # see packing/code.py

        return layout_work(read_layout(data))
    return len(data) * (4 if codec == "lzma" else 1) + size // 4


def _brotli(data: bytes, size: int) -> tuple[bytes, bool]:
    """Return up to `size` + 1 bytes and whether the stream ended there: one more tells a bomb."""
    decoder = brotli.Decompressor()
    content = decoder.process(data, output_buffer_limit=size + 1)
    return content, decoder.is_finished()


def _lzma(data: bytes, size: int) -> tuple[bytes, bool]:
    """Return up to `size` + 1 bytes and whether the stream, and the data, ended there."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    content = decoder.decompress(data, max_length=size + 1)
    return content, decoder.eof and not decoder.unused_data


def shuffle(data: bytes) -> bytes:
    """Store all first bytes of 16-bit values, then all second bytes; the length must be even.

    Of a float16 the second byte holds sign, exponent and two digits, which repeat; the
    digits in the first are noise. Apart, each kind has its own statistics.
    """
    return data[0::2] + data[1::2]


def unshuffle(data: bytes) -> bytes:
    """Undo `shuffle`."""
    half = len(data) // 2
    content = bytearray(len(data))
    content[0::2], content[1::2] = data[:half], data[half:]
    return bytes(content)
