"""A text stream's batches are its blocks in order, with padding marked."""

import numpy as np
import pytest

from jaxedit.data import encode_text, read_text, token_blocks
from jaxedit.errors import FactError

TEXT = "The city of Lyon is in France. Москва, 東京, 1990!\n\nThe mother tongue is French.\n" * 20


@pytest.mark.parametrize("batch", [1, 3, 10_000])
def test_batches_are_the_texts_blocks_in_order(byte_level, batch):
    blocks = token_blocks(TEXT, byte_level, 16)
    batches = encode_text(TEXT, byte_level, length=16, batch=batch)
    assert len(batches) == -(-len(blocks) // batch)
    assert all(part.tokens.shape == part.valid.shape == (batch, 16) for part in batches)
    assert all(part.tokens.dtype == np.int32 and part.valid.dtype == bool for part in batches)
    tokens, valid = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert np.array_equal(tokens[: len(blocks)], blocks)
    assert valid[: len(blocks)].all()
    assert not valid[len(blocks) :].any()


def test_a_folder_and_a_limit(byte_level, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "b.txt").write_text(TEXT, encoding="utf-8")
    (part,) = encode_text(read_text(tmp_path), byte_level, length=16, batch=4, limit=64)
    assert np.array_equal(part.tokens, token_blocks(TEXT, byte_level, 16)[:4])


@pytest.mark.parametrize(("length", "batch"), [(1, 4), (16, 0)])
def test_batches_without_anything_to_predict_are_refused(byte_level, length, batch):
    with pytest.raises(FactError, match="need batch >= 1, length >= 2"):
        encode_text(TEXT, byte_level, length=length, batch=batch)
