"""Text is read whole and cut into blocks without loss or invented tokens."""

import numpy as np
import pytest

from jaxedit.data import read_text, token_blocks
from jaxedit.data.tokens import leading_ids
from jaxedit.errors import FactError

TEXT = "The city of Lyon is in France. Москва, 東京, 1990!\n\nThe mother tongue is French.\n" * 40


def test_blocks_are_the_texts_tokens_in_order(byte_level):
    ids = byte_level(TEXT, add_special_tokens=False)["input_ids"]
    blocks = token_blocks(TEXT, byte_level, 32)
    assert blocks.dtype == np.int32
    assert blocks.shape == (len(ids) // 32, 32)
    assert blocks.ravel().tolist() == ids[: blocks.size]


def test_limit_takes_the_first_tokens_of_the_text(byte_level):
    blocks = token_blocks(TEXT, byte_level, 32)
    for limit in (32, 65, 200):
        assert np.array_equal(token_blocks(TEXT, byte_level, 32, limit), blocks[: limit // 32])
    assert np.array_equal(token_blocks(TEXT, byte_level, 32, 10**9), blocks)


def test_no_special_tokens_are_added(bpe_bos):
    plain = token_blocks(TEXT, bpe_bos, 16)
    assert bpe_bos.bos_token_id not in plain
    begun = token_blocks(TEXT, bpe_bos, 17, lead=leading_ids(bpe_bos))
    assert (begun[:, 0] == bpe_bos.bos_token_id).all()
    assert np.array_equal(begun[:, 1:], plain)


def test_a_file_and_a_folder_of_texts(tmp_path):
    (tmp_path / "b.txt").write_text("Второй", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / "c.md").write_text("left out", encoding="utf-8")
    assert read_text(tmp_path / "b.txt") == "Второй"
    assert read_text(str(tmp_path)) == "first\n\nВторой"


def test_what_is_no_text_is_refused(tmp_path, bpe):
    with pytest.raises(FactError, match=r"absent.txt: cannot be read"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(FactError, match=r"holds no .txt file"):
        read_text(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\xfe")
    with pytest.raises(FactError, match=r"bad.txt, line 2: byte 5 is not UTF-8"):
        read_text(tmp_path)
    (tmp_path / "bad.txt").write_text(" \n")
    with pytest.raises(FactError, match="holds no text"):
        read_text(tmp_path / "bad.txt")
    with pytest.raises(FactError, match=r"has \d+ tokens, too few for one block of 64"):
        token_blocks("Lyon", bpe, 64)
    with pytest.raises(FactError, match="from at most 10 tokens"):
        token_blocks("Lyon", bpe, 64, 10)
    with pytest.raises(FactError, match="need one token of text in a block"):
        token_blocks("Lyon", bpe, 0)
