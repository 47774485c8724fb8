"""Folders that a stage fills, and links into the hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paramgolf.data.folders import fresh_folder, link_or_copy
from paramgolf.errors import ParamGolfError


def test_a_folder_is_emptied_and_what_its_links_lead_to_stays(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "inner").mkdir(parents=True)
    (kept / "file").write_text("kept")
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "to_folder").symlink_to(kept / "inner")
    (folder / "to_file").symlink_to(kept / "file")
    os.link(kept / "file", folder / "hard")
    assert fresh_folder(folder) == folder
    assert list(folder.iterdir()) == []
    assert (kept / "file").read_text() == "kept"
    assert (kept / "inner").is_dir()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, there: bool) -> None:
    """docs/cluster.md puts data/tokens on another disk this way."""
    target, link = tmp_path / "disk/tokens", tmp_path / "tokens"
    if there:
        (target / "old").mkdir(parents=True)
    link.symlink_to(target)
    (fresh_folder(link) / "new").write_text("new")
    assert link.is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]


def test_an_existing_target_is_refused_and_not_written_through(tmp_path: Path) -> None:
    blob, other, target = (tmp_path / name for name in ("blob", "other", "target"))
    blob.write_text("first")
    other.write_text("second")
    link_or_copy(blob, target)
    with pytest.raises(ParamGolfError, match="two files would lie under one name"):
        link_or_copy(other, target)
    assert blob.read_text() == "first"


def test_a_copy_takes_the_place_of_a_link_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blob").write_text("content")
    (tmp_path / "name").symlink_to("blob")

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "name", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "content"
    assert (tmp_path / "target").stat().st_nlink == 1
