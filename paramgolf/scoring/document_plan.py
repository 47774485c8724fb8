"""Which documents are scored together, in what order, and when the whole model learns from them.

Documents of about one length go side by side, because a batch costs what its longest document
costs. By length (pg#1530), batches are cut from the shortest document on and scored from the
longest: so it is the batch of the longest documents that may have fewer of them.

A chain is what a process was in the published runs: batches that are scored one after another, each
of which may hand its adapters' A on to the next. Batches go to the chain that has worked least,
which is the one that would ask for the next batch first. Processes share chains, so the plan does
not depend on their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paramgolf.runtime import Runtime
from paramgolf.scoring.config import DocumentsConfig


@dataclass(frozen=True, slots=True, eq=False)  # told apart by what they are, not by their arrays
class DocumentBatch:
    """Documents that are scored side by side, the longest first, `chunk` tokens at a time.

    Document i has the targets start[i]..stop[i], int64 [n]. `full` tells whether the batch has as
    many documents as a batch can have.
    """

    start: np.ndarray
    stop: np.ndarray
    chunk: int
    chain: int
    full: bool

    @property
    def chunks(self) -> int:
        """The number of chunks of the longest document."""
        return -(-int(self.stop[0] - self.start[0]) // self.chunk)


@dataclass(frozen=True, slots=True)
class Phase:
    """Documents that the whole model learns from, in this order: targets start[i]..stop[i]."""

    start: np.ndarray
    stop: np.ndarray


def plan_documents(
    start: np.ndarray, stop: np.ndarray, config: DocumentsConfig, window: int
) -> list[DocumentBatch | Phase]:
    """Return the batches in the order in which they are scored, phases between them.

    `start` and `stop` int64 [n] are the documents' targets, in the order of the text.
    """
    lengths = stop - start
    batches, ends = order_batches(lengths, config)
    sizes = [len(batch) for batch in batches]
    phases = place_phases(sizes, ends, config)
    spent = np.zeros(config.chains)  # the work of each chain so far
    items: list[DocumentBatch | Phase] = []
    for index, documents in enumerate(batches):
        chain = int(spent.argmin())  # the first of those that are free first
        full = len(documents) == config.batch_documents
        spans = start[documents], stop[documents]
        batch = DocumentBatch(*spans, config.chunk_tokens, chain, full)
        spent[chain] += work(batch, window)
        items.append(batch)
        if index in phases:
            scored = np.concatenate(batches[: index + 1])
            # by length, then in the order of the text
            learned = scored[np.lexsort((scored, lengths[scored]))][: phases[index]]
            items.append(Phase(start[learned], stop[learned]))
            spent[:] = spent.max()  # all wait for one another
    return items


def own_batches(
    items: Sequence[DocumentBatch | Phase], window: int, runtime: Runtime
) -> set[DocumentBatch]:
    """Return the batches that this process scores: those of its chains.

    Chains are dealt out anew after each phase, which ends what they hand on: the one with the most
    work that is left to the process that has the least. Two of the longest would keep all waiting.
    """
    spans: list[list[DocumentBatch]] = [[]]
    for item in items:
        if isinstance(item, DocumentBatch):
            spans[-1].append(item)
        else:
            spans.append([])
    own: set[DocumentBatch] = set()
    for span in spans:
        loads, spent = Counter[int](), np.zeros(runtime.world)
        for batch in span:
            loads[batch.chain] += int(work(batch, window))
        for chain, load in loads.most_common():
            process = int(spent.argmin())
            spent[process] += load
            if process == runtime.rank:
                own.update(batch for batch in span if batch.chain == chain)
    return own


def order_batches(
    lengths: np.ndarray, config: DocumentsConfig
) -> tuple[list[np.ndarray], list[int]]:
    """Return batches of documents in the order of scoring, and after which ones a phase may come.

    In the order of the stream, documents are taken in groups of as many as all chains can hold, and
    only a group is sorted: a phase that came within one would teach the model of documents that
    stand behind some that it has yet to score.
    """
    count = len(lengths)
    group = count if config.order == "length" else config.chains * config.batch_documents
    batches: list[np.ndarray] = []
    ends = []
    for begin in range(0, count, group):
        part = lengths[begin : begin + group]
        rising = begin + np.argsort(part, kind="stable")
        cuts = range(config.batch_documents, len(part), config.batch_documents)
        # each batch the longest first, too: rows whose documents have ended are dropped at its end
        batches += [batch[::-1] for batch in reversed(np.split(rising, cuts))]
        ends.append(len(batches) - 1)
    return batches, (list(range(len(batches))) if config.order == "length" else ends)


def place_phases(sizes: list[int], ends: list[int], config: DocumentsConfig) -> dict[int, int]:
    """Return by batch how many documents the phase learns from that comes after it (pg#1626).

    The phase with bound n is due once n documents are scored, and more than there were at the phase
    before. By then each other chain has a batch under way, which is finished first: with c chains,
    c - 1 batches more than the bound needs. The last batch is followed by no phase, since nothing
    would profit.
    """
    done = np.cumsum(sizes)
    wait = config.chains - 1 if config.order == "length" else 0
    phases: dict[int, int] = {}
    last = -1
    for bound in phase_bounds(config):
        reached = max(int(np.searchsorted(done, bound)), last + 1)
        last = next((end for end in ends if end >= reached + wait), len(sizes) - 1)
        if last >= len(sizes) - 1:
            break
        phases[last] = bound
    return phases


def phase_bounds(config: DocumentsConfig) -> list[int]:
    """Return how many documents must be scored before each phase, and are learned from in it."""
    return [config.prefix_documents * (i + 1) // config.phases for i in range(config.phases)]


def work(batch: DocumentBatch, window: int) -> float:
    """Return the tokens that scoring a batch reads: every chunk anew, with its context."""
    ends = (1 + np.arange(batch.chunks)) * batch.chunk
    reads = np.minimum(ends, window)
    rows = (batch.stop - batch.start)[None, :] > (ends - batch.chunk)[:, None]
    return float((reads * rows.sum(axis=1)).sum())
