"""Folders that a stage fills: emptied first, so that nothing of an earlier run stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from paramgolf.errors import ParamGolfError
from paramgolf.files import atomic_open


def fresh_folder(path: str | Path) -> Path:
    """Make `path` an empty folder, removing what an earlier run left, and return it.

    A link to a folder stays: its folder is emptied. So data/tokens can lie on another disk.
    """
    path = Path(path)
    if path.is_symlink():
        path.resolve().mkdir(parents=True, exist_ok=True)
        for entry in path.iterdir():
            _remove(entry)
        return path
    if os.path.lexists(path):
        _remove(path)
    path.mkdir(parents=True)
    return path


def _remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give `target`, which must not exist, the contents of `source`.

    A hard link where that is possible, else a copy: shards are tens of gigabytes, and a second copy
    of each would fill a disk. Both are read-only by convention from then on. An existing target
    could itself be a link to a file of the hub's cache, which writing would spoil.
    """
    real = os.path.realpath(source)
    if os.path.lexists(target):
        raise ParamGolfError("two files would lie under one name", where=target, found=source)
    try:
        os.link(real, target)
    except OSError:
        with open(real, "rb") as read, atomic_open(target) as write:
            shutil.copyfileobj(read, write, 1 << 20)


def locate(path: str) -> Path:
    """Return where a user's file is: below the working folder, else below the project's own.

    They differ when DVC runs a stage in a temporary copy; DVC_ROOT then names the project's.
    """
    here = Path(path)
    home = Path(os.environ.get("DVC_ROOT", ".")) / path
    return home if home.exists() and not here.exists() else here
