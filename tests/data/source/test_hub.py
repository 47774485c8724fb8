"""Downloads with the real client from a local hub: whole, cut, corrupt, or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
import token_case
import yaml
from hub_server import COMMIT, NAME, Hub
from token_case import make_texts

from paramgolf.data.retokenize import retokenize
from paramgolf.data.shards import header
from paramgolf.data.source.hub import HubUnreachableError, explained
from paramgolf.files import read_json
from paramgolf.recipes import compose, merge

ROOT = Path(__file__).parents[3]
BASE = "datasets/datasets/fineweb10B_sp400"
TRAIN = [f"{BASE}/fineweb_train_{index:06d}.bin" for index in range(3)]
VAL = f"{BASE}/fineweb_val_000000.bin"
FULL = "Data processing error: No space left on device (os error 28)"
MODEL = "datasets/tokenizers/fineweb_400_bpe.model"


@pytest.fixture(scope="module")
def published() -> dict[str, bytes]:
    """The files of a repository with two variants, one of them real."""
    model = token_case.processor(token_case.trained())

    def shard(seed: int, count: int) -> bytes:
        ids = [token for text in make_texts(seed, count) for token in (1, *model.encode(text))]
        return header(len(ids)) + np.array(ids, dtype="<u2").tobytes()

    files = {path: shard(index + 1, 30) for index, path in enumerate(TRAIN)}
    return files | {
        VAL: shard(9, 20),
        MODEL: token_case.trained(),
        "datasets/datasets/fineweb10B_sp999/fineweb_val_000000.bin": b"x",
        "datasets/docs_selected.jsonl": documents(make_texts(5, 30)),
    }


def documents(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


class Client:
    """Runs stages/download.py against a hub, in a folder of its own."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder, self.cache = hub, folder, folder / "cache"
        self._server, self.address = hub_server.start(hub)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def download(self, **hub: Any) -> subprocess.CompletedProcess[str]:
        changes = {"repository": NAME, "variant": "sp400", "train_shards": 2} | hub
        data = {"source": "hub", "validation_documents": 10, "hub": changes}
        params = merge(compose("sample", ROOT / "recipes"), {"data": data})
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))
        environment = os.environ | {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(self.cache),
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, ROOT / "stages" / "download.py"]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120
        )

    def gets(self) -> Counter[str]:
        return Counter(path for method, path, _ in self.hub.requests if method == "GET")


@pytest.fixture
def client(published: dict[str, bytes], tmp_path: Path) -> Iterator[Client]:
    client = Client(Hub(dict(published)), tmp_path)
    yield client
    client.stop()


def succeed(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, run.stderr


def message(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_shards_go_all_the_way_to_the_audit(client: Client, published: dict[str, bytes]) -> None:
    succeed(client.download())
    raw, tokens = client.folder / "data/raw", client.folder / "data/tokens"
    manifest = read_json(raw / "manifest.json")
    assert manifest["commit"] == COMMIT
    assert [file["name"] for file in manifest["train"]["files"]] == [
        "fineweb_train_000000.bin",
        "fineweb_train_000001.bin",
    ]
    assert (raw / "fineweb_val_000000.bin").read_bytes() == published[VAL]
    config = token_case.config(source="published")
    written = retokenize(config, 1, raw, tokens)
    assert written.val.documents == 20
    assert (tokens / "train_000001.bin").read_bytes() == published[TRAIN[1]]
    metrics = token_case.Case(raw, tokens).audit()
    assert metrics["bytes_val_counted"] == sum(len(t.encode()) for t in make_texts(9, 20))
    assert metrics["documents_train"] == 60
    assert metrics["lossless"]


def test_documents_become_splits(client: Client) -> None:
    succeed(client.download(kind="documents"))
    manifest = read_json(client.folder / "data/raw/manifest.json")
    assert manifest["val"]["documents"] == 10
    assert manifest["train"]["documents"] == 20
    assert manifest["commit"] == COMMIT
    assert manifest["published"]["path"] == "datasets/docs_selected.jsonl"


def test_a_cut_connection_is_taken_up_by_range(client: Client) -> None:
    # the client writes in pieces of 10 MiB; what it has written it does not ask for again
    large = documents([f"{index} " + "word " * 20_000 for index in range(240)])
    client.hub.files["datasets/docs_selected.jsonl"] = large
    client.hub.cuts["datasets/docs_selected.jsonl"] = 1
    succeed(client.download(kind="documents"))
    ranges = [wanted for method, _, wanted in client.hub.requests if method == "GET"]
    assert ranges == [None, "bytes=10485760-"]
    assert read_json(client.folder / "data/raw/manifest.json")["train"]["documents"] == 230


def test_a_run_that_broke_off_fetches_only_what_is_missing(client: Client) -> None:
    client.hub.reset = True
    client.hub.cuts[TRAIN[1]] = 100
    assert "broke off" in message(client.download())
    client.hub.cuts.clear()
    before = client.gets()
    succeed(client.download())
    assert client.gets() - before == Counter([TRAIN[1], VAL, MODEL])


def test_a_reset_connection_is_tried_again(client: Client, published: dict[str, bytes]) -> None:
    client.hub.reset = True
    client.hub.cuts[TRAIN[1]] = 2
    succeed(client.download())
    found = client.folder / "data/raw/fineweb_train_000001.bin"
    assert found.read_bytes() == published[TRAIN[1]]


def test_a_file_damaged_on_the_way_is_fetched_again(
    client: Client, published: dict[str, bytes]
) -> None:
    client.hub.corrupt_once = {VAL}
    succeed(client.download())
    assert (client.folder / "data/raw/fineweb_val_000000.bin").read_bytes() == published[VAL]
    assert client.gets()[VAL] == 2


def test_a_file_that_stays_damaged_is_refused(client: Client) -> None:
    truth = client.hub.files[VAL]
    client.hub.served[VAL] = truth[:-2] + b"\0\0"
    assert re.search(rf"a downloaded file is damaged\n.*{VAL}", message(client.download()))
    client.hub.served.clear()
    succeed(client.download())  # nothing of the damaged copy stays in the cache


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({3: 7}, "not a shard"),  # the magic number
        ({4: 2}, "not a shard"),  # the version
        ({8: 1, 9: 0}, "a shard is cut short or too long"),  # the token count
    ],
)
def test_a_false_header_is_refused(client: Client, change: dict[int, int], expected: str) -> None:
    content = bytearray(client.hub.files[VAL])
    for offset, value in change.items():
        content[offset] = value
    client.hub.files[VAL] = bytes(content)
    assert expected in message(client.download())


@pytest.mark.parametrize(
    ("hub", "expected"),
    [
        ({"variant": "sp8192"}, "no variant `sp8192`(.|\n)*one of: sp400, sp999"),
        ({"variant": "sp999", "train_shards": 1}, "fewer training shards than asked"),
        ({"train_shards": 9}, "fewer training shards(.|\n)*found: 3"),
        ({"repository": "no/body"}, "no such dataset repository(.|\n)*no/body"),
        ({"repository": "a/b/c"}, "not a repository's name"),
        ({"revision": "v9"}, "no such revision(.|\n)*v9"),
        ({"kind": "documents", "documents_file": "x.jsonl"}, "there is no file x.jsonl"),
        ({"kind": "documents", "documents_file": "x.csv"}, "of an unknown kind\n  where: x.csv"),
    ],
)
def test_what_is_not_there_is_named(client: Client, hub: dict[str, Any], expected: str) -> None:
    assert re.search(expected, message(client.download(**hub)))


def test_without_network_it_says_so(client: Client) -> None:
    client.address = "http://127.0.0.1:9"
    assert "Hugging Face cannot be reached" in message(client.download())


def test_a_cache_that_may_not_be_written_is_no_fault_of_the_network(client: Client) -> None:
    client.cache = Path("/sys/cache")  # where root may make no folder either
    found = message(client.download())
    assert re.search("(denied|not permitted|Read-only file system)\n  where: /sys/cache", found)
    assert "mend the rights" in found
    assert "Hugging Face" not in found


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), RuntimeError(FULL)]
)
def test_what_the_machine_refuses_is_left_to_the_program(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained("somewhere"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [ssl.SSLError(1, "handshake failed"), socket.gaierror(5, "no address"), TimeoutError("late")],
)
def test_an_error_of_a_socket_is_one_of_the_network(error: Exception) -> None:
    """Its number can be that of an error of a file: of SSL, 1 is none of rights."""
    with pytest.raises(HubUnreachableError), explained("somewhere"):
        raise error


def manifest(**stats: int) -> bytes:
    dataset = {"name": "fineweb10B_sp400", "tokenizer_name": "mine", "stats": stats}
    tokenizer = {"name": "mine", "model_path": "tokenizers/other.model"}
    return json.dumps({"datasets": [dataset], "tokenizers": [tokenizer]}).encode()


def test_the_repository_s_manifest_names_the_tokenizer(client: Client) -> None:
    client.hub.files["datasets/tokenizers/other.model"] = client.hub.files[MODEL] + b""
    client.hub.files["datasets/manifest.json"] = manifest(files_val=1, docs_val=20)
    succeed(client.download())
    raw = read_json(client.folder / "data/raw/manifest.json")
    assert raw["tokenizer"]["published"] == "datasets/tokenizers/other.model"
    assert raw["val"]["documents"] == 20


def test_a_validation_split_below_the_manifest_s_promise_is_refused(client: Client) -> None:
    client.hub.files["datasets/tokenizers/other.model"] = client.hub.files[MODEL]
    client.hub.files["datasets/manifest.json"] = manifest(files_val=2)
    assert "not what the repository's manifest promises" in message(client.download())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "a file is not UTF-8"),
        (b'{"datasets": 5}', "a fault in the manifest\n  - `datasets` must be a list"),
        (b'{"datasets": [{"name": 3}]}', r"`datasets\.0\.name` must be a text"),
        (manifest(files_val=-1), r"`datasets\.0\.stats\.files_val` must be at least 0"),
        (b'{"tokenizers": [null]}', r"`tokenizers\.0` must be a mapping"),
    ],
)
def test_a_malformed_manifest_is_one_message(client: Client, content: bytes, expected: str) -> None:
    client.hub.files["datasets/manifest.json"] = content
    found = message(client.download())
    assert re.search(expected, found)
    assert "data.hub.revision" in found


def test_a_variant_in_two_folders_is_refused(client: Client) -> None:
    # equal names would be written through the hard link into the client's cache
    client.hub.files["copy/fineweb10B_sp400/fineweb_val_000000.bin"] = client.hub.files[VAL]
    found = message(client.download())
    assert f"lies in 2 folders\n  where: {NAME}" in found
    assert f"found: copy/fineweb10B_sp400, {BASE}" in found


def test_a_gap_in_the_numbers_of_shards_is_refused(client: Client) -> None:
    client.hub.files[TRAIN[1].replace("000001", "000007")] = client.hub.files.pop(TRAIN[1])
    found = message(client.download())
    assert "the train shards of `sp400` are not numbered without gaps" in found
    assert "found: 0, 2, 7" in found
