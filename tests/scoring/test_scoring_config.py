"""What is wrong with the evaluators' parameters is said before any work."""

from dataclasses import replace

import pytest
from schema_case import faults_of
from scoring_case import ADAPTER, DOCUMENTS, SLIDING, make_config, make_lora_config, make_sliding


def test_good_parameters_have_no_faults():
    assert faults_of(make_config()) == []
    assert faults_of(SLIDING) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 5}, "stride` must divide `window`"),
        ({"stride": 17}, "stride` must lie in 1..window"),
        ({"window": 0}, "window` must be at least 1"),
        ({"chunk_tokens": 40}, "chunk_tokens` must be a multiple of `window`"),
        ({"chunk_tokens": 0}, "must be at least 1"),
        ({"epochs": 0}, "must be at least 1"),
        ({"max_tokens": 0}, "max_tokens` must be at least 1"),
        ({"momentum": 1.0}, "`momentum` must be at least 0 and below 1"),
        ({"lr": -0.1}, "must be at least 0"),
    ],
)
def test_faults_of_adaptation(changes, message):
    (fault,) = faults_of(make_config(**changes))
    assert message in fault


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 17}, "1..window"),
        ({"batch_windows": 0}, "at least 1"),
        ({"max_tokens": 0}, "at least 1"),
    ],
)
def test_faults_of_sliding(changes, message):
    (fault,) = faults_of(make_sliding(**changes))
    assert message in fault


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ()}, "at least one projection"),
        ({"targets": ("q", "q")}, "none twice"),
        ({"rank": 0}, "rank` must be at least 1"),
        ({"eps": 0.0}, "`eps` must be above 0"),
        ({"beta2": 1.0}, "must be at least 0 and below 1"),
    ],
)
def test_faults_of_adapters(changes, message):
    (fault,) = faults_of(replace(ADAPTER, **changes))
    assert message in fault


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chains": 0}, "at least 1"),
        ({"phases": 3, "prefix_documents": 2}, "at least `phases`"),
        ({"order": "stream", "warm_a": True}, "warm_a` needs `order: length`"),
        ({"order": "stream", "last_window": "full"}, "last_window` needs `order: length`"),
    ],
)
def test_faults_of_documents(changes, message):
    (fault,) = faults_of(replace(DOCUMENTS, **changes))
    assert message in fault


def test_chunks_of_documents_fit_the_window():
    (fault,) = faults_of(make_lora_config("lora_documents", documents={"chunk_tokens": 17}))
    assert "at most `window` tokens" in fault


def test_two_chunks_fit_the_window_where_lower_layers_are_kept():
    documents = {"chunk_tokens": 9}
    assert not faults_of(make_lora_config("lora_documents", documents=documents))
    (fault,) = faults_of(make_lora_config("lora_documents", {"last_layers": 2}, documents))
    assert "two chunks in a window" in fault


def test_sequences_of_a_phase_need_not_fill_its_chunk():
    assert not faults_of(make_lora_config("lora_documents", chunk_tokens=40))
    (fault,) = faults_of(make_lora_config("lora_documents", chunk_tokens=15))
    assert "at least `window`" in fault


def test_idle_rows_with_momentum_are_refused():
    (fault,) = faults_of(make_lora_config("lora_documents", documents={"idle_decay": True}))
    assert "`idle_decay` needs `adapter.beta1` 0" in fault
