"""Every violation that was ever planted in a record, or could be, and what catches it, by name.

A row is the violation, what does it, and what is said of it. The catchers:
ledger   the evaluation stops, as the ledger refuses what it is told
referee  `paramgolf audit-score` fails a rule of a script that does it
probe    the evaluator measures it as it runs, and `verify` fails the rule
verify   `verify` fails the rule by the stages' metrics
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import scorers
import torch
from scorers import VOCAB
from scoring_case import (
    ALONE,
    SLIDING,
    STRIDE,
    WINDOW,
    echoing_text,
    evaluated,
    make_config,
    make_lora_config,
    make_mixture,
    make_network,
    make_sliding,
    make_text,
)

from paramgolf.model import embedding
from paramgolf.model.network import Network
from paramgolf.scoring import mixture, sliding
from paramgolf.scoring.ledger import LedgerError
from paramgolf.scoring.probe import Probe
from paramgolf.scoring.score_audit import AuditSettings, ScorerScript, audit_scores
from paramgolf.scoring.scorer import Scorer
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import Lesson, SgdTrainer
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import ScoringWindows, sliding_windows, split_chunks
from paramgolf.verify.rules import RULES, Evidence

Patch = pytest.MonkeyPatch
Caught = Callable[[Patch], set[str]]


def ledger(plant: Callable[[Patch], None]) -> Caught:
    """Return what the ledger says when `plant` is run."""

    def catch(patch: Patch) -> set[str]:
        with pytest.raises(LedgerError) as caught:
            plant(patch)
        return {str(caught.value).splitlines()[0]}

    return catch


def audited(scorer: scorers.Counts, *, isolated: bool = False) -> Caught:
    """Return the rules that the audit finds broken."""

    def catch(_: Patch) -> set[str]:
        settings = AuditSettings(8, 1e-3, 0, isolated)
        findings = audit_scores(ScorerScript(scorer), echoing_text(200), VOCAB, settings)
        return {finding.rule for finding in findings if finding.passed is False}

    return catch


def verify(**metrics: dict) -> Caught:
    """Return the rules that are broken by these metrics, of those that read nothing else."""

    def catch(_: Patch) -> set[str]:
        found = SimpleNamespace(get=lambda stage, key: metrics[stage][key])
        limits = SimpleNamespace(full_validation=True)
        run = Evidence(limits, metrics=found, stages={}, targets=9, sizes={}, unbound=())
        broken = set()
        for rule in ("R5", "R6", "R7", "R10"):
            try:
                verdict = RULES[rule][1](run)
            except KeyError:
                continue
            broken |= {rule} if verdict.passed is False else set()
        return broken

    return catch


def probe(
    plant: Callable[[Patch], None] = lambda _: None, make: Callable[[], Network] = make_network
) -> Caught:
    """Return the rules that are broken by what an evaluation measures of itself."""

    def catch(patch: Patch) -> set[str]:
        plant(patch)
        text, session, seen = echoing_text(400), Session(ALONE), Probe()
        patch.setattr(session, "probe", seen)
        config = make_sliding("ngram")
        evaluation = evaluated(make(), text, config, session)
        metrics = {"probe": seen.found, "val_loss": float(evaluation.nats.mean())}
        metrics["ledger"] = evaluation.close()
        return verify(eval_sliding=metrics, eval_ttt=metrics)(patch)

    return catch


# --- what is planted in this project's own evaluators


class Stand:
    """The parts of the sgd mode, to be put together wrongly."""

    def __init__(self) -> None:
        text, network, config = make_text(170), make_network(), make_config()
        self.scorer = Scorer(network, text, Session(ALONE), length=WINDOW, rows=5)
        windows = sliding_windows(len(text), WINDOW, STRIDE)
        self.chunks = list(split_chunks(windows, config.chunk_tokens))
        self.trainer = SgdTrainer(self.scorer, config)

    def learn(self, chunk: int) -> None:
        self.trainer.train(Lesson.of_targets(self.chunks[chunk].targets), progress=0.0)

    def score(self, chunk: int) -> None:
        self.scorer.run(self.chunks[chunk])


def learns_first(_: Patch) -> None:
    stand = Stand()
    stand.learn(0)


def learns_ahead(_: Patch) -> None:
    stand = Stand()
    stand.score(0)
    stand.learn(1)


def last_epoch(_: Patch) -> None:
    stand = Stand()
    stand.score(0)
    stand.learn(0)
    stand.score(0)


def best_of_two(_: Patch) -> None:
    stand = Stand()
    for chunk in range(len(stand.chunks)):
        stand.score(chunk)
    stand.scorer.ledger.score(0, np.zeros(10), np.ones(10))


def warms_up_on_text(_: Patch) -> None:
    stand = Stand()
    stand.trainer.train(Lesson.of_targets(range(48)), progress=0.0)


def wrong_plan(change: Callable) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        plan = sliding_windows
        patch.setattr(sliding, "sliding_windows", lambda *a: change(plan(*a)))
        evaluated(make_network(), make_text(70), SLIDING).close()

    return plant


def one_target_more(windows: ScoringWindows) -> ScoringWindows:
    """Let each window score what the one before has scored last."""
    first = np.maximum(windows.first - 1, 0)
    return dataclasses.replace(windows, first=first)


def hints_in_file_order(_: Patch) -> None:
    text = echoing_text(200)
    mixing = make_mixture("tilt")
    documents = {"phases": 2, "prefix_documents": 6, "batch_documents": 1}
    changes = {"documents": documents, "mixture": mixing, "chunk_tokens": 16, "epochs": 1}
    config = make_lora_config("lora_documents", **changes)
    found = evaluated(make_network(), text, config)
    found.close()  # legal so far: the counts came in the order of the scores
    mixture.build_mixture(text, mixing, found, padding=WINDOW, device=ALONE.device)
    found.close()


def looks_target_up(patch: Patch) -> None:
    mixed = mixture.Mixture.mixed
    patch.setattr(mixture.Mixture, "mixed", lambda *a: torch.minimum(a[1], mixed(*a)))


def counts_target(patch: Patch) -> None:
    count = mixture.past_counts

    def wrong(tokens, context, **options):
        past = count(tokens, context, **options)
        return past._replace(same=past.same + 1, total=past.total + 1)

    patch.setattr(mixture, "past_counts", wrong)


def sees_ahead() -> Network:
    network = make_network()
    attend = network.backend.attend

    def ahead(q, k, v, segments=None):
        return attend(q, k, v, segments) + 0.1 * q.mean(1, keepdim=True)

    return network.with_backend(dataclasses.replace(network.backend, attend=ahead))


TWICE = "the ledger refuses: a target is scored a second time"
UNSCORED = "the ledger refuses: an update would learn from targets not scored yet"
MISSING = "the ledger refuses: targets were never scored"
AHEAD = "the ledger refuses: hints come from text that is not scored yet, in their order"
BYTES = echoing_text(200).byte_counts.astype(int)
SPACE = np.where(np.arange(200) % 5 == 0, BYTES + 1, BYTES)
FALLBACK = np.where(np.arange(200) == 50, 3, BYTES)
CLEAN = {"documents_train": 9, "documents_val": 9, "near_copies": 0, "train_val_overlap": 0}

VIOLATIONS: list[tuple[str, Caught, str]] = [
    ("SLOT", audited(scorers.Slot()), "C1"),
    ("adaptation before scoring", ledger(learns_first), UNSCORED),
    ("adaptation before scoring", audited(scorers.LearnsFirst()), "C1"),
    ("adaptation on the next chunk", ledger(learns_ahead), UNSCORED),
    ("score of the last epoch", ledger(last_epoch), TWICE),
    ("score of the last epoch", audited(scorers.LastEpoch()), "C1"),
    ("rescoring with min", ledger(best_of_two), TWICE),
    ("rescoring with min", audited(scorers.BestOfTwo()), "C1"),
    ("hashed n-gram cache", audited(scorers.HashedCache()), "C2"),
    ("hashed n-gram cache, hidden", audited(scorers.HiddenCache()), "C3"),
    ("n-gram of the target alone", probe(looks_target_up), "R7"),
    ("n-gram that counts the target", probe(counts_target), "R7"),
    ("attention to later text", probe(make=sees_ahead), "R6"),
    ("byte-level mixture", audited(scorers.ByteMixture()), "C2"),
    ("double leading-space byte", audited(scorers.CountsBytes(SPACE)), "bytes"),
    ("byte fallback counted 3", audited(scorers.CountsBytes(FALLBACK)), "bytes"),
    ("smear across documents", audited(scorers.Smears(), isolated=True), "documents"),
    ("tail scored twice", ledger(wrong_plan(lambda w: w[np.r_[0 : len(w), -1]])), TWICE),
    ("tail scored twice", audited(scorers.TailTwice()), "coverage"),
    ("windows that score a target twice", ledger(wrong_plan(one_target_more)), TWICE),
    ("dropped tail", ledger(wrong_plan(lambda w: w[:-1])), MISSING),
    ("dropped tail", audited(scorers.TailDropped()), "coverage"),
    (
        "part of the validation text",
        verify(eval_sliding={"tokens_scored": 8}, eval_ttt={"tokens_scored": 9}),
        "R10",
    ),
    (
        "validation documents in training",
        verify(audit={**CLEAN, "train_val_overlap": 1}, calibrate={"source": "train"}),
        "R5",
    ),
    ("calibration on validation", verify(audit=CLEAN, calibrate={"source": "validation"}), "R5"),
    ("hints in file order, adaptation by length", ledger(hints_in_file_order), AHEAD),
    ("hints in file order, adaptation by length", audited(scorers.HintsInFileOrder()), "C1"),
    ("warm-up on validation tokens", ledger(warms_up_on_text), UNSCORED),
    ("warm-up on validation tokens", audited(scorers.WarmedUp()), "C1"),
    ("counts kept from an evaluation before", audited(scorers.KeepsCounts()), "C4"),
]


@pytest.mark.parametrize(
    ("catch", "verdict"), [v[1:] for v in VIOLATIONS], ids=[v[0] for v in VIOLATIONS]
)
def test_each_planted_violation_is_caught(monkeypatch, catch, verdict):
    assert verdict in catch(monkeypatch)


def test_without_a_violation_nothing_is_said(monkeypatch):
    metrics = {"audit": CLEAN, "calibrate": {"source": "train"}}
    assert verify(**metrics)(monkeypatch) == set()
    assert probe()(monkeypatch) == set()
    assert audited(scorers.Counts())(monkeypatch) == set()
    assert audited(scorers.CountsBytes(BYTES))(monkeypatch) == set()
    assert audited(scorers.Isolated(), isolated=True)(monkeypatch) == set()


@pytest.mark.parametrize("smear", ["channel", "token"])
def test_a_smear_across_documents_shows_in_another_document(monkeypatch, smear):
    """The network masks BOS; without the mask a document feels the one before it."""
    tokens = make_text(59).tokens
    tokens[::6] = 1  # documents of 6 tokens, which share windows
    network, at = make_network(smear=smear), 6
    other = tokens.copy()
    other[at - 1] = 2 + (other[at - 1] - 1) % (VOCAB - 2)

    def later() -> list[np.ndarray]:
        config = make_sliding(mode="documents")
        texts = [Text(some, np.ones(59, dtype=np.uint16), 1) for some in (tokens, other)]
        nats = [evaluated(network, t, config).nats for t in texts]
        return [n[at:] for n in nats]

    first, second = later()
    assert (first == second).all()
    embed = embedding.embed
    monkeypatch.setattr(
        "paramgolf.model.network.embed", lambda *a, bos, smear: embed(*a, bos=-1, smear=smear)
    )
    first, second = later()
    assert (first != second).any()
