"""Plain scoring: each token once, from its own window, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from process_case import ALONE

from paramgolf.data.token_set import open_tokens
from paramgolf.model.network import Network, Pass
from paramgolf.training.validate import validate


def test_validation_scores_each_token_once_from_its_own_window(tokens_folder, tiny_model):
    network = Network(tiny_model(), 64, seed=1)
    tokens = open_tokens(tokens_folder)
    order = Pass(network.config.orders[-1])
    scores = [
        validate(
            network, tokens.val(), tokens.val_bytes(), order, ALONE,
            length=32, batch_windows=batch, max_tokens=None,
        )
        for batch in (1, 7)
    ]  # fmt: skip
    values = torch.from_numpy(tokens.val().read(0, 3000).astype("int64"))
    nats = 0.0
    with torch.no_grad():
        for first in range(0, 2999, 32):
            row = values[first : first + 33]
            nats += float(network.nll(row[None, :-1], row[None, 1:], order).double().sum())
    expected_bytes = int(tokens.val_bytes().read(1, 3000).sum())
    for score in scores:
        assert score.tokens == 2999
        assert score.byte_count == expected_bytes
        assert score.nats == pytest.approx(nats, rel=1e-6)
