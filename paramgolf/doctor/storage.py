"""Checks of memory, disk and how DVC's cache is linked into the project."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from paramgolf.doctor.check import Check, fault, ok, warning
from paramgolf.estimate.devices import GIB

LITTLE_MEMORY = 4 * GIB  # the sample recipe's stages stay below 2 GiB
LITTLE_DISK = 20 * GIB  # published shards take 16 GB; the sample's files less than 1 GB
NO_DISK = GIB
LINKS = ["reflink", "hardlink", "symlink"]  # beside copies
LINKS_REMEDY = "dvc config cache.type reflink,hardlink,copy"


def total_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(total: int) -> Check:
    """Check the machine's memory."""
    text = f"{total / GIB:.1f} GiB, {os.cpu_count()} cores"
    if total < LITTLE_MEMORY:
        return warning(
            "memory", text, "lower train.micro_batch_tokens and tokenizer.training_bytes"
        )
    return ok("memory", text)


def check_disk(free: int, where: Path) -> Check:
    """Check the free space of DVC's cache."""
    text = f"{free / GIB:.0f} GiB free for the cache in {where}"
    remedy = "dvc cache dir FOLDER on a larger disk, or `dvc gc --workspace --all-experiments`"
    if free < NO_DISK:
        return fault("disk", text, remedy)
    if free < LITTLE_DISK:
        return warning("disk", text, remedy)
    return ok("disk", text)


def cache_folder(config: Mapping[str, str], root: Path) -> Path:
    """Return DVC's cache folder, which may not exist yet."""
    return root / ".dvc" / config.get("cache.dir", "cache")


def nearest(folder: Path) -> Path:
    """Return a folder, or its nearest parent that exists; a file may be in the way."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def can_hold_files(folder: Path) -> bool:
    """Tell whether files can be written to a folder, which may not exist yet."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return True
    except OSError:
        return False


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk where a folder is, or will be."""
    return shutil.disk_usage(nearest(folder)).free


def check_links(config: Mapping[str, str], root: Path) -> Check:
    """Check how cached files come into the project: copies take their space twice."""
    cache = cache_folder(config, root)
    if not can_hold_files(cache):
        return fault("cache links", f"{cache} cannot be made or written to", "dvc cache dir FOLDER")
    wanted = config.get("cache.type", "reflink,copy").split(",")
    working = set(working_links(cache, root))
    used = next((kind for kind in wanted if kind in working), "none")
    if used == "copy":
        better = working - {"copy"}
        text = "copy: every cached file takes its space twice"
        if better & {"reflink", "hardlink"}:
            return warning("cache links", text, LINKS_REMEDY)
        return warning(
            "cache links", text, "put cache and project on one disk: dvc cache dir FOLDER"
        )
    if used == "none":
        tried = ", ".join(wanted)
        return fault("cache links", f"none of {tried} works here", LINKS_REMEDY)
    return ok("cache links", used)


def working_links(cache: Path, root: Path) -> list[str]:
    """Return which links from `root` to files of `cache` the file systems allow, as DVC tries."""
    try:
        from dvc_objects.fs.generic import test_links
        from dvc_objects.fs.local import localfs

        found = test_links(LINKS, localfs, str(nearest(cache)), localfs, str(root / "new"))
    except (ImportError, OSError):
        return []  # without DVC, or where neither may be written to, no link works
    return [*found, "copy"]
