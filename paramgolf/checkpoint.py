"""Checkpoints for resuming a run that was cut off: outside every DVC output, removed on success.

DVC deletes a stage's outputs before it runs again, so they live under .resume/ of the project (of
the original project, when DVC runs in a temporary copy). The folder's name is a hash of parameters,
data and code: whatever differs starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from importlib.abc import InspectLoader
from pathlib import Path
from typing import Any

import torch

from paramgolf.code_hash import code_hash
from paramgolf.files import atomic_open


def resume_key(*parts: object) -> str:
    """Return a hash of `parts` (JSON-able), torch's version and the package's loaded code.

    Of the code that is the hash which stages depend on: a comment does not end a run.
    """
    code = code_hash({name: _source(name) for name in sys.modules if name.startswith("paramgolf.")})
    content = json.dumps([torch.__version__, code, *parts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _source(module: str) -> str:
    """Return a loaded module's source, of a file or packed in train_gpt.py."""
    loader = sys.modules[module].__loader__
    assert isinstance(loader, InspectLoader)
    return loader.get_source(module) or ""


class Checkpoint:
    """One file that holds the newest state of a run."""

    def __init__(self, stage: str, key: str) -> None:
        root = Path(os.environ.get("DVC_ROOT", "."))
        self.folder = root / ".resume" / f"{stage}-{key}"
        self.path = self.folder / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` atomically: a crash leaves the checkpoint before it whole."""
        with atomic_open(self.path) as file:
            torch.save(state, file)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the newest state, tensors on `device`, or None when there is none."""
        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        return state

    def remove(self) -> None:
        """Delete the folder, after success."""
        shutil.rmtree(self.folder, ignore_errors=True)
