"""What the laboratory copies to a second place."""

from __future__ import annotations

from lab_case import FakeProcesses, plan_of, work

from paramgolf.mirror import Mirror


def test_results_and_logs_of_a_plan_are_copied(tokens, tmp_path):
    mirror = Mirror(str(tmp_path / "there"), "--mirror")
    work(plan_of(tokens), tmp_path / "here", FakeProcesses(), mirror=mirror)
    for name in ("results.json", "results.md"):
        copied = (tmp_path / "there" / name).read_text()
        assert copied == (tmp_path / "here" / name).read_text()
    assert (tmp_path / "there/no-skips-seed-2/train.log").read_text() == "train\n"
