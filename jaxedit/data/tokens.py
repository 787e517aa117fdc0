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

    def get_vocab(self) -> dict[str, int]:
        """Every token's id."""
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


def target_ids(tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[int]]:
    """The ids that follow a prompt when `" " + object` is appended to it, by (prompt, object), no special tokens.

    They are what the object adds behind the prompt's last word. So a word-start marker that a SentencePiece
    tokenizer puts before an isolated text is not taken for part of the target, and a special token at the end
    of a chat prompt that takes the space after it does so here too.

    Raises:
        FactError: the object has no tokens, or special or unknown ones, or it changes those of the prompt.
    """
    pairs = list(dict.fromkeys(pairs))
    ends = [prompt[prompt.rstrip().rfind(" ") + 1 :] for prompt, _ in pairs]
    tokens = tokenize(
        tokenizer, (*ends, *(f"{end} {text}" for end, (_, text) in zip(ends, pairs, strict=True)))
    )
    special = set(tokenizer.all_special_ids)
    result: dict[tuple[str, str], list[int]] = {}
    for end, (prompt, text) in zip(ends, pairs, strict=True):
        before, whole = tokens[end].ids, tokens[f"{end} {text}"].ids
        ids = whole[len(before) :]
        if whole[: len(before)] != before:
            raise FactError(
                f"target {text!r} behind prompt {prompt!r}: the tokenizer joins it with {end!r}, so that it cannot"
                " be scored apart; end the prompt with a word"
            )
        if not ids:
            raise FactError(f"target {text!r}: the tokenizer gives it no tokens; use another target")
        if not special.isdisjoint(ids):
            raise FactError(
                f"target {text!r}: the tokenizer reads a special or unknown token in it; use another target"
            )
        result[prompt, text] = ids
    return result


def lookup_index(tokenizer: Tokenizer, text: str, subject: str) -> int:
    """Index, among the tokens of `text` without special tokens, of the last token of `subject`.

    Of several occurrences the first that stands at word boundaries counts; where none does (scripts
    without spaces, subjects inside a word) the first of all.

    Raises:
        FactError: the subject does not occur in the text, or no token covers any of it.
    """
    return find_lookup(tokenize(tokenizer, [text])[text], text, subject)


def find_lookup(tokens: Tokens, text: str, subject: str, begin: int = 0) -> int:
    """As `lookup_index` for a text already tokenised, looking at its characters from `begin` on.

    The lookup token covers the subject's last character, also where it reaches beyond it; of several
    tokens that share this character (bytes of one letter) it is the last. A character that no token covers
    was composed with the one before it (NFC: an accent with its letter), which then counts as the last.
    """
    start = subject_start(text, subject, begin)
    for last in range(start + len(subject) - 1, start - 1, -1):
        index = _last_covering(tokens, last)
        if index >= 0:
            return index
    raise FactError(
        f"no token covers subject {subject!r} in {text!r}: the tokenizer drops its characters; write it in others"
    )


def _last_covering(tokens: Tokens, character: int) -> int:
    """Index of the last token that covers a character of the text, -1 where none does."""
    index = -1
    for i, (start, end) in enumerate(tokens.offsets):
        if start <= character < end:
            index = i
        elif start > character:
            break
    return index


def find_span(tokens: Tokens, text: str, subject: str) -> tuple[int, int]:
    """Index of the first token of the subject, which is the first to cover any of it, and of its lookup token.

    A word-start marker that the tokenizer puts before a text belongs to the subject that begins it.
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
