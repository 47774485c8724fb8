"""Counts of the past: equal to a table that is read, then updated, token by token."""

from collections import Counter, defaultdict

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.scoring.past_counts import context_hashes, past_counts


def brute_force(tokens, context):
    table = defaultdict(Counter)
    first_to = defaultdict(dict)  # context -> count -> the token that reached it first
    rows = []
    for t, token in enumerate(tokens):
        seen = tuple(tokens[t - context : t]) if t >= context else None
        counts = table[seen] if seen is not None else Counter()
        highest = max(counts.values(), default=0)
        top = first_to[seen][highest] if highest else -1
        rows.append((counts.total(), counts[token], top, highest))
        if seen is not None:
            counts[token] += 1
            first_to[seen].setdefault(counts[token], token)
    return rows


@settings(deadline=None, max_examples=80)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    context=st.integers(1, 5),
)
def test_counts_are_those_of_a_table(tokens, context):
    past = past_counts(torch.tensor(tokens), context)
    found = list(zip(*(column.tolist() for column in past), strict=True))
    assert found == brute_force(tokens, context)


def test_hashes_tell_contexts_apart_by_order_and_length():
    tokens = torch.randint(0, 50, (4000,), generator=torch.Generator().manual_seed(0))
    hashes = context_hashes(tokens, 3)
    contexts = [tuple(tokens[t - 3 : t].tolist()) for t in range(3, 4000)]
    by_hash = dict(zip(hashes[3:].tolist(), contexts, strict=True))
    assert len(by_hash) == len(set(contexts))
    assert [by_hash[h] for h in hashes[3:].tolist()] == contexts
