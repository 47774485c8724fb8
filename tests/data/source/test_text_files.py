"""The user's own files: every kind and compression, and each fault named by file and line."""

from __future__ import annotations

import errno
import gzip
import json
import lzma
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from paramgolf.data.documents import Document, write_documents
from paramgolf.data.source import streams
from paramgolf.data.source.streams import COMPRESSIONS
from paramgolf.data.source.text_files import DocumentErrors, read_texts
from paramgolf.errors import ParamGolfError

TEXTS = ["first\ntext", "zweiter Ümlaut 語", "third \u2028 line"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "project"


def jsonl(texts: Iterable[object], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, field: text}).encode() + b"\n" for text in texts)


def parquet(texts: Iterable[object]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": pyarrow.array(list(texts))})
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def read(*patterns: str, on_error: str = "stop", field: str = "text") -> list[Document]:
    return list(read_texts(patterns, field, DocumentErrors(on_error)))  # type: ignore[arg-type]


def write(name: str, content: bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("kind", "content", "place"), [("jsonl", jsonl, ""), ("parquet", parquet, "row ")]
)
def test_a_line_or_a_row_is_a_document(
    kind: str, content: Callable[[list[str]], bytes], place: str, suffix: str
) -> None:
    name = f"a.{kind}{suffix}"
    write(name, COMPRESS[suffix](content(TEXTS)))
    expected = [Document(f"{name}:{place}{n}", text) for n, text in enumerate(TEXTS, 1)]
    assert read(name) == expected


@pytest.mark.parametrize("suffix", COMPRESS)
def test_txt_is_one_document(suffix: str) -> None:
    write(f"a.txt{suffix}", COMPRESS[suffix](b"one\n\ntwo\r\n"))
    assert read(f"a.txt{suffix}") == [Document(f"a.txt{suffix}", "one\n\ntwo\r\n")]


def test_folders_and_globs_come_sorted_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        write(f"texts/{name}", name.encode())
    write("texts/readme.md", b"no text")
    names = ["texts/a.txt", "texts/b.txt", "texts/deep/c.txt"]
    assert [document.name for document in read("texts")] == names
    assert "1 files of other kinds are left alone" in capsys.readouterr().err
    assert [document.name for document in read("texts/*.txt", "texts/**/*.txt")] == names


def test_a_file_of_several_names_comes_once_by_the_first(here: Path) -> None:
    write("texts/a.txt", b"a")
    patterns = ("texts", str(here / "texts"), "texts/../texts/a.txt")
    assert read(*patterns) == [Document("texts/a.txt", "a")]


def test_links_to_one_file_are_files_of_their_own() -> None:
    write("cache", b"a")
    for name in ("a.txt", "b.txt"):
        Path(name).symlink_to("cache")
    assert read("*.txt") == [Document("a.txt", "a"), Document("b.txt", "a")]


def test_a_field_of_another_name() -> None:
    write("a.jsonl", jsonl(TEXTS, "content"))
    assert [document.text for document in read("a.jsonl", field="content")] == TEXTS


def test_paths_are_found_in_the_project_when_run_elsewhere(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("corpus/a.jsonl", jsonl(TEXTS))
    at_home = read("corpus/*.jsonl")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(here))
    assert read("corpus/*.jsonl") == at_home
    write("corpus/a.jsonl", jsonl(["the copy's own"]))
    assert read("corpus/*.jsonl")[0].text == "the copy's own"


def test_blank_lines_are_nothing() -> None:
    lines = jsonl(TEXTS).splitlines(keepends=True)
    write("a.jsonl", b"\n" + lines[0] + b" \t\r\n\n" + lines[1] + lines[2] + b"\n  \n")
    found = read("a.jsonl")
    assert [document.text for document in found] == TEXTS
    assert [document.name for document in found] == ["a.jsonl:2", "a.jsonl:5", "a.jsonl:6"]


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    write("a.jsonl", b"\xef\xbb\xbf" + jsonl(TEXTS))
    write("a.txt", b"\xef\xbb\xbftext \xef\xbb\xbf end")
    assert [document.text for document in read("a.jsonl")] == TEXTS
    assert read("a.txt") == [Document("a.txt", "text \ufeff end")]


def test_suffixes_in_capitals_are_known() -> None:
    write("A.JSONL", jsonl(TEXTS))
    write("B.TXT.GZ", gzip.compress(b"text"))
    assert len(read(".")) == 4


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write("texts/a.txt", b"a")
    write("../elsewhere/b.txt", b"b")
    Path("texts/linked").symlink_to("../../elsewhere")
    assert [document.name for document in read("texts")] == ["texts/a.txt", "texts/linked/b.txt"]


def test_a_folder_that_holds_itself_is_one_message() -> None:
    write("texts/a.txt", b"a")
    Path("texts/again").symlink_to("../texts")
    with pytest.raises(ParamGolfError, match="a folder holds itself, by a link\n  where: texts/ag"):
        read("texts")


@pytest.mark.parametrize("pattern", ["texts", "texts/b.txt", "texts/*.txt"])
def test_a_link_that_leads_nowhere_is_named(pattern: str) -> None:
    write("texts/a.txt", b"a")
    Path("texts/b.txt").symlink_to("nowhere")
    with pytest.raises(ParamGolfError, match=r"a link leads nowhere\n  where: texts/b\.txt"):
        read(pattern)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["texts", "texts/a.txt"])
def test_what_may_not_be_read_is_said_so(name: str) -> None:
    write("texts/a.txt", b"a")
    Path(name).chmod(0)
    try:
        with pytest.raises(ParamGolfError, match=r"cannot be read(.|\n)*Permission denied"):
            read("texts")
    finally:
        Path(name).chmod(0o700)


def test_an_error_of_the_system_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.txt", b"a")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("paramgolf.data.source.text_files.open_stream", refuse)
    with pytest.raises(ParamGolfError, match=r"cannot be read(.|\n)*Permission denied"):
        read("a.txt")


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    Path(os.fsdecode(b"caf\xe9.txt")).write_bytes(b"text")
    documents = read(".")
    assert documents == [Document("caf\\xe9.txt", "text")]
    write_documents(tmp_path / "out.zst", documents)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"text": bad}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "\xff"}', "bad UTF-8"),
        (b'{"text": "\\ud800"}', "bad UTF-8"),  # half a surrogate pair
        (b'{"text": " \\n"}', "empty document"),
        (b'{"txt": "x"}', "missing field"),
    ],
)
def test_a_fault_stops_the_run_or_is_counted(line: bytes, kind: str) -> None:
    write("a.jsonl", b"\n".join([b'{"text": "good"}', line, b'{"text": "last"}', b""]))
    with pytest.raises(ParamGolfError, match=f"cannot read a document: {kind}\n  where: a.jsonl:2"):
        read("a.jsonl")
    faults = DocumentErrors("skip")
    found = [document.text for document in read_texts(["a.jsonl"], "text", faults)]
    assert found == ["good", "last"]
    assert faults.skipped == {kind: 1}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"[1]", "a list, no object"),
        (b"3", "a int, no object"),
        (b"null", "a NoneType, no object"),
        (b'{"text": 5}', "field `text`: int"),
        (b'{"text": null}', "field `text`: none"),
        (b'{"id": 1, "content": "x"}', "field `text`: none; fields: id, content"),
    ],
)
def test_a_line_without_text_is_a_missing_field(line: bytes, found: str) -> None:
    write("a.jsonl", line + b"\n")
    with pytest.raises(ParamGolfError, match=f"missing field(.|\n)*{found}(.|\n)*data.text_field"):
        read("a.jsonl")


def test_a_text_in_another_encoding_is_told_to_be_converted() -> None:
    write("a.txt", "café".encode("latin-1"))
    with pytest.raises(ParamGolfError, match=r"bad UTF-8(.|\n)*iconv(.|\n)*data.on_error to skip"):
        read("a.txt")


@pytest.mark.parametrize(
    "kind", [pyarrow.time64("ns"), pyarrow.int64(), pyarrow.list_(pyarrow.string())]
)
def test_a_column_that_holds_no_text_is_named(kind: pyarrow.DataType) -> None:
    table = pyarrow.table({"text": pyarrow.array([None], kind)})
    pyarrow.parquet.write_table(table, "a.parquet")
    with pytest.raises(ParamGolfError, match="the column `text` does not hold text"):
        read("a.parquet", on_error="skip")


NOT_UTF8 = pyarrow.array([b"good", b"\xff", b"last"])


@pytest.mark.parametrize(
    "column",
    [
        NOT_UTF8,
        NOT_UTF8.view(pyarrow.string()),
        NOT_UTF8.cast(pyarrow.large_binary()).view(pyarrow.large_string()),
        NOT_UTF8.view(pyarrow.string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type).partition("<")[0],
)
def test_bad_utf8_in_parquet_is_named_by_row_and_column(column: pyarrow.Array) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), "a.parquet")
    expected = r"bad UTF-8\n  where: a.parquet:row 2\n  found: column `text`: 'utf-8' codec"
    with pytest.raises(ParamGolfError, match=expected):
        read("a.parquet")
    assert [document.text for document in read("a.parquet", on_error="skip")] == ["good", "last"]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_cut_compressed_file_is_damaged_not_short(suffix: str) -> None:
    whole = COMPRESS[suffix](jsonl(f"{index} {index * index}" for index in range(20_000)))
    write(f"a.jsonl{suffix}", whole[: len(whole) // 2])
    with pytest.raises(ParamGolfError, match=f"a file is damaged\n  where: a.jsonl{suffix}"):
        read(f"a.jsonl{suffix}", on_error="skip")


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_streams_that_follow_each_other_are_all_read(suffix: str) -> None:
    stream = COMPRESS[suffix](jsonl(TEXTS))
    write(f"a.jsonl{suffix}", stream + stream + stream)
    assert len(read(f"a.jsonl{suffix}")) == 9


@pytest.mark.parametrize(("suffix", "zeros"), [(".gz", 5), (".xz", 4), (".xz", 3 << 20)])
def test_padding_between_streams_is_passed(suffix: str, zeros: int) -> None:
    stream = COMPRESS[suffix](jsonl(TEXTS))
    write(f"a.jsonl{suffix}", stream + bytes(zeros) + stream + bytes(zeros))
    assert len(read(f"a.jsonl{suffix}")) == 6


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["junk", "one byte of junk", "a cut stream", "a damaged stream"])
def test_what_follows_a_stream_and_is_none_is_damage(suffix: str, kind: str) -> None:
    stream = COMPRESS[suffix](jsonl(f"{index} {index * index}" for index in range(2000)))
    behind = {
        "junk": b"junk behind the stream",
        "one byte of junk": b"j",
        "a cut stream": stream[:-7],
        "a damaged stream": b"\0\0\0\0" + stream[4:],
    }
    write(f"a.jsonl{suffix}", stream + behind[kind])
    with pytest.raises(ParamGolfError, match=f"a file is damaged\n  where: a.jsonl{suffix}"):
        read(f"a.jsonl{suffix}", on_error="skip")


def test_xz_padding_of_another_length_is_damage() -> None:
    write("a.jsonl.xz", COMPRESS[".xz"](jsonl(TEXTS)) + bytes(3))
    with pytest.raises(ParamGolfError, match="3 zeros behind a stream, not a multiple of 4"):
        read("a.jsonl.xz")


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_file_that_expands_beyond_measure_is_refused(
    suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FREE_BYTES", 1 << 20)
    write(f"a.txt{suffix}", COMPRESS[suffix](bytes(8 << 20)))
    monkeypatch.setattr(streams, "MAX_EXPANSION", 100)
    with pytest.raises(ParamGolfError, match=r"expands beyond measure(.|\n)*100 times its size"):
        read(f"a.txt{suffix}")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.xz", "a.txt.zst", "a.parquet"])
def test_a_file_of_another_content_is_damaged(name: str) -> None:
    write(name, b"this is not what the name says")
    with pytest.raises(ParamGolfError, match="a file is damaged"):
        read(name)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("none.jsonl", "there is no such file\n  where: none.jsonl"),
        ("none/*.jsonl", "no file matches a pattern\n  where: none/*.jsonl\n  found: nothing in /"),
        ("/none/*.txt", "no file matches a pattern\n  where: /none/*.txt\n  what to do: mend"),
        ("a.csv", "a file of an unknown kind"),
        ("*.csv", "a file of an unknown kind"),
        ("empty", "a folder holds no text"),
    ],
)
def test_what_is_not_text_is_refused(pattern: str, expected: str) -> None:
    write("a.csv", b"1,2")
    Path("empty").mkdir()
    with pytest.raises(ParamGolfError, match=expected.replace("*", r"\*")):
        read(pattern)


def test_a_name_in_parquet_that_is_not_utf8_is_damage() -> None:
    write("a.parquet", parquet(TEXTS).replace(b"\x04text", b"\x04t\xffxt"))
    with pytest.raises(ParamGolfError, match=r"a file is damaged\n  where: a\.parquet"):
        read("a.parquet", on_error="skip")


@pytest.mark.parametrize("kind", [pyarrow.ArrowIndexError, pyarrow.ArrowNotImplementedError])
def test_whatever_pyarrow_makes_of_a_damaged_footer_is_damage(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise kind("Integers with less than 8 bits not implemented")

    write("a.parquet", parquet(TEXTS))
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    with pytest.raises(ParamGolfError, match=r"a file is damaged(.|\n)*found: Integers"):
        read("a.parquet", on_error="skip")


def test_two_parquet_columns_of_one_name_are_refused() -> None:
    column = pyarrow.array(TEXTS)
    table = pyarrow.Table.from_arrays([column, column], ["text", "text"])
    pyarrow.parquet.write_table(table, "a.parquet")
    with pytest.raises(ParamGolfError, match=r"more than one column `text`(.|\n)*text, text"):
        read("a.parquet")


def test_a_parquet_column_that_is_not_there_is_named() -> None:
    write("a.parquet", parquet(TEXTS))
    with pytest.raises(ParamGolfError, match=r"no column `body`(.|\n)*columns text"):
        read("a.parquet", field="body")
