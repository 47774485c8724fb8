"""What training wants predicted beside the next token, by the same logits: train.further_targets.

The second and third token after a position tell early on what its text is about; the longest piece
that the target begins with is nearly right. All pull the logits away from the target's true chance,
so their weights fall to 0 (paramgolf.training.schedule).
"""

from __future__ import annotations

from collections.abc import Sequence

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import TokenSet
from paramgolf.data.tokenizer.sentencepiece_model import read_model
from paramgolf.data.tokenizer.token_mask import has_mask
from paramgolf.errors import ParamGolfError
from paramgolf.model.head import NO_TARGET, Further
from paramgolf.training.config import TrainConfig

AHEAD = {"second": 1, "third": 2}  # places from the target


class FurtherTargets:
    """Makes the further targets of batches; their weights stay where graphs have recorded them."""

    def __init__(self, config: TrainConfig, tokens: TokenSet, device: torch.device) -> None:
        self._kinds = [target.token for target in config.further_targets]
        self._weights = torch.zeros(len(self._kinds), device=device)
        self._prefixes: Tensor | None = None
        if "prefix" in self._kinds:
            self._prefixes = torch.tensor(_prefixes_of(tokens), device=device)

    def weigh(self, weights: Sequence[float]) -> None:
        """Set the weights, of every pass from now on."""
        for i, weight in enumerate(weights):
            self._weights[i].fill_(weight)

    def __call__(self, tokens: Tensor) -> Further:
        """Return the further targets of rows of tokens [n, T + 1], whose targets are the last T."""
        made = [self._one(kind, tokens) for kind in self._kinds]
        return Further(torch.stack(made, dim=-1), self._weights)

    def _one(self, kind: str, tokens: Tensor) -> Tensor:
        if self._prefixes is not None and kind == "prefix":
            return self._prefixes[tokens[:, 1:]]
        return ahead(tokens, AHEAD[kind])


def ahead(tokens: Tensor, places: int) -> Tensor:
    """Return what comes so many places after each target of tokens [n, T + 1], int64 [n, T].

    Where a row ends before it, or a document (its last target is the BOS of the next), there is
    NO_TARGET.
    """
    length = tokens.shape[1] - 1
    rows = F.pad(tokens, (0, places), value=NO_TARGET)
    found, ended = rows[:, 1 + places :], torch.zeros_like(tokens[:, 1:], dtype=torch.bool)
    for before in range(1, 1 + places):
        ended |= rows[:, before : before + length] == BOS
    return found.masked_fill(ended, NO_TARGET)


def _prefixes_of(tokens: TokenSet) -> list[int]:
    path = tokens.folder / tokens.manifest.tokenizer
    if not has_mask(tokens):
        raise ParamGolfError(
            "further target `prefix` needs the pieces of a SentencePiece model",
            where=path,
            fix="leave it out of train.further_targets",
        )
    return prefixes(read_model(path))


def prefixes(model: sentencepiece.SentencePieceProcessor) -> list[int]:
    """Return by token of the shards the longest piece that its own begins with, or NO_TARGET."""
    ids = [*range(model.vocab_size())]
    # in the shards BOS has changed places with token 1
    ids[model.bos_id()], ids[BOS] = BOS, model.bos_id()
    bare = (i for i in range(len(ids)) if not (model.is_control(i) or model.is_byte(i)))
    written = {model.id_to_piece(i): ids[i] for i in bare}
    found = [NO_TARGET] * len(ids)
    for piece, token in written.items():
        shorter = (piece[:n] for n in range(len(piece) - 1, 0, -1))
        found[token] = next((written[one] for one in shorter if one in written), NO_TARGET)
    return found
