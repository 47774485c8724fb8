"""Networks that give no probability to what the tokenizer never writes."""

from __future__ import annotations

import numpy as np
import torch

from paramgolf.data.token_set import TokenSet
from paramgolf.data.tokenizer.token_mask import mask_of
from paramgolf.model.head import Mask
from paramgolf.model.network import Network


def masked(network: Network, tokens: TokenSet, text: np.ndarray | None = None) -> Network:
    """Return a network with the same parameters and the mask of the tokenizer of `tokens`.

    A `text`, token ids [N + 1], of which the mask forbids a target is a ParamGolfError.
    """
    mask = mask_of(tokens)
    if text is not None:
        mask.check(text)
    device = network.get_parameter("embedding").device
    words, marks = torch.from_numpy(mask.words), torch.tensor(mask.marks, dtype=torch.int64)
    return network.with_mask(Mask(words.to(device), mask.escape, marks.to(device)))
