"""A hub on 127.0.0.1 for benchmarks: `python benchmarks/published_hub.py FOLDER` serves its files.

It speaks what tests/data/source/hub_server.py speaks, but sends files from disk, by the kernel. The
first line that it prints is its address.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests/data/source"))

from hub_server import COMMIT, Handler, Hub, start

from paramgolf.files import sha256_file


class FileHandler(Handler):
    """Sends the files of a folder; a Range header is not answered."""

    folder: Path
    entries: dict[str, dict[str, Any]]

    def _file(self, match: re.Match[str], _: dict[str, list[str]], body: bool) -> None:
        entry = self.entries.get(match[3])
        if entry is None:
            return self._error("EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"')
        self.send_header("X-Linked-Size", str(entry["size"]))
        self.send_header("Content-Length", str(entry["size"]))
        self.end_headers()
        if body:
            with (self.folder / match[3]).open("rb") as file:
                self.connection.sendfile(file)
        return None


def entry_of(path: Path, name: str) -> dict[str, Any]:
    size = path.stat().st_size
    if size > 10**7:
        sha256 = sha256_file(path)
        lfs = {"oid": sha256, "size": size, "pointerSize": 134}
        return {"type": "file", "path": name, "size": size, "oid": sha256[:40], "lfs": lfs}
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
    return {"type": "file", "path": name, "size": size, "oid": blob}


def main(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    entries = dict(zip(names, map(entry_of, paths, names), strict=True))
    handler = type("Bound", (FileHandler,), {"folder": folder, "entries": entries})
    _, address = start(Hub({}, entries=[*entries.values()]), handler)
    print(address, flush=True)
    sys.stdin.read()  # until nobody needs it any more


if __name__ == "__main__":
    main(Path(sys.argv[1]))
