"""Score text, then learn from it: score-first test-time training (#461, #1413, #1499, #1530)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from paramgolf.model.network import Network
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import AdaptConfig
from paramgolf.scoring.evaluation import Evaluation, begin, summary
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.lora_documents import score_documents
from paramgolf.scoring.lora_stream import StreamScorer
from paramgolf.scoring.scorer import Rehearsal, Scorer, State
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import SgdAdapter, sgd_rehearsals
from paramgolf.scoring.sliding import plain_score
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import Windows, sliding_windows, split_chunks


def score_adaptive(
    package: str | Path,
    tokens: str | Path,
    config: AdaptConfig,
    runtime: Runtime,
    session: Session | None = None,
) -> Evaluation:
    """Score a packed model that adapts as it goes; every process joins in.

    The metrics' plain score is of the weights as they were packed.
    """
    session = session or Session(runtime)
    network, text = begin(package, tokens, config.max_tokens, session)
    plain = plain_score(network, text, config.window, config.batch_windows, session)
    ledger = score_and_adapt(network, text, config, session)
    metrics = summary(text, ledger, plain, session)
    metrics |= {"updates": metrics["ledger"]["updates"], "mode": config.mode}
    if config.mode == "lora_documents":
        metrics["order"] = config.documents.order
    return Evaluation(metrics, text, ledger.nats)


def score_and_adapt(network: Network, text: Text, config: AdaptConfig, session: Session) -> Ledger:
    """Score every target, adapting in the way of `mode`; return the ledger, full.

    The network's weights change in mode sgd, and in phases of lora_documents.
    """
    if config.mode == "lora_documents":
        return score_documents(network, text, config, session)
    kind = StreamScorer if config.mode == "lora_stream" else ChunkScorer
    scorer = kind(network, text, config, session)
    windows = sliding_windows(len(text), config.window, config.stride)
    chunks = list(split_chunks(windows, config.chunk_tokens))
    session.run(scorer, chunks, "score, adapt")
    return scorer.ledger


class ChunkScorer(Scorer):
    """Scores each chunk with what was learned by SGD from the chunks before it (none: nothing).

    The last chunk is not learned from: nothing is left to score.
    """

    def __init__(self, network: Network, text: Text, config: AdaptConfig, session: Session) -> None:
        window, rows = config.window, config.batch_windows
        super().__init__(network, text, session, length=window, rows=rows, mixing=config.mixture)
        self._config = config
        self.adapter = None
        if config.mode == "sgd":
            self.adapter = SgdAdapter(self, config)

    def run(self, item: Windows) -> None:
        """Score a chunk of windows, then learn from it."""
        super().run(item)
        targets = item.targets
        if self.adapter is not None and targets.stop < len(self.text):
            last = (len(self.text) - 1) // self._config.chunk_tokens
            with self.session.timing.part("adapt"):
                index = targets.start // self._config.chunk_tokens
                self.adapter.adapt(targets, progress=index / last)

    def state(self) -> State:
        """Add the weights and the momenta."""
        state = super().state()
        if self.adapter is not None:
            state["weights"] = self.network.state_dict()
            state["momenta"] = self.adapter.optimiser.state_dict()
        return state

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned, and `own_state` with it."""
        super().load_state(state)
        if self.adapter is not None:
            self.network.load_state_dict(state["weights"])
            self.adapter.optimiser.load_state_dict(state["momenta"])

    def rehearsals(self, items: Sequence[Windows]) -> Iterator[Rehearsal]:
        """Yield the shapes of the passes that `items` need."""
        yield from super().rehearsals(items)
        if self.adapter is not None and len(items) > 1:
            yield from sgd_rehearsals(self.network, self._config, self.runtime)
