"""A remote in S3: what one clone pushes to a real server, another pulls."""

from __future__ import annotations

from dvc.repo import Repo


def test_what_is_pushed_comes_back(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    with Repo() as repo:
        with repo.config.edit() as config:
            config["remote"]["shared"] = {"url": bucket}
            config["core"]["remote"] = "shared"
        (tmp_path / "model.bin").write_bytes(bytes(range(256)) * 100)
        repo.add("model.bin")
    with Repo() as repo:
        assert repo.push() == 1
        repo.cache.local.clear()
        (tmp_path / "model.bin").unlink()
        assert repo.pull()["stats"]["fetched"] == 1
    assert (tmp_path / "model.bin").read_bytes() == bytes(range(256)) * 100
