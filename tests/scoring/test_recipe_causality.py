"""C1 for every recipe: through each way to score, each mixture; a later token moves no past score.

The networks are narrow; layers, orders and options are the recipes' own. Both a token inside a
document and one at its end are changed, and all text after it.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from recipe_case import different, moved, narrow_recipe
from scoring_case import (
    VOCAB,
    echoing_text,
    evaluated,
    make_lora_config,
    make_mixture,
    make_sliding,
)

from paramgolf.model.network import Network
from paramgolf.scoring.text import Text, find_documents

WAYS = ("strided", "documents", "windowed", "sgd", "lora_stream", "lora_documents")
KINDS = ("none", "ngram", "blend", "tilt")
COUNT = 72


def score(network: Network, text: Text, way: str, kind: str) -> np.ndarray:
    if way in WAYS[:3]:
        config = make_sliding(kind, mode=way, stride=8, batch_windows=8)
    else:
        documents = {"order": "stream", "batch_documents": 1, "chunk_tokens": 8, "chains": 1}
        documents |= {"phases": 1, "prefix_documents": 1}
        adapter = {}
        if way == "last layers":
            way, adapter["last_layers"] = "lora_documents", 3
        sizes = {"chunk_tokens": 16, "epochs": 1, "stride": 8, "mixture": make_mixture(kind)}
        config = make_lora_config(way, adapter, documents, **sizes)
    ledger = evaluated(network, text, config)
    assert ledger.close()["scored_once"]
    return ledger.nats


# what the last layers read of others differs by skips, lanes, values: these two have them all
LAST = itertools.product(("best", "pr1499"), ("last layers",))


@pytest.mark.parametrize(("recipe", "way"), [*itertools.product(different("model"), WAYS), *LAST])
def test_no_past_score_moves_with_later_text(recipe, way):
    network = moved(Network(narrow_recipe(recipe).model, VOCAB, seed=1))
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    text = echoing_text(COUNT)
    start, _ = find_documents(text)
    inside, last = COUNT // 2 + 3, int(start[start > COUNT // 2][0])
    for kind, position in zip(KINDS, (inside, last, inside - 1, last - 1), strict=True):
        tokens = text.tokens.copy()
        later = tokens[position:]
        # documents begin where they did
        tokens[position:] = np.where(later == 1, 1, 2 + (later + 11) % (VOCAB - 2))
        both = []
        for some in (text, Text(tokens, text.byte_counts, 1)):
            network.load_state_dict(weights)
            both.append(score(network, some, way, kind))
        before, after = (nats[: position - 1] for nats in both)
        assert (before == after).all(), kind
        assert (both[0] != both[1])[position:].any(), kind
