"""Hubs that send nonsense, too much or nothing: each is one message, within a deadline.

The client runs in this process, so that a case takes no start of a stage.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import NAME, Hub

from paramgolf.data.source import hub as hub_module
from paramgolf.data.source.hub import Repository
from paramgolf.data.source.hub_limits import deadline
from paramgolf.errors import ParamGolfError

FILES = {"docs.jsonl": b'{"text": "a"}\n' * 50, "small.txt": b"x"}
ENTRY = {"type": "file", "path": "a.bin", "size": 3, "oid": "0" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub(dict(FILES))
    server, address = hub_server.start(hub)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    yield hub
    server.shutdown()
    server.server_close()


def refused(expected: str) -> None:
    with pytest.raises(ParamGolfError, match=expected):
        Repository(NAME, "main").fetch("docs.jsonl")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"path": "../../x"}, r"`files\.0\.path` must be a path inside the repository"),
        ({"path": "/etc/passwd"}, "must be a path inside"),
        ({"path": "a//b"}, "must be a path inside"),
        ({"path": "a/./b"}, "must be a path inside"),
        ({"path": "a\nb"}, "must be a path inside"),
        ({"path": "x" * 2000}, "must be a path inside"),
        ({"path": "\ud800"}, "must be a text"),
        ({"path": None}, "must be a text"),
        ({"size": -1}, r"`files\.0\.size` must lie in"),
        ({"size": "3"}, "must be a whole number"),
        ({"size": 2**70}, "must lie in"),
        ({"oid": "zz"}, r"`files\.0\.blob` must be a hash"),
        ({"lfs": {"oid": 5, "size": 3, "pointerSize": 1}}, r"`files\.0\.sha256` must be a text"),
        ({"lfs": {}}, "the hub's answer cannot be read"),
        ({"lfs": 7}, "the hub's answer cannot be read"),
    ],
)
def test_a_malformed_entry_is_one_message(hub: Hub, change: dict[str, Any], expected: str) -> None:
    hub.entries = [ENTRY | change]
    refused(expected)


@pytest.mark.parametrize("entries", [[5], [None], ["x"], [{}], [[]], [{"type": "file"}]])
def test_a_malformed_listing_is_one_message(hub: Hub, entries: list[Any]) -> None:
    hub.entries = entries
    refused("the hub's answer cannot be read")


@pytest.mark.parametrize("info", [[], 3, {"id": NAME, "sha": None}, {"id": NAME, "sha": "../x"}])
def test_a_malformed_description_is_one_message(hub: Hub, info: Any) -> None:
    hub.info = info
    refused("the hub's answer|there is no such revision")


def test_a_listing_without_end_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.same_page = True
    monkeypatch.setattr(hub_module, "MOST_FILES", 20)
    refused("the repository has too many files")


def test_a_listing_that_takes_for_ever_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.drip = {"tree"}
    monkeypatch.setattr(hub_module, "LISTING_SECONDS", 0.5)
    refused("the hub takes too long(.|\n)*an answer within")


def test_a_file_that_takes_for_ever_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.drip = {"docs.jsonl"}
    monkeypatch.setattr(hub_module, "FILE_SECONDS", 0.5)
    refused(r"the hub takes too long\n  where: .*docs.jsonl")


def test_a_file_without_end_is_stopped_at_its_size(hub: Hub, tmp_path: Path) -> None:
    hub.endless = {"docs.jsonl"}
    refused("longer than the hub says(.|\n)*expected: 700 bytes")
    assert all(path.stat().st_size <= 700 for path in tmp_path.rglob("*.incomplete"))
    hub.endless.clear()
    local = Repository(NAME, "main").fetch("docs.jsonl")  # nothing of it stays in the cache
    assert local.read_bytes() == FILES["docs.jsonl"]


def test_a_deadline_leaves_another_timer_alone() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with deadline(100, "here"):
            pass
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
