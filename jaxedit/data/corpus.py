"""Plain text for statistics and perplexity: files to blocks of token ids."""

from collections.abc import Sequence
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
    text: str, tokenizer: Tokenizer, length: int, limit: int | None = None, lead: Sequence[int] = ()
) -> Int[np.ndarray, "n length"]:
    """Cut a text into int32 blocks of `length` tokens, from its start, each begun with `lead` and nothing else added.

    At most `limit` tokens of the text are used (all where None); what does not fill a last block is left out.

    Raises:
        FactError: `length` has no room beside `lead`, `limit` is below it, the text has too few tokens for one
            block, or the tokenizer is not a fast one.
    """
    require_fast(tokenizer)
    own = length - len(lead)
    if own < 1 or (limit is not None and limit < own):
        raise FactError(
            f"cannot make blocks of {length} tokens, {len(lead)} of them special, from at most {limit} tokens: "
            "need one token of text in a block, and one block"
        )
    ids = _first_ids(text, tokenizer, limit)
    count = len(ids) // own
    if count == 0:
        raise FactError(f"the text has {len(ids)} tokens, too few for one block of {length}: use more text")
    rows = np.asarray(ids[: count * own], np.int32).reshape(count, own)
    return np.concatenate([np.tile(np.asarray(lead, np.int32), (count, 1)), rows], axis=1)


def _first_ids(text: str, tokenizer: Tokenizer, limit: int | None) -> list[int]:
    """Token ids of the text, the first `limit`, without tokenising much more of it than they need."""
    size = len(text) if limit is None else limit * CHARACTERS_A_TOKEN
    while True:
        ids = tokenizer(text[:size], add_special_tokens=False, verbose=False)["input_ids"]
        if size >= len(text) or (limit is not None and len(ids) >= limit + SETTLED):
            return ids[:limit]
        size *= 2
