"""The page of a plan of the laboratory, from results that were made up."""

from __future__ import annotations

import pytest
from page_check import outside_references, text_of

from paramgolf.experiments.lab.summary import summarize
from paramgolf.report.lab import render_lab_page

SEEDS = (1, 2, 3)
SCORES = {"base": (1.10, 1.12, 1.11), "wide & <odd>": (1.09, 1.105, 1.10), "broken": ()}


@pytest.fixture
def content() -> dict:
    """Results of three variants; the last one failed."""
    names = [*SCORES]
    variants = [
        {"name": n, "reason": "to see", "predicted": 0.001, "recipe": None, "changes": ["a.b=1"]}
        for n in names
    ]
    plan = {"name": "tiny", "recipe": "sample", "variants": variants, "seeds": [*SEEDS]}
    plan |= {"seconds": 400.0, "tokens": None, "gpus": 1, "deviation": 0.0009}
    runs = [
        {"variant": n, "seed": seed, "replicate": 0, "keys": {"train": f"{n}-{seed}"}}
        for n in names
        for seed in SEEDS
    ]
    metrics = {"tokens": 900, "tokens_per_second": 2.0, "device": "GPU", "torch": "2"}
    stages = {
        f"{n}-{seed}": {
            "stage": "train",
            "wall_seconds": 3.0,
            "energy_joules": None,
            "commit": "abc" if n == "base" else "def",
            "metrics": {**metrics, "val_bpb": score},
        }
        for n, scores in SCORES.items()
        for seed, score in zip(SEEDS, scores, strict=False)
    }
    failure = {"stage": "train", "reason": "out of memory", "killed": False}
    texts = {n: {"key": "x", "tokens": 100} for n in names}
    return {
        "plans": {"tiny": {"plan": plan, "runs": runs, "texts": texts}},
        "stages": stages,
        "failures": {"broken-1": failure},
    }


def test_the_page_is_well_formed_and_shows_each_variant(content):
    page = render_lab_page(summarize(content, "tiny"))
    shown = text_of(page)
    assert outside_references(page) == []
    for text in (*SCORES, "400 s on a GPU", "-0.0117 ± 0.0072", "3 seeds show", "to see"):
        assert text in shown, text
    assert "Trained: wide & <odd> −0.0117" in shown


def test_the_page_warns(content):
    shown = text_of(render_lab_page(summarize(content, "tiny")))
    assert "broken, seed 1, failed: train: out of memory" in shown
    assert "base read the text 9.0 times" in shown
    assert "made by several commits: abc, def" in shown


def test_the_page_does_without_figures(content):
    content["stages"].clear()
    shown = text_of(render_lab_page(summarize(content, "tiny")))
    assert "tiny 3 variants" in shown
    assert "Differences from" not in shown
