"""A second place for results and logs: what is written there, and when."""

from __future__ import annotations

import fsspec
import pytest
from lab_case import FakeProcesses, plan_of, work

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.mirror import Mirror, file_name


def test_a_file_is_copied_whenever_it_has_changed(tmp_path):
    mirror = Mirror(str(tmp_path / "there"))
    log = tmp_path / "train.log"
    mirror.add("base/train.log", log)
    mirror.copy()  # not written yet
    log.write_text("one\n")
    mirror.copy()
    assert (tmp_path / "there/base/train.log").read_text() == "one\n"
    (tmp_path / "there/base/train.log").write_text("as it was")
    mirror.copy()
    assert (tmp_path / "there/base/train.log").read_text() == "as it was"
    log.write_text("one\ntwo\n")
    mirror.copy()
    assert (tmp_path / "there/base/train.log").read_text() == "one\ntwo\n"


def test_a_place_may_be_a_url(tmp_path):
    mirror = Mirror("memory://lab")
    (tmp_path / "a").write_text("text")
    mirror.add("x/a", tmp_path / "a")
    with mirror.working():
        pass
    assert fsspec.filesystem("memory").cat("/lab/x/a") == b"text"


def test_a_place_that_cannot_be_written_costs_a_message(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    mirror = Mirror(str(tmp_path / "file"))
    mirror.add("a", tmp_path / "file")
    mirror.copy()
    mirror.copy()
    assert capsys.readouterr().err.count("lab: no copy at") == 1


def test_a_kind_of_place_that_nobody_knows_is_refused():
    with pytest.raises(ParamGolfError, match="--mirror cannot be used"):
        Mirror("nowhere://x")


def test_results_and_logs_of_a_plan_are_copied(tokens, tmp_path):
    mirror = Mirror(str(tmp_path / "there"))
    work(plan_of(tokens), tmp_path / "here", FakeProcesses(), mirror=mirror)
    for name in ("results.json", "results.md"):
        copied = (tmp_path / "there" / name).read_text()
        assert copied == (tmp_path / "here" / name).read_text()
    assert (tmp_path / "there/no-skips-seed-2/train.log").read_text() == "train\n"


def test_a_label_becomes_the_name_of_a_folder():
    assert file_name("a/b, (two), seed 3") == "a-b-two-seed-3"
