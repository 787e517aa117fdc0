"""Strings to token ids and back to places in the string, by the tokenizer's own offsets."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxedit.errors import FactError

TEXTS_A_CALL = 4096
ANCHOR = "is"


@runtime_checkable
class Tokenizer(Protocol):
    """What this room asks of a Hugging Face tokenizer; any `PreTrainedTokenizerFast` has it."""

    @property
    def is_fast(self) -> bool:
        """Whether it can tell offsets."""
        ...

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of BOS, EOS, padding and the like."""
        ...

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Tokenise a text or a list of texts."""
        ...


class Tokens(NamedTuple):
    """A tokenised text, no special tokens: ids, and for each its characters `[start, end)` of the text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def tokenize(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Tokens]:
    """Tokenise each distinct text once, in batches, without special tokens.

    Raises:
        FactError: the tokenizer is not a fast one, so it cannot tell offsets.
    """
    require_fast(tokenizer)
    distinct = list(dict.fromkeys(texts))
    result: dict[str, Tokens] = {}
    for start in range(0, len(distinct), TEXTS_A_CALL):
        part = distinct[start : start + TEXTS_A_CALL]
        encoded = tokenizer(
            part,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        pairs = zip(part, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        result.update((text, Tokens(ids, offsets)) for text, ids, offsets in pairs)
    return result


def require_fast(tokenizer: Tokenizer) -> None:
    """FactError where the tokenizer cannot tell offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise FactError(
            f"tokenizer {type(tokenizer).__name__} is not a fast tokenizer and cannot tell which characters a"
            " token covers; load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )


def leading_ids(tokenizer: Tokenizer) -> list[int]:
    """The special tokens (BOS) that the tokenizer puts before a text; empty for GPT-2 and SmolLM2."""
    encoded = tokenizer(ANCHOR, return_special_tokens_mask=True, verbose=False)
    ids: list[int] = []
    for token, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        if not special:
            break
        ids.append(token)
    return ids


def target_ids(tokenizer: Tokenizer, objects: Iterable[str]) -> dict[str, list[int]]:
    """The ids that follow a prompt when `" " + object` is appended to it, no special tokens.

    Read off behind an anchor word, so a word-start marker that a SentencePiece tokenizer puts before an
    isolated text is not taken for part of the target. For byte-level BPE this is the same as tokenising
    `" " + object` alone.

    Raises:
        FactError: the object has no tokens, or the tokenizer joins words across the space.
    """
    distinct = list(dict.fromkeys(objects))
    anchored = tokenize(tokenizer, [f"{ANCHOR} {text}" for text in distinct])
    special = set(tokenizer.all_special_ids)
    result: dict[str, list[int]] = {}
    for text in distinct:
        tokens = anchored[f"{ANCHOR} {text}"]
        if any(start < len(ANCHOR) < end for start, end in tokens.offsets):
            raise FactError(
                f"target {text!r}: the tokenizer joins it with the word before; it cannot be scored apart"
            )
        pairs = zip(tokens.ids, tokens.offsets, strict=True)
        ids = [token for token, (start, _) in pairs if start >= len(ANCHOR) and token not in special]
        if not ids:
            raise FactError(f"target {text!r}: the tokenizer gives it no tokens; use another target")
        result[text] = ids
    return result


def lookup_index(tokenizer: Tokenizer, text: str, subject: str) -> int:
    """Index, among the tokens of `text` without special tokens, of the last token of `subject`.

    Of several occurrences the first that stands at word boundaries counts; where none does (scripts
    without spaces, subjects inside a word) the first of all.

    Raises:
        FactError: the subject does not occur in the text, or no token covers its last character.
    """
    return find_lookup(tokenize(tokenizer, [text])[text], text, subject)


def find_lookup(tokens: Tokens, text: str, subject: str, begin: int = 0) -> int:
    """As `lookup_index` for a text already tokenised, looking at its characters from `begin` on.

    The lookup token covers the subject's last character, also where it reaches beyond it; of several
    tokens that share this character (bytes of one letter) it is the last.
    """
    last = subject_start(text, subject, begin) + len(subject) - 1
    index = -1
    for i, (start, end) in enumerate(tokens.offsets):
        if start <= last < end:
            index = i
        elif start > last:
            break
    if index < 0:
        raise FactError(
            f"no token covers {text[last]!r}, the last character of subject {subject!r} in {text!r}: the"
            " tokenizer drops it; write the subject without it"
        )
    return index


def find_span(tokens: Tokens, text: str, subject: str) -> tuple[int, int]:
    """Index of the first token of the subject, which is the first to cover any of it, and of its lookup token.

    Occurrences, and errors, are those of `lookup_index`.
    """
    last = find_lookup(tokens, text, subject)
    begin = subject_start(text, subject)
    return next(i for i, (_, end) in enumerate(tokens.offsets) if end > begin), last


def subject_start(text: str, subject: str, begin: int = 0) -> int:
    """Index of the subject's first character in the text, sought from `begin` on as `lookup_index` says.

    Raises:
        FactError: the subject does not occur there.
    """
    whole = re.compile(rf"(?<!\w){re.escape(subject)}(?!\w)").search(text, begin)
    start = whole.start() if whole else text.find(subject, begin)
    if not subject or start < 0:
        raise FactError(f"subject {subject!r} does not occur in {text[begin:]!r}: write it exactly as there")
    return start
