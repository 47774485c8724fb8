"""Containers taken apart, and made of any header under a right checksum."""

import hashlib
import json
import zlib

from paramgolf.codec.container import DIGEST_FROM, MAGIC, PREFIX, VERSION


def seal(body: bytes) -> bytes:
    """Put a right prefix before what follows the checksum."""
    digest = hashlib.sha256(body).digest()
    return PREFIX.pack(MAGIC, VERSION, digest, 0)[:DIGEST_FROM] + body


def split(content: bytes) -> tuple[dict, bytes]:
    """Return the header and the streams of a container."""
    length = int.from_bytes(content[DIGEST_FROM : PREFIX.size], "little")
    end = PREFIX.size + length
    return json.loads(zlib.decompress(content[PREFIX.size : end])), content[end:]


def join(header: object, streams: bytes) -> bytes:
    """Make a container with a right checksum of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    compressed = zlib.compress(text)
    return seal(len(compressed).to_bytes(4, "little") + compressed + streams)
