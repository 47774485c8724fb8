"""A second place for results and logs, as they are written: a folder, or any URL of fsspec."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from paramgolf.errors import ParamGolfError
from paramgolf.progress import say

SECONDS = 10.0  # between copies, so much is lost with a machine at most
Seen = tuple[int, int]


class Mirror:
    """Copies files to a place each time that they have changed, until the block ends.

    A file is written whole: object stores cannot append. A place that does not answer costs a
    message and no run.
    """

    def __init__(self, url: str, seconds: float = SECONDS) -> None:
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            fix = "name a folder, or install what fsspec needs for this kind of place"
            raise ParamGolfError(
                "--mirror cannot be used", where=url, found=error, fix=fix
            ) from None
        self._url, self._seconds = url, seconds
        self._files: dict[str, Path] = {}
        self._copied: dict[str, Seen] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._complained = False

    def add(self, name: str, path: Path) -> None:
        """Copy a file, which need not be there yet, to `name` from now on."""
        with self._lock:
            self._files[name] = path

    @contextmanager
    def working(self) -> Iterator[None]:
        """Copy for the length of the block, and once more at its end."""
        thread = threading.Thread(target=self._work, name="mirror")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self.copy()

    def _work(self) -> None:
        while not self._ended.wait(self._seconds):
            self.copy()

    def copy(self) -> None:
        """Copy what has changed."""
        with self._lock:
            files = dict(self._files)
        for name, path in files.items():
            try:
                found = path.stat()
                seen = found.st_mtime_ns, found.st_size
                if self._copied.get(name) != seen:
                    target = f"{self._root}/{name}"
                    self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
                    self._system.put_file(str(path), target)
                    self._copied[name] = seen
            except FileNotFoundError:
                continue  # not written yet, or swept away with its run
            except OSError as error:
                self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            say(f"lab: no copy at {self._url}: {error}; it is tried again")
            self._complained = True


def file_name(label: str) -> str:
    """Return a run's name as a folder may have it."""
    return re.sub(r"[^\w.]+", "-", label).strip("-")
