"""What changes while an evaluation runs, as tensors and plain values, and back.

Apart from the scorers, because train_gpt.py does without it.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch

from paramgolf.scoring.adapt import ChunkScorer
from paramgolf.scoring.ledger import Elsewhere, Ledger, Update
from paramgolf.scoring.lora_documents import DocumentScorer
from paramgolf.scoring.lora_stream import StreamScorer
from paramgolf.scoring.scorer import Scorer

State = dict[str, Any]


def state_of(scorer: Scorer) -> State:
    """Return what all processes hold alike, or do once ledgers are merged; all call it."""
    if isinstance(scorer, DocumentScorer):
        scorer.ledger.merge(scorer.runtime)
    return {"ledger": ledger_state(scorer.ledger), "learned": learned(scorer)}


def own_state_of(scorer: Scorer) -> State:
    """Return what this process alone holds: the first matrices of its lanes."""
    return {"warm": scorer.warm} if isinstance(scorer, DocumentScorer) and scorer.warm else {}


def load_state(scorer: Scorer, state: State, own: State) -> None:
    """Put `scorer` into the state that `state_of` and `own_state_of` returned."""
    load_ledger(scorer.ledger, state["ledger"])
    learn_again(scorer, state["learned"])
    if isinstance(scorer, DocumentScorer):
        for lane, matrices in own.get("warm", {}).items():
            scorer.warm[lane] = {name: a.to(scorer.runtime.device) for name, a in matrices.items()}


@singledispatch
def learned(scorer: Scorer) -> State:
    """Return what a scorer has learned so far."""
    return {}


@singledispatch
def learn_again(scorer: Scorer, state: State) -> None:
    """Give a scorer what it had learned."""


@learned.register
def _(scorer: ChunkScorer) -> State:
    if scorer.adapter is None:
        return {}
    weights, momenta = scorer.network.state_dict(), scorer.adapter.optimiser.state_dict()
    return {"weights": weights, "momenta": momenta}


@learn_again.register
def _(scorer: ChunkScorer, state: State) -> None:
    if scorer.adapter is not None:
        scorer.network.load_state_dict(state["weights"])
        scorer.adapter.optimiser.load_state_dict(state["momenta"])


@learned.register
def _(scorer: StreamScorer) -> State:
    leaves = [leaf.detach() for leaf in scorer.learner.adapters.parameters()]
    return {"leaves": leaves, "moments": scorer.learner.optimiser.state_dict()}


@learn_again.register
def _(scorer: StreamScorer, state: State) -> None:
    with torch.no_grad():
        for leaf, saved in zip(scorer.learner.adapters.parameters(), state["leaves"], strict=True):
            leaf.copy_(saved)
    scorer.learner.optimiser.load_state_dict(state["moments"])


@learned.register
def _(scorer: DocumentScorer) -> State:
    return {"weights": scorer.network.state_dict()} if scorer.config.documents.phases else {}


@learn_again.register
def _(scorer: DocumentScorer, state: State) -> None:
    if scorer.config.documents.phases:
        scorer.network.load_state_dict(state["weights"])


def ledger_state(ledger: Ledger) -> State:
    """Return all of a ledger but the order to follow, which the mixture tells it anew."""
    none = np.zeros(0, dtype=np.int64)
    spans = [u.start for u in ledger.updates], [u.stop for u in ledger.updates]
    elsewhere = ledger.elsewhere
    return {
        "scores": [torch.from_numpy(x) for x in (ledger.nats, ledger.entry)],
        "weights": ledger.weights,
        "updates": [(u.entry, len(u.start), u.own) for u in ledger.updates],
        "spans": [torch.from_numpy(np.concatenate([none, *x])) for x in spans],
        "merged": ledger.merged,
        "trained": torch.from_numpy(elsewhere.trained),
        "elsewhere": (elsewhere.entries, elsewhere.updates, elsewhere.score_first),
    }


def load_ledger(ledger: Ledger, state: State) -> None:
    """Enter in an empty ledger what `ledger_state` returned."""
    ledger.nats[:], ledger.entry[:] = (x.numpy() for x in state["scores"])
    ledger.weights, ledger.merged = list(state["weights"]), tuple(state["merged"])
    ends = np.cumsum([length for _, length, _ in state["updates"]])
    start, stop = (np.split(x.numpy(), ends) for x in state["spans"])
    ledger.updates = [
        Update(entry, start[i], stop[i], own) for i, (entry, _, own) in enumerate(state["updates"])
    ]
    ledger.elsewhere = Elsewhere(state["trained"].numpy(), *state["elsewhere"])
