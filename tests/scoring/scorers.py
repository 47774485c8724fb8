"""Scorers for the referee, all made of counts: honest ones, and one for each way to cheat."""

import itertools

import numpy as np

VOCAB, BOS, CHUNK = 61, 1, 24


class Counts:
    """Counts of tokens and pairs that learn as they go (the example of docs/audit-score.md)."""

    def load(self):
        return VOCAB

    def distributions(self, tokens, singles=None):
        singles, pairs = np.ones(VOCAB) if singles is None else singles.copy(), {}
        for last, token in itertools.pairwise(tokens.tolist()):
            seen = pairs.setdefault(last, np.zeros(VOCAB))
            yield (seen + 4 * singles / singles.sum()) / (seen.sum() + 4)
            singles[token] += 1
            seen[token] += 1

    def table(self, tokens, singles=None):
        return np.stack(list(self.distributions(tokens, singles)))

    def score(self, _, tokens):
        return nats(self.table(tokens), tokens)

    def probabilities(self, _, tokens, target):
        return self.table(tokens)[target]


def nats(table, tokens):
    """Return the score of each target by the distributions of all, [N, V]."""
    return -np.log(table[np.arange(len(tokens) - 1), tokens[1:]])


class Masked(Counts):
    """Gives no probability to tokens that `text` never has after the one before, half of all."""

    def __init__(self, text):
        self._allowed = np.random.default_rng(0).random((VOCAB, VOCAB)) < 0.5
        self._allowed[text[:-1], text[1:]] = True

    def distributions(self, tokens, singles=None):
        made = super().distributions(tokens, singles)
        for last, table in zip(tokens[:-1].tolist(), made, strict=True):
            possible = table * self._allowed[last]
            yield possible / possible.sum()

    def score(self, model, tokens):
        with np.errstate(divide="ignore"):  # of a token that cannot come the score is infinite
            return super().score(model, tokens)


def counted(tokens):
    return 1.0 + np.bincount(tokens, minlength=VOCAB)


class Slot(Counts):
    """A bias on the logits, fitted to the very targets of the window that it scores."""

    def table(self, tokens):
        table = super().table(tokens)
        for begin in range(0, len(table), CHUNK):
            window = slice(begin, begin + CHUNK)
            logits = np.log(table[window]) + 0.3 * np.log(counted(tokens[1:][window]))
            table[window] = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return table


class LearnsFirst(Counts):
    """Learns from a chunk, then scores it."""

    def table(self, tokens):
        plain, result = super().table(tokens), []
        for begin in range(0, len(plain), CHUNK):
            learned = counted(tokens[1 : begin + CHUNK + 1])
            result.append((plain[begin : begin + CHUNK] + learned / learned.sum()) / 2)
        return np.concatenate(result)


class LastEpoch(Counts):
    """Goes over the text twice and reports the second time."""

    def table(self, tokens):
        return super().table(tokens, counted(tokens[1:]))


class BestOfTwo(Counts):
    """Scores again with what was learned, and keeps the better score of each target."""

    def score(self, model, tokens):
        second = nats(self.table(tokens, counted(tokens[1:])), tokens)
        return np.minimum(super().score(model, tokens), second)


class WarmedUp(Counts):
    """Warms up on the text before it is scored."""

    def table(self, tokens):
        return super().table(tokens, counted(tokens))


class HashedCache(Counts):
    """Looks up how often the target followed the context, in buckets that targets share (#886)."""

    buckets = 31

    def table(self, tokens):
        plain = super().table(tokens)
        context, pair = np.zeros(self.buckets), np.zeros(self.buckets)
        for j, last in enumerate(tokens[:-1].tolist()):
            keys = (last * 7919 + np.arange(VOCAB) * 104729) % self.buckets
            if context[last % self.buckets] >= 2:
                found = np.minimum(pair[keys] / context[last % self.buckets], 1.0)
                plain[j] = 0.6 * plain[j] + 0.4 * found
            context[last % self.buckets] += 1
            pair[keys[tokens[j + 1]]] += 1
        return plain


class HiddenCache(HashedCache):
    """The same, but shows the distribution without the cache."""

    def probabilities(self, _, tokens, target):
        return Counts.table(self, tokens)[target]


class ByteMixture(Counts):
    """Mixes in a model of bytes, a token being as likely as its bytes one by one (#1872)."""

    def table(self, tokens):
        lengths = 1 + np.arange(VOCAB) % 3
        return 0.9 * super().table(tokens) + 0.1 * (1 / 40.0) ** lengths


class TailTwice(Counts):
    """The last window overlaps the one before it; both count."""

    def score(self, model, tokens):
        scores = super().score(model, tokens)
        return np.append(scores, scores[-len(scores) % CHUNK :])


class TailDropped(Counts):
    """Scores whole windows only."""

    def score(self, model, tokens):
        scores = super().score(model, tokens)
        return scores[: max(1, len(scores) // CHUNK) * CHUNK]


class KeepsCounts(Counts):
    """Goes on, in a second evaluation, with what it learned in the first."""

    def load(self):
        return {}

    def score(self, model, tokens):
        kept = model.setdefault("singles", np.ones(VOCAB))
        model["singles"] = kept + counted(tokens)
        return nats(self.table(tokens, kept), tokens)


class Isolated(Counts):
    """Begins anew with each document."""

    def table(self, tokens):
        edges = [*np.flatnonzero(tokens[:-1] == BOS), len(tokens) - 1]
        parts = [tokens[a : b + 1] for a, b in itertools.pairwise(edges)]
        return np.concatenate([Counts.table(self, part) for part in parts])


class Smears(Isolated):
    """Lets the token before a document's BOS into its first prediction."""

    def table(self, tokens):
        table = super().table(tokens)
        for begin in np.flatnonzero(tokens[:-1] == BOS)[1:]:
            smear = np.cos(np.arange(VOCAB) * tokens[begin - 1])
            table[begin] *= np.exp(smear)
            table[begin] /= table[begin].sum()
        return table


def by_length(tokens):
    """Return the targets, the longest document first, and the first token of each document."""
    edges = [*np.flatnonzero(tokens[:-1] == BOS), len(tokens) - 1]
    spans = sorted(itertools.pairwise(edges), key=lambda span: span[0] - span[1])
    return [np.arange(a, b) for a, b in spans]


class ByLength(Counts):
    """Scores the longest document first, and says so; learns across documents in that order."""

    def order(self, _, tokens):
        return np.concatenate(by_length(tokens))

    def table(self, tokens):
        singles, table = np.ones(VOCAB), np.zeros((len(tokens) - 1, VOCAB))
        for targets in by_length(tokens):
            part = tokens[targets[0] : targets[-1] + 2]
            table[targets] = super().table(part, singles)
            singles += np.bincount(part[1:], minlength=VOCAB)
        return table


class HintsInFileOrder(ByLength):
    """Scores by length, but takes hints from whatever stands earlier in the file."""

    def table(self, tokens):
        return 0.8 * super().table(tokens) + 0.2 * Counts.table(self, tokens)


class CountsBytes(Counts):
    """Tells the bytes of each target by a table."""

    def __init__(self, counts):
        self._counts = counts

    def byte_counts(self, _, tokens):
        return self._counts
