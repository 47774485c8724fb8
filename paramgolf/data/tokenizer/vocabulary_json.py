"""A Hugging Face tokenizers JSON file as a vocabulary.

The bytes of a token are those of the characters that its offsets name in the text as it came, so no
rule about a token's spelling is needed: each character counts once, a byte token once (pg#1143).
What a normalizer or decoder changes shows when the tokens are decoded; of raw and decoded text the
shorter one is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers

from paramgolf.data.manifests import OFFSETS_RULE
from paramgolf.data.tokenizer.byte_counts import at_most
from paramgolf.data.tokenizer.sentencepiece_model import other_format
from paramgolf.data.tokenizer.vocabulary_format import refuse_other_formats
from paramgolf.files import read_json

# special tokens that begin a document, in order of preference; without one BOS is added
BOS_NAMES = ("<s>", "<bos>", "<|bos|>", "[BOS]", "<|begin_of_text|>", "<|endoftext|>", "[CLS]")
_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
_BYTE = re.compile("<0x[0-9A-F]{2}>")


class JsonVocabulary:
    """Ids, text and bytes of a Hugging Face tokenizer."""

    rule = OFFSETS_RULE

    def __init__(self, path: Path) -> None:
        self._tokenizer = load_json(path)
        names = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        own = [names[name] for name in BOS_NAMES if name in special]
        self.size = max(names.values()) + (1 if own else 2)
        self.bos: int = own[0] if own else self.size - 1
        self._unknown = _unknown_id(self._tokenizer)
        self._names = {index: name for name, index in names.items()}

    def encode(
        self, texts: list[str], *, count_bytes: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield ids of each text, and their bytes by their offsets where asked."""
        for text in texts:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            ids = np.array(encoding.ids, dtype=np.int32)
            yield ids, self._count(text, ids, encoding.offsets) if count_bytes else None

    def decode(self, ids: np.ndarray) -> bytes:
        """Return the text that the tokens decode to; unknown ones give nothing."""
        known = ids[ids != self._unknown].tolist()
        return self._tokenizer.decode(known, skip_special_tokens=False).encode()

    def excesses(self, ids: np.ndarray) -> dict[int, str]:
        """Return the bytes by which the fault of pg#1143 would count `ids` too high."""
        excess = sum(map(self._excess, ids.tolist()))
        return {excess: ": tokens that are no whole character are counted as U+FFFD (pg#1143)"}

    def _excess(self, token: int) -> int:
        """Return by how many bytes a token's decoded form alone exceeds its own."""
        name = self._names.get(token, "")
        shown = self._tokenizer.decode([token], skip_special_tokens=False)
        if "\ufffd" not in shown:
            return 0
        # otherwise a byte-level token, spelt with one character a byte
        return len(shown.encode()) - (1 if _BYTE.fullmatch(name) else len(name))

    def _count(self, text: str, ids: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
        counts = span_bytes(text, np.array(spans, dtype=np.int64).reshape(-1, 2))
        counts[ids == self._unknown] = 0
        return at_most(counts, len(self.decode(ids)))


def load_json(path: Path) -> tokenizers.Tokenizer:
    """Load a tokenizer for plain text: nothing cut, padded or added, nothing in it special."""
    refuse_other_formats(path)
    _refuse_merges_without_prefix(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise other_format(path, found=f"no tokenizers file: {error}") from None
    if not tokenizer.get_vocab_size():
        raise other_format(path, found="no tokens in it")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # `<s>` in a text is text, not a BOS
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # it would draw another encoding each time
    return tokenizer


def _refuse_merges_without_prefix(path: Path) -> None:
    """Refuse merges that lack the prefix of their model: over one the library ends the process."""
    if not _PREFIX.search(path.read_bytes()):
        return
    model = read_json(path).get("model")
    if not isinstance(model, dict) or not isinstance(merges := model.get("merges"), list):
        return
    prefix = str(model.get("continuing_subword_prefix") or "")
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or not parts or not str(parts[-1]).startswith(prefix):
            found = f"a merge {merge!r} without the prefix {prefix!r}"
            raise other_format(path, found=found)


def _unknown_id(tokenizer: tokenizers.Tokenizer) -> int:
    """Return the id of the unknown token, -1 without one."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    name = model.get("unk_token")
    found = None if name is None else tokenizer.token_to_id(name)
    return -1 if found is None else found


def span_bytes(text: str, spans: np.ndarray) -> np.ndarray:
    """Return the bytes int64 [n] of text that each token stands for; they sum to those of the text.

    `spans` int64 [n, 2] are the tokens' first and last + 1 characters. A token stands for what
    comes after all tokens before it, gaps included, the last one for the rest. Of tokens that share
    a character each has one byte, but the first the remainder.
    """
    if not len(spans):
        return np.zeros(0, dtype=np.int64)
    characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + sum((characters >= bound).astype(np.int64) for bound in (0x80, 0x800, 0x10000))
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.maximum.accumulate(spans[:, 1])
    first = np.flatnonzero(np.diff(ends, prepend=-1))
    group_ends = ends[first]
    group_ends[-1] = len(characters)
    group_bytes = np.diff(bytes_before[group_ends], prepend=0)
    group_sizes = np.diff(first, append=len(spans))
    group = np.repeat(np.arange(len(first)), group_sizes)
    from_end = (first + group_sizes)[group] - 1 - np.arange(len(spans))
    counts = (from_end < group_bytes[group]).astype(np.int64)
    counts[first] = np.maximum(group_bytes - (group_sizes - 1), 0)
    return counts
