"""Which documents are scored together, in what order, and by which lane.

Documents are put in scoring order and cut into groups; a group's documents are sorted by length and
cut into one batch a lane. A lane is a chain of batches, one a group, that hands its state on;
processes share lanes. Nothing here depends on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paramgolf.scoring.config import DocumentsConfig


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Documents that are scored side by side, the longest first, `chunk` tokens at a time.

    Document i has the targets start[i]..stop[i], int64 [n].
    """

    start: np.ndarray
    stop: np.ndarray
    chunk: int
    lane: int

    @property
    def chunks(self) -> int:
        """The number of chunks of the longest document."""
        return -(-int(self.stop[0] - self.start[0]) // self.chunk)


@dataclass(frozen=True, slots=True)
class Group:
    """Batches that may be scored at the same time, and the documents scored once they are."""

    batches: tuple[DocumentBatch, ...]
    documents_done: int


def scoring_order(lengths: np.ndarray, order: str) -> np.ndarray:
    """Return the documents in scoring order: the longest first, or as they come."""
    return np.argsort(-lengths, kind="stable") if order == "length" else np.arange(len(lengths))


def plan_groups(
    start: np.ndarray, stop: np.ndarray, config: DocumentsConfig, window: int
) -> list[Group]:
    """Return the groups of documents; `start` and `stop` are in scoring order."""
    size = config.lanes * config.batch_documents
    spent = np.zeros(config.lanes)  # the work of each lane so far
    groups = []
    for begin in range(0, len(start), size):
        end = min(begin + size, len(start))
        longest_first = begin + np.argsort(-(stop - start)[begin:end], kind="stable")
        parts = np.split(
            longest_first, range(config.batch_documents, end - begin, config.batch_documents)
        )
        # the dearest batch goes to the lane that has worked least
        lanes = np.argsort(spent, kind="stable")[: len(parts)]
        batches = [
            _batch(start[part], stop[part], config, int(lane))
            for part, lane in zip(parts, lanes, strict=True)
        ]
        for batch in batches:
            spent[batch.lane] += work(batch, window)
        groups.append(Group(tuple(batches), end))
    return groups


def _batch(
    start: np.ndarray, stop: np.ndarray, config: DocumentsConfig, lane: int
) -> DocumentBatch:
    longest = int((stop - start).max())
    short = (rule.chunk_tokens for rule in config.short_chunks if longest <= rule.document_tokens)
    return DocumentBatch(start, stop, next(short, config.chunk_tokens), lane)


def work(batch: DocumentBatch, window: int) -> float:
    """Return the tokens that scoring a batch reads: every chunk anew, with its context."""
    ends = (1 + np.arange(batch.chunks)) * batch.chunk
    reads = np.minimum(ends, window)
    rows = (batch.stop - batch.start)[None, :] > (ends - batch.chunk)[:, None]
    return float((reads * rows.sum(axis=1)).sum())


def phase_bounds(config: DocumentsConfig) -> list[int]:
    """Return after how many documents each phase of training the whole model comes (#1626)."""
    return [config.prefix_documents * (i + 1) // config.phases for i in range(config.phases)]
