"""Checks of memory, disk and how DVC's cache is linked into the project."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from paramgolf.doctor.check import Check, fault, ok, warning
from paramgolf.estimate.devices import GIB

LITTLE_MEMORY = 4 * GIB  # the sample recipe's stages stay below 2 GiB
LITTLE_DISK = 20 * GIB  # published shards take 16 GB; the sample's files less than 1 GB
NO_DISK = GIB
FICLONE = 0x40049409  # Linux's request to share a file's blocks
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


def free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's disk; of its nearest parent where it does not exist."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_links(config: Mapping[str, str], root: Path) -> Check:
    """Check how cached files come into the project: copies take their space twice."""
    wanted = config.get("cache.type", "reflink,copy").split(",")
    working = set(working_links(cache_folder(config, root), root))
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


def working_links(cache: Path, root: Path) -> Iterator[str]:
    """Try which links from `root` to files of `cache` the file systems allow."""
    while not cache.exists():
        cache = cache.parent
    try:
        with (
            tempfile.NamedTemporaryFile(dir=cache, prefix=".doctor.") as source,
            tempfile.TemporaryDirectory(dir=root, prefix=".doctor.") as folder,
        ):
            yield from _tried(Path(source.name), Path(folder))
    except OSError:
        return  # neither may be written to: no link works


def _tried(source: Path, folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        _reflink(source, folder / "reflink")
        yield "reflink"
    for kind, make in (("hardlink", os.link), ("symlink", os.symlink), ("copy", shutil.copyfile)):
        with contextlib.suppress(OSError):
            make(source, folder / kind)
            yield kind


def _reflink(source: Path, target: Path) -> None:
    import fcntl  # POSIX only

    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
