"""The ledger: what it proves of a legal evaluation, and each illegal one refused by name."""

import numpy as np
import pytest
from scoring_case import ALONE

from paramgolf.errors import ParamGolfError
from paramgolf.scoring.ledger import Ledger, LedgerError, expand_ranges, find_ranges


def entry(ledger: Ledger, start: int, stop: int, nats: float = 1.0) -> None:
    ledger.score(start, np.full(stop - start, nats), np.ones(stop - start))


def update(ledger: Ledger, start: int, stop: int) -> None:
    ledger.update(np.array([start]), np.array([stop]))


def test_a_legal_evaluation_is_recorded_and_proven():
    ledger = Ledger(10)
    entry(ledger, 0, 4)
    update(ledger, 0, 4)
    update(ledger, 0, 4)
    entry(ledger, 4, 8)
    update(ledger, 4, 6)
    entry(ledger, 8, 10)
    verdict = ledger.close()
    expected = {"scored_once": True, "score_first": True, "targets": 10, "entries": 3}
    assert verdict == {**expected, "updates": 3, "targets_trained": 6}
    assert ledger.entry.tolist() == [1] * 4 + [2] * 4 + [3] * 2
    assert np.array(ledger.weights)[ledger.entry].tolist() == [0] * 4 + [2] * 4 + [3] * 2


def test_adaptation_before_scoring_is_refused():
    ledger = Ledger(10)
    entry(ledger, 0, 4)
    with pytest.raises(
        LedgerError, match=r"learn from targets not scored yet(.|\n)*first 4, the last 7"
    ):
        update(ledger, 0, 8)
    assert ledger.updates == []


def test_a_second_score_is_refused_even_if_it_is_better():
    ledger = Ledger(10)
    entry(ledger, 0, 10, 2.0)
    with pytest.raises(LedgerError, match=r"scored a second time(.|\n)*1 targets, the first 9"):
        entry(ledger, 9, 10, 1.0)
    assert (ledger.nats == 2.0).all()


def test_two_scores_within_one_entry_are_refused():
    with pytest.raises(LedgerError, match=r"scored a second time(.|\n)*1 targets, the first 6"):
        Ledger(9).score(5, np.ones(3), np.array([1, 2, 1]))


def test_a_dropped_tail_is_refused():
    ledger = Ledger(10)
    entry(ledger, 0, 8)
    with pytest.raises(LedgerError, match=r"never scored(.|\n)*2 targets, the first 8, the last 9"):
        ledger.close()


def test_targets_left_out_within_an_entry_count_as_missing():
    ledger = Ledger(3)
    ledger.score(0, np.ones(3), np.array([1, 0, 1]))
    with pytest.raises(LedgerError, match=r"never scored(.|\n)*first 1, the last 1"):
        ledger.close()


@pytest.mark.parametrize("start", [-1, 8])
def test_targets_outside_of_the_text_are_refused(start):
    with pytest.raises(LedgerError, match="outside of the text"):
        entry(Ledger(10), start, start + 4)


@pytest.mark.parametrize("nats", [np.nan, np.inf, -0.5])
def test_a_score_that_no_probability_has_is_refused(nats):
    with pytest.raises(LedgerError, match=r"not the -ln of a probability(.|\n)*first 2"):
        entry(Ledger(4), 2, 3, nats)


def test_a_record_that_was_tampered_with_does_not_pass_as_score_first():
    ledger = Ledger(4)
    entry(ledger, 0, 2)
    update(ledger, 0, 2)
    entry(ledger, 2, 4)
    ledger.updates[0].stop[0] = 4
    assert ledger.close()["score_first"] is False


def test_a_refusal_is_an_error_for_users():
    assert issubclass(LedgerError, ParamGolfError)


def test_scores_at_scattered_targets():
    ledger = Ledger(6)
    ledger.score_at(np.array([4, 0]), np.array([2.0, 1.0]))
    assert ledger.nats.tolist() == [1, 0, 0, 0, 2, 0]
    for again in ([1, 1], [1, 4]):
        with pytest.raises(LedgerError, match="scored a second time"):
            ledger.score_at(np.array(again), np.ones(2))
    with pytest.raises(LedgerError, match="outside of the text"):
        ledger.score_at(np.array([6]), np.ones(1))
    assert ledger.nats.sum() == 3


def test_an_update_of_several_ranges_is_refused_for_one_of_them():
    ledger = Ledger(10)
    entry(ledger, 0, 4)
    entry(ledger, 6, 8)
    ledger.update(np.array([6, 0]), np.array([8, 2]))
    with pytest.raises(LedgerError, match=r"not scored yet(.|\n)*1 targets, the first 4"):
        ledger.update(np.array([6, 2]), np.array([8, 5]))
    assert len(ledger.updates) == 1


def test_a_merge_with_nobody_changes_nothing():
    ledger = Ledger(4)
    entry(ledger, 0, 4)
    ledger.update(np.array([0]), np.array([2]), own=True)
    before = ledger.close()
    ledger.merge(ALONE)
    ledger.merge(ALONE)
    assert ledger.close() == before


def test_ranges_and_their_members():
    start, stop = np.array([3, 9, 0]), np.array([5, 9, 3])
    members = expand_ranges(start, stop)
    assert members.tolist() == [3, 4, 0, 1, 2]
    assert [x.tolist() for x in find_ranges(members)] == [[3, 0], [5, 3]]
    assert [x.tolist() for x in find_ranges(np.array([7]))] == [[7], [8]]
