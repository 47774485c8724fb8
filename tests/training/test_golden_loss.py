"""The loss curve of the sample recipe, which a CPU must meet: no refactoring may move it.

The tokens come from the raw bits of a generator, so they depend on no version of Python or torch.
A change that is meant to alter training writes the curve anew:

    python tests/training/test_golden_loss.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from process_case import ALONE
from shard_files import write_token_set

from paramgolf.data.special_tokens import BOS
from paramgolf.files import write_json
from paramgolf.recipes import Params, check, compose
from paramgolf.training.result import METRICS, OUT
from paramgolf.training.run import train

ROOT = Path(__file__).parents[2]
CURVE = Path(__file__).with_name("golden_loss.json")
STEPS, TOKENS = 24, 200_000


def text_like_tokens(count: int, vocab_size: int) -> np.ndarray:
    """Return documents of 500 tokens, of which every next one is one of four by the last."""
    bits = np.random.PCG64(0).random_raw(count)
    tokens = np.empty(count, dtype=np.uint16)
    last = 0
    for i, choice in enumerate((bits % 4).tolist()):
        last = BOS if i % 500 == 0 else 2 + (31 * last + 7 * choice + 1) % (vocab_size - 2)
        tokens[i] = last
    return tokens


def curve_of(sample: Params, folder: Path) -> dict[str, object]:
    """Train the sample's network for STEPS steps by its section `train`; return the curve."""
    vocab_size = sample.tokenizer.vocab_size
    tokens = text_like_tokens(TOKENS, vocab_size)
    held_out, trained = np.split(tokens, [TOKENS // 10])
    counts = (held_out != BOS).astype(np.uint16)
    write_token_set(
        folder / "data/tokens",
        train=[trained],
        val=[held_out[:2_000]],
        val_bytes=[counts[:2_000]],
        vocab_size=vocab_size,
    )
    sizes = {"batch_tokens": 512, "micro_batch_tokens": 512}  # an eighth of the recipe's
    times = {"steps": STEPS, "validate_every": 0, "checkpoint_every": 0, "validation_tokens": 256}
    config = dataclasses.replace(sample.train, **sizes, **times)
    before = os.getcwd()
    os.chdir(folder)
    try:
        train(sample.model, config, ALONE)
        records = [json.loads(line) for line in (OUT / "log.jsonl").read_text().splitlines()]
        score = json.loads(METRICS.read_text())["val_bpb"]
    finally:
        os.chdir(before)
    losses = [record["loss"] for record in records if record["event"] == "step"]
    return {"losses": losses, "val_bpb": score}


def test_the_sample_recipe_meets_its_loss_curve(sample: Params, tmp_path: Path) -> None:
    expected, found = json.loads(CURVE.read_text()), curve_of(sample, tmp_path)
    assert len(found["losses"]) == STEPS
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    assert found["val_bpb"] == pytest.approx(expected["val_bpb"], abs=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        recipe = check(compose("sample", ROOT / "recipes"), where="sample")
        write_json(CURVE, curve_of(recipe, Path(folder)))
    sys.exit()
