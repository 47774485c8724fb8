"""Files of a Hugging Face dataset repository at a pinned commit, checked against the hub's hashes.

The client keeps what it has fetched in its cache, so a run that was broken off fetches only the
missing files; within a run it takes up a cut connection where it broke. huggingface_hub is imported
when it is used: it reads its environment (HF_ENDPOINT, HF_HOME, HF_TOKEN) on import.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated

from paramgolf.data.source.hub_limits import FIX, bounded_bar, deadline
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file
from paramgolf.program import ADVICE, machine_fault
from paramgolf.progress import say
from paramgolf.schema import Range, Sha256, Spelling, parse

ATTEMPTS = 3
AT_ONCE = 8  # files: one connection to a hub is slower than most networks
# a listing takes seconds, and a file comes at a megabyte a second or more
LISTING_SECONDS, FILE_SECONDS, LEAST_BYTES_PER_SECOND = 600.0, 300.0, 50_000
MOST_FILES = 1_000_000  # of a repository
PathInside = Annotated[
    str,
    Spelling(r"(?!(.*/)?\.{0,2}(/|$))[^\0-\x1f\x7f]{1,1000}", "a path inside the repository"),
]
GitHash = Annotated[str, Spelling(r"[0-9a-f]{40}|[0-9a-f]{64}", "a hash of Git")]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """What the hub says of a file."""

    path: PathInside
    size: Annotated[int, Range(0, 2**50)]
    sha256: Sha256 | None
    """Of large files."""
    blob: GitHash
    """Git's SHA-1 of the content, of small files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What the hub says of a repository."""

    commit: GitHash
    files: tuple[HubFile, ...]


class Repository:
    """A dataset repository at one commit."""

    def __init__(self, name: str, revision: str) -> None:
        """Resolve `revision` (a commit, tag or branch) to a commit and list its files."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        self.name = name
        where = f"{name} at {revision}"
        api, files = HfApi(), []
        with explained(where), deadline(LISTING_SECONDS, where):
            commit = api.dataset_info(name, revision=revision).sha
            tree = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
            for entry in tree:
                if isinstance(entry, RepoFile):
                    sha256 = entry.lfs.sha256 if entry.lfs else None
                    fields = {"path": entry.path, "size": entry.size, "sha256": sha256}
                    files.append(fields | {"blob": entry.blob_id})
                if len(files) > MOST_FILES:
                    what = "the repository has too many files"
                    raise ParamGolfError(what, where=where, expected=f"at most {MOST_FILES:,}")
        content = {"commit": commit, "files": files}
        listing = parse(Listing, content, "", where=where, of="the hub's answer", fix=FIX)
        self.commit = listing.commit
        self.files = {file.path: file for file in listing.files}

    def fetch(self, path: str) -> Path:
        """Return the local copy of a file, fetched if it is not in the cache, its hash checked.

        A copy with a wrong size or hash is fetched once more; a connection that breaks for good is
        taken up again a few times.
        """
        if path not in self.files:
            raise ParamGolfError(
                f"there is no file {path}",
                where=f"{self.name} at {self.commit}",
                found=", ".join(sorted(self.files)[:20]),
                fix="mend data.hub.documents_file or data.hub.variant",
            )
        file = self.files[path]
        say(f"{path}: {file.size} bytes")
        local = self._download(file)
        if found := _fault(local, file):
            say(f"{path}: {found}; fetching it again")
            _discard(local)
            local = self._download(file)
            if found := _fault(local, file):
                _discard(local)
                raise ParamGolfError(
                    "a downloaded file is damaged",
                    where=f"{self.name} at {self.commit}: {path}",
                    expected=f"{file.size} bytes, hash {file.sha256 or file.blob}",
                    found=found,
                    fix="try again later: the hub, or a proxy before it, serves another content",
                )
        return local

    def fetch_all(self, paths: Sequence[str]) -> Iterator[Path]:
        """Yield the local copies of files in their order, while AT_ONCE of them are fetched.

        The process does not wait for the threads at its end: one may hang in a server's silence.
        """
        waiting: SimpleQueue[tuple[str, Future[Path]]] = SimpleQueue()
        copies: list[Future[Path]] = []
        for path in paths:
            copies.append(Future())
            waiting.put((path, copies[-1]))
        for _ in paths[:AT_ONCE]:
            threading.Thread(target=self._work, args=(waiting,), daemon=True).start()
        try:
            for path, copy in zip(paths, copies, strict=True):
                with deadline(self._seconds(path), f"{self.name}: {path}"):
                    local = copy.result()
                yield local
        finally:
            for copy in copies:
                copy.cancel()

    def _work(self, waiting: SimpleQueue[tuple[str, Future[Path]]]) -> None:
        """Fetch what waits, until nothing does."""
        with contextlib.suppress(Empty):
            while True:
                path, copy = waiting.get_nowait()
                if copy.set_running_or_notify_cancel():
                    try:
                        copy.set_result(self.fetch(path))
                    except BaseException as error:  # who waits for the copy is told
                        copy.set_exception(error)

    def _seconds(self, path: str) -> float:
        """Return how long a file may take."""
        size = self.files[path].size if path in self.files else 0
        return FILE_SECONDS + size / LEAST_BYTES_PER_SECOND

    def _download(self, file: HubFile) -> Path:
        from huggingface_hub import hf_hub_download

        where = f"{self.name} at {self.commit}: {file.path}"
        seconds = self._seconds(file.path)
        bar = bounded_bar(file.size, where)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with explained(where), deadline(seconds, where):
                    local = hf_hub_download(
                        self.name,
                        file.path,
                        repo_type="dataset",
                        revision=self.commit,
                        tqdm_class=bar,
                    )
                return Path(local)
            except HubUnreachableError as error:
                # what the client does not mend itself: a reset connection, a body cut too often
                if attempt == ATTEMPTS:
                    raise
                say(f"{error}\ntrying again ({attempt + 1} of {ATTEMPTS})")
        raise AssertionError


def _fault(local: Path, file: HubFile) -> str | None:
    """Return what is wrong with a local copy, or None."""
    if (size := local.stat().st_size) != file.size:
        return f"{size} bytes"
    if file.sha256 is not None:
        found, expected = sha256_file(local), file.sha256
    else:
        content = local.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        expected = file.blob
    return None if found == expected else f"hash {found}"


def _discard(local: Path) -> None:
    """Take a file out of the client's cache: the link of its name, and the content."""
    local.resolve().unlink()
    local.unlink(missing_ok=True)


class HubUnreachableError(ParamGolfError):
    """The hub cannot be reached, or breaks off; it may answer later."""


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn the client's errors into messages that say what is wrong and what to do."""
    from huggingface_hub import constants, errors

    # of the HTTP library that this version of the client uses
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except ParamGolfError:
        raise
    except errors.GatedRepoError:
        fix = "ask for access on its page, then `hf auth login`"
        raise ParamGolfError("the repository is gated", where=where, fix=fix) from None
    except errors.RepositoryNotFoundError:
        fix = "mend data.hub.repository; for a private one, `hf auth login` first"
        raise ParamGolfError("there is no such dataset repository", where=where, fix=fix) from None
    except errors.RevisionNotFoundError:
        fix = "set data.hub.revision to a commit, tag or branch of the repository"
        raise ParamGolfError("there is no such revision", where=where, fix=fix) from None
    except errors.HFValidationError as error:
        raise ParamGolfError("not a repository's name", where=where, found=error) from None
    except (OSError, http_error) as error:
        if _is_of_a_file(error):
            raise
        raise HubUnreachableError(
            "Hugging Face cannot be reached, or broke off",
            where=f"{where} ({constants.ENDPOINT})",
            found=f"{type(error).__name__}: {error}",
            fix="check the network; without one, set data.source to sample or files",
        ) from None
    except Exception as error:  # whatever the client's code makes of a malformed answer
        if machine_fault(error) is not None:  # as the client for xet tells of a full disk
            raise
        what, found = "the hub's answer cannot be read", repr(error)[:200]
        raise ParamGolfError(what, where=where, found=found, fix=FIX) from None


def _is_of_a_file(error: Exception) -> bool:
    """Tell whether the disk or the cache's rights are at fault, which the program explains.

    Errors of sockets, TLS and HTTP have classes and numbers of their own.
    """
    own = type(error) in (OSError, PermissionError)
    return own and isinstance(error, OSError) and error.errno in ADVICE
