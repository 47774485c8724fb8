"""Networks that give no probability to what the tokenizer never writes."""

from __future__ import annotations

import numpy as np
import torch

from paramgolf.data.token_set import TokenSet
from paramgolf.data.tokenizer.token_mask import TokenMask, mask_of
from paramgolf.model.head import Mask
from paramgolf.model.network import Network


def masked(network: Network, tokens: TokenSet, text: np.ndarray | None = None) -> Network:
    """Return a network with the same parameters and the mask of the tokenizer of `tokens`.

    A `text`, token ids [N + 1], of which the mask forbids a target is a ParamGolfError.
    """
    mask = mask_of(tokens)
    if text is not None:
        mask.check(text)
    return network.with_mask(network_mask(mask))


def network_mask(mask: TokenMask) -> Mask:
    """Return a mask as networks have it, on the CPU."""
    marks = torch.tensor(mask.marks, dtype=torch.int64)
    return Mask(torch.from_numpy(mask.words), mask.escape, marks)
