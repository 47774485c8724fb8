"""Folders that a stage fills: emptied first, so that nothing of an earlier run stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def fresh_folder(path: str | Path) -> Path:
    """Make `path` an empty folder, removing what an earlier run left, and return it."""
    path = Path(path)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give `target` the contents of `source`: a hard link where that is possible, else a copy.

    Both are read-only by convention from then on: shards are tens of gigabytes, and a second copy
    of each would fill a disk.
    """
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def locate(path: str) -> Path:
    """Return where a user's file is: below the working folder, else below the project's own.

    They differ when DVC runs a stage in a temporary copy; DVC_ROOT then names the project's.
    """
    here = Path(path)
    home = Path(os.environ.get("DVC_ROOT", ".")) / path
    return home if home.exists() and not here.exists() else here
