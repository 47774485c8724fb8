"""Loading validation text: the bytes of each target, and what bad folders are told."""

import numpy as np
import pytest
import torch
from shard_files import write_token_set

from paramgolf.errors import ParamGolfError
from paramgolf.scoring.text import load_text


@pytest.fixture
def folder(tmp_path):
    write_tokens(tmp_path, [1, 5, 6, 1, 7], [0, 2, 3, 0, 4])
    return tmp_path


def write_tokens(folder, tokens, byte_counts):
    parts = [np.array(part, dtype=np.uint16) for part in (tokens[:2], tokens[2:], byte_counts)]
    write_token_set(folder, val=parts[:2], val_bytes=parts[2:], vocab_size=8)


def test_target_j_is_token_j_plus_one_with_its_own_bytes(folder):
    text = load_text(folder, 8, None)
    assert len(text) == 4
    assert text.tokens.tolist() == [1, 5, 6, 1, 7]
    assert text.byte_counts.tolist() == [2, 3, 0, 4]


def test_max_tokens_keeps_the_first_targets(folder):
    text = load_text(folder, 8, 2)
    assert text.tokens.tolist() == [1, 5, 6]
    assert text.byte_counts.tolist() == [2, 3]
    assert len(load_text(folder, 8, 99)) == 4


def test_rows_are_padded_on_the_right(folder):
    source = load_text(folder, 8, None).padded_tokens(3, torch.device("cpu"))
    assert source.tolist() == [1, 5, 6, 1, 7, 0, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "byte_counts", "vocab", "message"),
    [
        ([1, 5, 6], [0, 2], 8, r"differ in number(.|\n)*3 byte counts(.|\n)*found: 2"),
        ([5, 1, 6], [2, 0, 3], 8, r"does not begin with a document(.|\n)*found: token 5"),
        ([1, 5, 8], [0, 2, 3], 8, r"not in the vocabulary(.|\n)*below 8(.|\n)*found: 8"),
        ([1, 5, 6], [0, 2, 3], 9, r"different vocabularies(.|\n)*9 tokens(.|\n)*found: 8"),
        ([1], [0], 8, r"no validation text(.|\n)*1 tokens"),
    ],
)
def test_bad_folders_are_named(tmp_path, tokens, byte_counts, vocab, message):
    write_tokens(tmp_path, tokens, byte_counts)
    with pytest.raises(ParamGolfError, match=message):
        load_text(tmp_path, vocab, None)
