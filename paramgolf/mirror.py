"""A second place for results and logs, as they are written: a folder, or any URL of fsspec.

A stage leaves the copying to a process of its own (`mirrored`): that takes no time from training,
and copies to the end what a killed stage has left. The laboratory, which only waits for its stages,
copies in a thread (`Mirror.working`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paramgolf.errors import EXIT_USER_ERROR, ParamGolfError
from paramgolf.params import PARAMS_PATH, load_params, read_yaml
from paramgolf.process import is_rank
from paramgolf.progress import say
from paramgolf.runtime_config import RuntimeConfig

SECONDS = 10.0  # between copies, so much is lost with a machine at most
LAST_SECONDS = 120.0  # for what is left to copy when a stage ends, where the place answered before
SILENT_SECONDS = 30.0  # the same, where it did not answer yet or any more
COPIES = 4  # at a time: a log need not wait for a checkpoint
# without them a line that went dead is waited for without end
SSH_OPTIONS = {"connect_timeout": 20, "keepalive_interval": 10}
# where a file is there as soon as it is opened; object stores show it once it is whole
RENAMED = {"file", "local", "ssh", "sftp"}
# which need no folders; asked for one, they would make the bucket or container of a mistyped name
OBJECT_STORES = {"s3", "gs", "abfs", "oss", "oci", "ocilake", "tos"}
Seen = tuple[int, int]


class Mirror:
    """Copies files to a place each time that they have changed, until the block ends.

    A file is written whole: object stores cannot append. A place that does not answer costs a
    message and no run; it is tried again. `key` is what the user named it by.
    """

    def __init__(self, url: str, key: str, seconds: float = SECONDS) -> None:
        import fsspec  # here, and below: a stage without a mirror need not wait for it

        try:
            fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
        except (ValueError, ImportError) as error:
            fix = "name a folder, or `pip install -e .[remotes]` for s3:// and ssh://"
            raise ParamGolfError(f"{key} cannot be used", where=url, found=error, fix=fix) from None
        self._url, self._seconds = url, seconds
        self._files: dict[str, Path] = {}
        self._patterns: list[tuple[Path, str]] = []
        self._copied: dict[str, Seen] = {}
        self._under_way: dict[str, Future[None]] = {}
        self._connected: tuple[Any, str] | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(COPIES, "mirror")
        self._connecting = threading.Lock()
        self.failing: set[str] = set()
        self.silent = True

    def add(self, name: str, path: Path) -> None:
        """Copy a file, which need not be there yet, to `name` from now on."""
        with self._lock:
            self._files[name] = path

    def follow(self, root: Path, pattern: str) -> None:
        """Copy the files that `pattern` finds in `root`, by their names there, from now on."""
        with self._lock:
            self._patterns.append((root, pattern))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Copy for the length of the block, and once more at its end."""
        thread = threading.Thread(target=self.work, args=(self._ended,), name="mirror")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def work(self, ended: threading.Event) -> None:
        """Copy until the end, and then what has changed since."""
        while not ended.wait(self._seconds):
            self._begin()
        self._wait()
        self.copy()

    def copy(self) -> None:
        """Copy what has changed, and return when it is there."""
        self._begin()
        self._wait()

    def _wait(self) -> None:
        for copying in self._under_way.values():
            copying.result()

    def _begin(self) -> None:
        """Begin to copy what has changed and is not being copied."""
        for name, path in self._sources().items():
            known = self._under_way.get(name)
            if known is None or known.done():
                self._under_way[name] = self._pool.submit(self._copy, name, path)

    def _sources(self) -> dict[str, Path]:
        with self._lock:
            files, patterns = dict(self._files), [*self._patterns]
        for root, pattern in patterns:
            found = (path for path in root.glob(pattern) if path.is_file())
            # hidden are the files that are not whole yet (atomic_open)
            files |= {p.relative_to(root).as_posix(): p for p in found if p.name[0] != "."}
        return files

    def _copy(self, name: str, path: Path) -> None:
        try:
            found = path.stat()
            seen = found.st_mtime_ns, found.st_size
            if self._copied.get(name) != seen:
                self._put(path, name)
                self._copied[name], self.silent = seen, False
            self.failing.discard(name)
        except Exception as error:  # each kind of place has errors of its own
            if isinstance(error, FileNotFoundError) and not path.exists():
                self.failing.discard(name)
                return  # not written yet, or swept away with its run
            self._connected, self.silent = None, True
            self._complain(name, error)

    def _put(self, path: Path, name: str) -> None:
        system, root = self._connection()
        target = f"{root}/{name}"
        names = system.protocol
        protocols = {names} if isinstance(names, str) else {*names}
        if not protocols & OBJECT_STORES:
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
        if protocols & RENAMED:  # a copy that breaks off leaves the one before it whole
            system.put_file(str(path), f"{target}.part")
            system.mv(f"{target}.part", target)
        else:
            system.put_file(str(path), target)

    def _connection(self) -> tuple[Any, str]:
        """Return the place's file system and the path there, connected anew after an error."""
        import fsspec

        with self._connecting:
            if self._connected is None:
                options = SSH_OPTIONS if self._url.startswith(("ssh:", "sftp:")) else {}
                made = fsspec.core.url_to_fs(self._url, skip_instance_cache=True, **options)
                self._connected = made
            return self._connected

    def _complain(self, name: str, error: Exception) -> None:
        """Tell of an error, but where a copy has failed and not come to be since, as was said."""
        with self._lock:
            known = bool(self.failing)
            self.failing.add(name)
        if not known:
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            say(f"mirror: no copy at {self._url}: {words}; it is tried again")


def file_name(label: str) -> str:
    """Return a run's name as a folder may have it."""
    return re.sub(r"[^\w.]+", "-", label).strip("-")


@contextmanager
def mirrored(stage: str) -> Iterator[None]:
    """Copy what a stage writes to runtime.mirror, if that is named, for the length of the block.

    Processes of a group leave it to their launcher.
    """
    url = load_params(RuntimeConfig, "runtime").mirror
    if url is None or is_rank():
        yield
        return
    place = f"{url.rstrip('/')}/{run_name(read_yaml(PARAMS_PATH))}"
    Mirror(place, "runtime.mirror")  # a place that cannot be one is told before the work begins
    checkpoints = Path(os.environ.get("DVC_ROOT", ".")), f".resume/{stage}-*/*"
    outputs = f"artifacts/{stage}/**/*", f"artifacts/metrics/{stage}.json", "*.log", "params.yaml"
    followed = [checkpoints, *((Path(), pattern) for pattern in outputs)]
    words = [place, json.dumps([(str(root), pattern) for root, pattern in followed])]
    with subprocess.Popen(
        [sys.executable, "-m", "paramgolf.mirror", *words],
        stdin=subprocess.PIPE,  # its end tells the end of this process, however it comes
        start_new_session=True,  # Ctrl-C is not meant for it
    ):
        yield


def run_name(params: dict[str, Any]) -> str:
    """Return the folder of a run at the mirror: its seed, and a hash of its parameters."""
    counting = {name: section for name, section in params.items() if name != "runtime"}
    digest = hashlib.sha256(json.dumps(counting, sort_keys=True).encode()).hexdigest()
    return f"seed-{params['train']['seed']}-{digest[:8]}"


def main(words: Sequence[str]) -> None:
    """Copy until the standard input ends, and then what is left, as far as the place answers."""
    place, followed = words
    mirror = Mirror(place, "runtime.mirror")
    for root, pattern in json.loads(followed):
        mirror.follow(Path(root), pattern)
    ended = threading.Event()
    worker = threading.Thread(target=mirror.work, args=(ended,), daemon=True)
    worker.start()
    sys.stdin.read()
    ended.set()
    worker.join(SILENT_SECONDS if mirror.silent else LAST_SECONDS)
    if incomplete := worker.is_alive() or bool(mirror.failing):
        say(f"mirror: the last files are not all at {place}")
    os._exit(EXIT_USER_ERROR if incomplete else 0)  # a thread that hangs is not waited for


if __name__ == "__main__":
    main(sys.argv[1:])
