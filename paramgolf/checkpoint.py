"""Checkpoints for resuming a run that was cut off: outside every DVC output, removed on success.

DVC deletes a stage's outputs before it runs again, so they live under .resume/ of the project (of
the original project, when DVC runs in a temporary copy). The folder's name is a hash of parameters,
data and code: whatever differs starts afresh.

A file begins with the SHA-256 of what follows. A run is resumed from exactly what was saved, or not
at all: one flipped bit of a weight or a score would change the result without a word.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import sys
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import IO, Any, cast

import torch

from paramgolf.code_hash import code_hash
from paramgolf.files import atomic_open
from paramgolf.imports import imported_modules
from paramgolf.progress import say

DIGEST_BYTES = hashlib.sha256().digest_size


def resume_key(*parts: object) -> str:
    """Return a hash of `parts` (JSON-able), torch's version and the package's code.

    Of the code that is the hash which stages depend on: a comment does not end a run.
    """
    content = json.dumps([torch.__version__, code_hash(sources()), *parts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def sources() -> dict[str, str]:
    """Return the code of the package's loaded modules, and of what they will yet import, by name.

    A function that imports what it needs itself may not have run.
    """
    found: dict[str, str] = {}
    queue = [name for name in sys.modules if name.startswith("paramgolf.")]
    while queue:
        name = queue.pop()
        if name not in found and (source := _source(name)) is not None:
            found[name] = source
            queue += imported_modules(ast.parse(source))
    return found


def _source(name: str) -> str | None:
    """Return a module's source, of a file or packed in train_gpt.py; None where it is no module.

    Packages hold a docstring alone, and count for none.
    """
    spec = _spec(name)
    if spec is None or spec.submodule_search_locations is not None:
        return None
    assert isinstance(spec.loader, InspectLoader)
    return spec.loader.get_source(name) or ""


def _spec(name: str) -> ModuleSpec | None:
    """Return where a module is, without loading it or what it lies in, as importlib.util would."""
    if name in sys.modules:
        return sys.modules[name].__spec__
    parent = _spec(name.rpartition(".")[0])
    if parent is None or (places := parent.submodule_search_locations) is None:
        return None
    found = (finder.find_spec(name, places) for finder in sys.meta_path)
    return next((spec for spec in found if spec), None)


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class Checkpoint:
    """One file that holds the newest state of a run."""

    def __init__(self, stage: str, key: str) -> None:
        root = Path(os.environ.get("DVC_ROOT", "."))
        self.folder = root / ".resume" / f"{stage}-{key}"
        self.path = self.folder / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` atomically: a crash leaves the checkpoint before it whole."""
        with atomic_open(self.path) as file:
            file.write(bytes(DIGEST_BYTES))
            body = _Hashed(file)
            torch.save(state, cast(IO[bytes], body))
            file.seek(0)
            file.write(body.hash.digest())

    def load(self, device: torch.device, *, tell: bool = True) -> dict[str, Any] | None:
        """Return the newest state, tensors on `device`, or None when there is none.

        A file that is not as it was written counts as none; `tell` says so.
        """
        if not self.path.is_file():
            return None
        content = memoryview(self.path.read_bytes())
        digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            if tell:
                say(f"{self.path} is damaged: the run begins afresh")
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(body), device, weights_only=True)
        return state

    def remove(self) -> None:
        """Delete the folder, after success."""
        shutil.rmtree(self.folder, ignore_errors=True)
