"""Documents to tokens in worker processes: what comes back is in order, whatever their number."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from paramgolf.data.documents import parse
from paramgolf.data.tokenizer.text_tokenizer import TextTokenizer, TokenizerFile, open_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file
from paramgolf.process import cores

BATCH_BYTES = 1 << 19
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of some documents, BOS before each."""

    tokens: np.ndarray
    """uint16 [n]"""
    counts: np.ndarray | None
    """uint16 [n]: bytes of each token, where they were asked for."""
    documents: int


def encode_documents(
    lines: Iterable[bytes], file: TokenizerFile, *, workers: int, count_bytes: bool
) -> Iterator[Encoded]:
    """Encode documents (lines of JSON) in batches, in order, with a bounded number under way."""
    content = sha256_file(file.path)
    work = functools.partial(_encode_batch, file, content, count_bytes)
    yield from ordered_map(work, batches(lines, BATCH_BYTES), workers)


def batches(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Group lines into lists of at least `size` bytes; the last may be smaller."""
    batch: list[bytes] = []
    held = 0
    for line in lines:
        batch.append(line)
        held += len(line)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield function(item) in the order of `items` from `workers` processes (0: one a core).

    At most two items a worker are under way, so memory does not grow with the number of items.
    """
    workers = workers or cores()
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_watch_parent) as pool:
        try:
            yield from _in_order(pool, function, items, 2 * workers)
        except BrokenProcessPool:
            fix = "look for the system's out-of-memory messages, or lower runtime.workers"
            raise ParamGolfError("a worker process died", fix=fix) from None


def threaded_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) in the order of `items` from a thread a core.

    This is for functions that spend their time in numpy, which releases the interpreter's lock;
    they can share arrays. At most two items a thread are under way.
    """
    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        yield from _in_order(pool, function, items, 2 * workers)


def _in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    queue = iter(items)
    try:
        for item in itertools.islice(queue, ahead):
            pending.append(pool.submit(function, item))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(queue, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _watch_parent() -> None:
    """End this worker when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.lru_cache(maxsize=1)
def _tokenizer(file: TokenizerFile, _sha256: str) -> TextTokenizer:
    """Open a tokenizer once a process; another content under the same path is another one."""
    return open_tokenizer(file)


def _encode_batch(
    file: TokenizerFile, sha256: str, count_bytes: bool, lines: list[bytes]
) -> Encoded:
    texts = [parse(line).text for line in lines]
    encoded = list(_tokenizer(file, sha256).encode(texts, count_bytes=count_bytes))
    counts = [counts for _, counts in encoded if counts is not None]
    return Encoded(
        np.concatenate([tokens for tokens, _ in encoded]),
        np.concatenate(counts) if counts else None,
        len(texts),
    )
