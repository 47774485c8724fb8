"""Published shards: where three repositories keep them, and several files fetched at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_files import write_shard

from paramgolf.data.config import HubConfig
from paramgolf.data.source import fetch, hub
from paramgolf.data.source.hub import HubFile, Repository
from paramgolf.errors import ParamGolfError
from paramgolf.recipes import build

ROOT = Path(__file__).parents[3]
CASEOPS = "sp8192_lossless_caps_caseops_v1_reserved"
# what stands in the published repositories, apart from the numbers of shards: two with a manifest
# that names the tokenizers, one without
FIRST = [
    "datasets/docs_selected.jsonl",
    "datasets/manifest.json",
    *(f"datasets/tokenizers/fineweb_{size}_bpe.model" for size in (1024, 4096, 8192)),
]
LAYOUTS = {
    "willdepueoai/parameter-golf": (FIRST, ("sp1024", "sp4096", "sp8192")),
    "kevclark/parameter-golf": (FIRST, ("sp1024", "sp4096", "sp8192")),
    "romeerp/parameter-golf-caseops-v1": (
        [
            f"datasets/tokenizers/fineweb_8192_bpe_{CASEOPS.removeprefix('sp8192_')}.model",
            "datasets/tokenizers/fineweb_8192_bpe.model",
        ],
        (CASEOPS,),
    ),
}
MANIFEST = {
    "datasets": [
        {"name": f"fineweb10B_sp{size}", "tokenizer_name": f"sp_bpe_{size}"}
        for size in (1024, 4096, 8192)
    ],
    "tokenizers": [
        {"name": f"sp_bpe_{size}", "model_path": f"tokenizers/fineweb_{size}_bpe.model"}
        for size in (1024, 4096, 8192)
    ],
}


class Published(Repository):
    """A repository's files in a folder; what is fetched is that."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.commit, self._folder = name, "0" * 40, folder
        paths = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        self.files = {
            path: HubFile(path=path, size=1, sha256=None, blob="0" * 40) for path in paths
        }

    def fetch(self, path: str) -> Path:
        return self._folder / path


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lay out a repository of that name, with two training shards a variant."""

    def lay_out(name: str) -> None:
        folder = tmp_path / "hub"
        others, variants = LAYOUTS[name]
        for path in others:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(MANIFEST) if path.endswith("manifest.json") else path
            (folder / path).write_text(content)
        for variant in variants:
            stems = ["train_000000", "train_000001", "val_000000"]
            stems += ["val_bytes_000000"] if variant == CASEOPS else []
            for count, stem in enumerate(stems, 5):
                path = folder / f"datasets/datasets/fineweb10B_{variant}/fineweb_{stem}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_shard(path, np.arange(count))
        monkeypatch.setattr(fetch, "Repository", lambda name, revision: Published(name, folder))

    return lay_out


@pytest.mark.parametrize("recipe", ["pr1204", "pr1296", "pr1493", "pr1499", "pr1855", "pr2135"])
def test_what_a_recipe_asks_for_is_found_where_the_publisher_keeps_it(recipe, publish, tmp_path):
    asked = build(recipe, folder=ROOT / "recipes")["data"]["hub"]
    publish(asked["repository"])
    (tmp_path / "raw").mkdir()
    config = HubConfig(**asked | {"train_shards": 2})
    found = fetch.fetch_shards(config, tmp_path / "raw")
    assert [file.tokens for file in found.train.files] == [5, 6]
    assert found.val.tokens == 7
    assert found.val_bytes.tokens == (8 if asked["variant"] == CASEOPS else 0)
    size, _, tail = asked["variant"].removeprefix("sp").partition("_")
    name = "_".join(filter(None, ("fineweb", size, "bpe", tail)))
    assert found.tokenizer.published == f"datasets/tokenizers/{name}.model"
    assert (tmp_path / "raw/tokenizer.model").read_text() == found.tokenizer.published


class Slow(Published):
    """A repository whose first file comes only when another one has come."""

    def __init__(self, folder: Path, damaged: str = "") -> None:
        super().__init__("slow", folder)
        self.others, self.asked, self._damaged = threading.Event(), [], damaged

    def fetch(self, path: str) -> Path:
        self.asked.append(path)
        if path == "00":
            assert self.others.wait(60)
        elif path == self._damaged:
            raise ParamGolfError("a downloaded file is damaged")
        else:
            self.others.set()
        return Path(path)


def test_files_come_in_order_though_several_are_fetched_at_once(tmp_path):
    names = [f"{index:02}" for index in range(20)]
    assert [str(local) for local in Slow(tmp_path).fetch_all(names)] == names


def test_a_damaged_file_ends_it_and_what_waits_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "AT_ONCE", 1)
    slow, before = Slow(tmp_path, damaged="damaged"), {*threading.enumerate()}
    with pytest.raises(ParamGolfError, match="damaged"):
        list(slow.fetch_all(["damaged", "00", "01", "02"]))
    slow.others.set()  # which 00, if it was begun, has waited for
    for thread in {*threading.enumerate()} - before:
        thread.join()
    assert slow.asked in (["damaged"], ["damaged", "00"])


def test_nothing_is_asked_of_a_hub_for_no_files(tmp_path):
    assert list(Slow(tmp_path).fetch_all([])) == []
