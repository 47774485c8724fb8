"""paramgolf audit-score: honest scorers pass, the command's output, the example of its page."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scorers import VOCAB, ByLength, Counts, CountsBytes, HashedCache, Isolated, Masked
from scoring_case import echoing_text

from paramgolf.errors import ParamGolfError
from paramgolf.scoring.score_audit import AuditSettings, ScorerScript, audit_scores, load_script

PAGE = Path(__file__).parents[2] / "docs/audit-score.md"
TEXT = echoing_text(200)


def judge(scorer, text=TEXT, *, isolated=False):
    settings = AuditSettings(targets=8, tolerance=1e-3, seed=0, isolated=isolated)
    return {f.rule: f for f in audit_scores(ScorerScript(scorer), text, VOCAB, settings)}


@pytest.mark.parametrize("scorer", [Counts(), ByLength(), Isolated(), Masked(TEXT.tokens)])
def test_honest_scorers_keep_every_rule(scorer):
    findings = judge(scorer, isolated=isinstance(scorer, Isolated))
    assert findings.pop("bytes").passed is None
    assert {rule: f.passed for rule, f in findings.items()} == dict.fromkeys(findings, True)
    assert {"C1", "C2", "C3", "C4", "coverage"} <= set(findings)


def test_a_mask_whose_rest_is_not_renormalized_breaks_the_rule():
    class Leaking(Masked):
        def distributions(self, tokens, singles=None):
            plain = Counts.distributions(self, tokens, singles)
            for last, table in zip(tokens[:-1].tolist(), plain, strict=True):
                yield table * self._allowed[last]

    assert judge(Leaking(TEXT.tokens))["C2"].passed is False


def test_bytes_are_held_against_the_folder():
    right = TEXT.byte_counts.astype(int)
    assert judge(CountsBytes(right))["bytes"].passed is True
    wrong = right.copy()
    wrong[17] += 1
    finding = judge(CountsBytes(wrong))["bytes"]
    assert finding.passed is False
    assert "target 17" in finding.reason
    assert judge(CountsBytes(right[:-1]))["bytes"].passed is False


def test_scores_that_are_no_numbers_are_named():
    class Broken(Counts):
        def score(self, model, tokens):
            nats = super().score(model, tokens)
            nats[-1] = np.nan
            return nats

    findings = judge(Broken())
    assert findings["coverage"].passed is False
    assert findings["C1"].passed is None


@pytest.fixture
def project(tmp_path, tokens_folder, monkeypatch):
    """A folder with tokens and the example of the page as my_scorer.py."""
    assert tokens_folder == tmp_path / "data/tokens"
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_scorer.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_of_the_page_passes(project, command):
    lines = command("audit-score", "my_scorer.py", "--tokens", "600").splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["C1", "C2", "C3", "C4", "coverage", "bytes"]
    assert lines[-1] == "no rule is broken"


def test_counting_before_predicting_is_caught(project, command):
    source = (project / "my_scorer.py").read_text()
    (line,) = re.findall(r"        yield .*\n", source)
    learned = source.replace(line, "").replace(
        "        seen[token] += 1\n", "        seen[token] += 1\n" + line
    )
    (project / "cheat.py").write_text(learned)
    content = json.loads(command("audit-score", "cheat.py", "--tokens", "600", "--json", code=1))
    assert content["passed"] is False
    outcome = {rule["rule"]: rule["passed"] for rule in content["rules"]}
    assert outcome["C3"] is False


@pytest.mark.parametrize("order", [np.zeros(200, int), np.arange(3)])
def test_an_order_that_is_none_is_one_message(order):
    scorer = Counts()
    scorer.order = lambda _model, _tokens: order
    with pytest.raises(ParamGolfError, match="does not name each target once"):
        judge(scorer)


def test_one_document_alone_is_not_judged():
    tokens = np.where(TEXT.tokens == TEXT.bos, 2, TEXT.tokens)
    tokens[0] = TEXT.bos
    alone = dataclasses.replace(TEXT, tokens=tokens)
    assert judge(Counts(), alone, isolated=True)["documents"].passed is None


@pytest.mark.parametrize("words", ["--seed=-1", "--tolerance=nan", "--targets=0"])
def test_bad_numbers_are_one_message(words, command):
    assert "nothing to judge by" in command("audit-score", "scorer.py", words, code=2)


def test_a_text_of_one_target_is_one_message(project, monkeypatch, command):
    one = echoing_text(1)
    monkeypatch.setattr("paramgolf.scoring.text.load_text", lambda *_: one)
    assert "too little text" in command("audit-score", "my_scorer.py", code=2)


def test_tokens_that_are_not_there_are_named_before_the_script_looks_for_them(project, command):
    (project / "data/tokens").rename(project / "elsewhere")
    error = command("audit-score", "my_scorer.py", code=2)
    assert re.search(r"data/tokens(.|\n)*dvc repro retokenize", error)


def test_bad_scripts_are_one_message(project):
    with pytest.raises(ParamGolfError, match="there is no file"):
        load_script(project / "none.py")
    (project / "empty.py").write_text("def load():\n    return 1\n")
    with pytest.raises(ParamGolfError, match=r"lacks score, probabilities(.|\n)*audit-score\.md"):
        load_script(project / "empty.py")
    (project / "broken.py").write_text("\ndef load(\n")
    with pytest.raises(ParamGolfError, match=r"not Python(.|\n)*broken\.py:2(.|\n)*never closed"):
        load_script(project / "broken.py")


@pytest.mark.parametrize(
    ("source", "place", "found"),
    [
        ("raise SystemExit(3)", 1, r"SystemExit\(3\)"),
        ("def load(): return 1 / 0", 1, "ZeroDivisionError"),
        ("def load(): ...\ndef score(_, tokens): return np.mean(tokens)", 2, "NameError"),
        ("def load(): ...\ndef score(_, tokens): return 'low'", None, "ValueError"),
    ],
)
def test_a_script_that_fails_is_no_verdict(source, place, found, project, command):
    unused = "\ndef score(*_): ...\n" * ("score" not in source) + "\ndef probabilities(*_): ...\n"
    (project / "fails.py").write_text(source + unused)
    error = command("audit-score", "fails.py", code=2)
    where = "fails.py" if place is None else f"fails.py:{place}"
    assert re.search(rf"the script fails\n  where: {where}\n  found: {found}", error)


def test_the_same_seed_gives_the_same_verdict():
    assert judge(HashedCache()) == judge(HashedCache())
