"""A small server that speaks the hub's protocol as far as downloads use it, and misbehaves."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/parameter-golf"
RESOLVE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
TREE = re.compile(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?")
INFO = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?")
PAGE = 4
LARGE = 100


@dataclass
class Hub:
    """One dataset repository, its faults and what was asked of it."""

    files: dict[str, bytes]
    cuts: Counter[str] = field(default_factory=Counter)
    """Connections to cut in the middle of a file, of each."""
    served: dict[str, bytes] = field(default_factory=dict)
    """Contents sent in the place of the true ones."""
    corrupt_once: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path in the repository, Range header) of each request for a file."""
    reset: bool = False
    """Cut with a reset instead of a plain close."""
    entries: list[Any] | None = None
    """What the listing holds in the place of the true entries."""
    info: Any = field(default_factory=lambda: {"id": NAME, "sha": COMMIT, "tags": []})
    same_page: bool = False
    """Each page of the listing names itself as the next one."""
    endless: set[str] = field(default_factory=set)
    """Files whose bodies do not end."""
    drip: set[str] = field(default_factory=set)
    """Files, or `tree`, that come a byte at a time."""

    def tree(self) -> list[Any]:
        if self.entries is not None:
            return self.entries
        return [_entry(path, content) for path, content in sorted(self.files.items())]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if len(content) > LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        for pattern, answer in ((RESOLVE, self._file), (TREE, self._tree), (INFO, self._info)):
            if match := pattern.fullmatch(path):
                if match[1] != NAME:
                    return self._error("RepoNotFound")
                if match[2] not in (None, COMMIT, "main"):
                    return self._error("RevisionNotFound")
                return answer(match, urllib.parse.parse_qs(url.query), body)
        return self._error("EntryNotFound")

    def _error(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: object, **headers: str) -> None:
        answer = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def _drip(self) -> None:
        """Send blanks, which JSON may begin with, one after another, until nobody listens."""
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)

    def _info(self, match: re.Match[str], query: dict[str, list[str]], body: bool) -> None:
        self._json(self.hub.info)

    def _tree(self, match: re.Match[str], query: dict[str, list[str]], body: bool) -> None:
        if "tree" in self.hub.drip:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            return self._drip()
        start = int(query.get("cursor", ["0"])[0])
        tree = self.hub.tree()
        headers = {}
        if start + PAGE < len(tree) or self.hub.same_page:
            address = f"http://{self.headers['Host']}{urllib.parse.urlsplit(self.path).path}"
            cursor = start + (0 if self.hub.same_page else PAGE)
            link = f"{address}?recursive=true&cursor={cursor}"
            headers["Link"] = f'<{link}>; rel="next"'
        self._json(tree[start : start + PAGE], **headers)

    def _file(self, match: re.Match[str], query: dict[str, list[str]], body: bool) -> None:
        path = match[3]
        wanted = self.headers.get("Range")
        self.hub.requests.append((self.command, path, wanted))
        if path not in self.hub.files:
            return self._error("EntryNotFound")
        truth = self.hub.files[path]
        content = self.hub.served.get(path, truth)
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        entry = _entry(path, truth)
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{entry.get("lfs", entry)["oid"]}"')
        self.send_header("X-Linked-Size", str(len(truth)))
        self.send_header("Accept-Ranges", "bytes")
        unbounded = path in self.hub.endless
        if not unbounded:
            self.send_header("Content-Length", str(len(content) - start))
        elif body:
            self.close_connection = True
        if wanted:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        self.end_headers()
        if not body:
            return None
        if path in self.hub.drip:
            return self._drip()
        if unbounded:
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(content or b"x")
        if path in self.hub.corrupt_once:
            self.hub.corrupt_once.remove(path)
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.hub.cuts[path]:
            self.hub.cuts[path] -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            return self._cut()
        self.wfile.write(content[start:])
        return None

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        if self.hub.reset:
            linger = b"\1\0\0\0\0\0\0\0"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


def start(hub: Hub, kind: type[Handler] = Handler) -> tuple[http.server.ThreadingHTTPServer, str]:
    """Serve `hub` on a free port; return the server and its address."""
    handler = type("BoundHandler", (kind,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    poll_seconds = 0.01  # within which it ends
    threading.Thread(target=server.serve_forever, args=(poll_seconds,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"
