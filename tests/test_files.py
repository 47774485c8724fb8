"""Files of the project are read strictly, and written whole or not at all."""

from __future__ import annotations

import errno
import json
import os

import pytest

from paramgolf import files
from paramgolf.errors import ParamGolfError
from paramgolf.files import atomic_open, parse_json, read_json, write_text
from paramgolf.program import machine_fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' comes twice"),
        ("[NaN]", "NaN is no number of JSON"),
        ("[-Infinity]", "-Infinity is no number of JSON"),
        ("[1e999]", "the number 1e999 is out of range"),
        (f"[{'9' * 5000}]", "out of range"),
        (f"[-{2**63}]", "out of range"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_no_file_of_ours_holds_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_plain_json_is_what_python_reads():
    content = {"a": [1, -2.5e-3, None, True, "\u00e9"], "b": {"c": 2**63 - 1}}
    assert parse_json(json.dumps(content)) == content


def test_a_byte_order_mark_is_taken_off(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_what_cannot_be_read_is_said_with_its_path(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    (tmp_path / "large").write_bytes(b" " * 101)
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 100)
    for name, message in (
        ("pipe", "not a regular file"),
        ("latin", "a file is not UTF-8"),
        ("large", "a file is too large"),
        ("none", "there is no file"),
        ("", "not a regular file"),
    ):
        with pytest.raises(ParamGolfError, match=message) as caught:
            read_json(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_folder_that_takes_no_file_is_told_by_the_files_name(tmp_path, monkeypatch):
    def refused(dir, prefix):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/{prefix}abc")

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    path = tmp_path / "a.json"
    with pytest.raises(PermissionError) as caught:
        write_text(path, "new")
    assert str(machine_fault(caught.value)).startswith(f"Permission denied\n  where: {path} (")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with atomic_open(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
