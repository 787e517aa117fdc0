"""Running text to `TextBatch`es: what editors that learn from text read."""

from typing import Any

import numpy as np

from jaxedit.data.corpus import token_blocks
from jaxedit.data.tokens import Tokenizer
from jaxedit.errors import FactError
from jaxedit.types import TextBatch


def encode_text(
    text: str, tokenizer: Tokenizer, *, length: int, batch: int, limit: int | None = None
) -> list[TextBatch]:
    """A text in its order as batches of `batch` rows of `length` tokens, numpy int32 and bool.

    At most `limit` tokens are used (all where None). The last batch is filled up with rows of padding; what
    does not fill a last row is left out. `read_text` gives the text of a file or folder.

    Raises:
        FactError: `batch` is below 1, `length` is below 2 (nothing to predict), or as `token_blocks`.
    """
    if batch < 1 or length < 2:
        raise FactError(
            f"cannot make batches of {batch} rows of {length} tokens: need batch >= 1, length >= 2"
        )
    blocks = token_blocks(text, tokenizer, length, limit)
    count = -(-len(blocks) // batch)
    tokens: Any = np.zeros((count * batch, length), np.int32)
    tokens[: len(blocks)] = blocks
    valid: Any = np.zeros(tokens.shape, bool)
    valid[: len(blocks)] = True
    return [TextBatch(tokens[i : i + batch], valid[i : i + batch]) for i in range(0, len(tokens), batch)]
