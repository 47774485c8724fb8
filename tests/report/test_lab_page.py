"""The page of a plan of the laboratory, from results that were made up."""

from __future__ import annotations

import pytest
from page_case import VARIANTS, lab_content
from page_check import outside_references, text_of

from paramgolf.experiments.lab.summary import summarize
from paramgolf.report.lab import render_lab_page


@pytest.fixture
def content() -> dict:
    return lab_content()


def test_the_page_is_well_formed_and_shows_each_variant(content):
    page = render_lab_page(summarize(content, "tiny"))
    shown = text_of(page)
    assert outside_references(page) == []
    for text in (*VARIANTS, "400 s on a GPU", "-0.0117 ± 0.0072", "3 seeds show", "to see"):
        assert text in shown, text
    assert "Trained: wide & <odd> −0.0117" in shown


def test_the_page_knows_a_cpu(content):
    for stage in content["stages"].values():
        if "device" in stage["metrics"]:
            stage["metrics"]["device"] = "cpu"
    assert "400 s on a CPU" in text_of(render_lab_page(summarize(content, "tiny")))


def test_the_page_names_failures_repetition_and_mixed_commits(content):
    shown = text_of(render_lab_page(summarize(content, "tiny")))
    assert "broken, seed 1, failed: train: out of memory" in shown
    assert "base read the text 9.0 times" in shown
    assert "made by several commits: abc, def" in shown


def test_the_page_does_without_figures(content):
    content["stages"].clear()
    shown = text_of(render_lab_page(summarize(content, "tiny")))
    assert "tiny 3 variants" in shown
    assert "Differences from" not in shown
