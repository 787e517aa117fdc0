"""Plain text for statistics and perplexity: files to blocks of token ids."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxedit.data.reading import read_text_file
from jaxedit.data.tokens import Tokenizer, require_fast
from jaxedit.errors import FactError

CHARACTERS_A_TOKEN = 6
SETTLED = 64  # tokens at a cut that text beyond it could still change


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, or of all .txt files of a folder (by name, an empty line between).

    Raises:
        FactError: no such path, a folder without .txt files, a file that is not UTF-8, or no text at all.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise FactError(f"{path}: the folder holds no .txt file; give a text file or a folder of them")
        text = "\n\n".join(read_text_file(file) for file in files)
    else:
        text = read_text_file(path)
    if not text.strip():
        raise FactError(f"{path}: holds no text")
    return text


def token_blocks(
    text: str, tokenizer: Tokenizer, length: int, limit: int | None = None
) -> Int[np.ndarray, "n length"]:
    """Cut a text into int32 blocks of `length` tokens, from its start, no special tokens added.

    At most `limit` tokens are used (all where None); what does not fill a last block is left out.

    Raises:
        FactError: `length` or `limit` is below 1, the text has too few tokens for one block, or the
            tokenizer is not a fast one.
    """
    require_fast(tokenizer)
    if length < 1 or (limit is not None and limit < length):
        raise FactError(
            f"cannot make blocks of {length} tokens from at most {limit} tokens: need 1 <= length <= limit"
        )
    ids = _first_ids(text, tokenizer, limit)
    count = len(ids) // length
    if count == 0:
        raise FactError(f"the text has {len(ids)} tokens, too few for one block of {length}: use more text")
    return np.asarray(ids[: count * length], np.int32).reshape(count, length)


def _first_ids(text: str, tokenizer: Tokenizer, limit: int | None) -> list[int]:
    """Token ids of the text, the first `limit`, without tokenising much more of it than they need."""
    size = len(text) if limit is None else limit * CHARACTERS_A_TOKEN
    while True:
        ids = tokenizer(text[:size], add_special_tokens=False, verbose=False)["input_ids"]
        if size >= len(text) or (limit is not None and len(ids) >= limit + SETTLED):
            return ids[:limit]
        size *= 2
