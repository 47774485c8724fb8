"""What is wrong with the evaluators' parameters is said before any work."""

import functools
from dataclasses import replace

import pytest
from schema_case import faults_of
from scoring_case import ADAPTER, DOCUMENTS, SLIDING, make_config, make_lora_config, make_sliding

by_documents = functools.partial(make_lora_config, "lora_documents")


def test_good_parameters_have_no_faults():
    assert faults_of(make_config()) == []
    assert faults_of(SLIDING) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (make_config(stride=5), "stride` must divide `window`"),
        (make_config(stride=17), "stride` must lie in 1..window"),
        (make_config(window=0), "window` must be at least 1"),
        (make_config(chunk_tokens=40), "chunk_tokens` must be a multiple of `window`"),
        (make_config(chunk_tokens=0), "chunk_tokens` must be at least 1"),
        (make_config(epochs=0), "epochs` must be at least 1"),
        (make_config(max_tokens=0), "max_tokens` must be at least 1"),
        (make_config(momentum=1.0), "`momentum` must be at least 0 and below 1"),
        (make_config(lr=-0.1), "lr` must be at least 0"),
        (make_sliding(stride=17), "stride` must lie in 1..window"),
        (make_sliding(batch_windows=0), "batch_windows` must be at least 1"),
        (make_sliding(max_tokens=0), "max_tokens` must be at least 1"),
        (replace(ADAPTER, targets=()), "at least one projection"),
        (replace(ADAPTER, targets=("q", "q")), "none twice"),
        (replace(ADAPTER, rank=0), "rank` must be at least 1"),
        (replace(ADAPTER, eps=0.0), "`eps` must be above 0"),
        (replace(ADAPTER, beta2=1.0), "beta2` must be at least 0 and below 1"),
        (replace(DOCUMENTS, chains=0), "chains` must be at least 1"),
        (replace(DOCUMENTS, phases=3, prefix_documents=2), "at least `phases`"),
        (replace(DOCUMENTS, order="stream", warm_a=True), "warm_a` needs `order: length`"),
        (
            replace(DOCUMENTS, order="stream", last_window="full"),
            "last_window` needs `order: length`",
        ),
        (by_documents(documents={"chunk_tokens": 17}), "at most `window` tokens"),
        (by_documents(documents={"idle_decay": True}), "`idle_decay` needs `adapter.beta1` 0"),
    ],
)
def test_a_fault_is_named(config, message):
    (fault,) = faults_of(config)
    assert message in fault


def test_two_chunks_fit_the_window_where_lower_layers_are_kept():
    documents = {"chunk_tokens": 9}
    assert not faults_of(by_documents(documents=documents))
    (fault,) = faults_of(by_documents({"last_layers": 2}, documents))
    assert "two chunks in a window" in fault


def test_sequences_of_a_phase_need_not_fill_its_chunk():
    assert not faults_of(by_documents(chunk_tokens=40))
    (fault,) = faults_of(by_documents(chunk_tokens=15))
    assert "at least `window`" in fault
