"""Hypothesis strategies: documents and files that were good once."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", " ", "{}", "\x00",
    "\ud800", "../../etc/passwd", "/etc/passwd", "a" * 5000, [], {}, [[]], [None], {"": None}, [2**62, 2**62],
)  # fmt: skip
TOKENS = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"1e999", b"-1", b"\n",
    b"\r", b"NaN", b"null", b"{}", b"[]", b'""', b"\\ud800", b"\x0b", b"../", b"99999999999999999999",
)  # fmt: skip

VALUES = st.sampled_from(HOSTILE) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def documents(draw: st.DrawFn, good: Any, edits: int = 3) -> Any:
    """A JSON value that was `good` before up to `edits` of its parts were replaced, removed, added or renamed."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, edits))):
        value = _edited(draw, value)
    return value


def _edited(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return copy.deepcopy(draw(VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    match draw(st.sampled_from(("deeper", "deeper", "replace", "remove", "add", "rename"))):
        case "deeper" | "replace" as how:
            value[key] = _edited(draw, value[key]) if how == "deeper" else copy.deepcopy(draw(VALUES))
        case "remove":
            del value[key]
        case "add" if isinstance(value, dict):
            value[draw(st.text(max_size=8))] = copy.deepcopy(draw(VALUES))
        case "rename" if isinstance(value, dict):
            value[draw(st.text(max_size=8) | st.just(str(key) + "x"))] = value.pop(key)
        case _:
            value.append(copy.deepcopy(draw(VALUES))) if isinstance(value, list) else None
    return value


@st.composite
def contents(draw: st.DrawFn, good: bytes, edits: int = 3) -> bytes:
    """Bytes of a file that was `good` before some were flipped, cut, doubled, put in or taken out."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, edits))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(("flip", "cut", "token", "bytes", "remove", "double"))):
            case "flip" if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[place:]
            case "token":
                content[place : place + length] = draw(st.sampled_from(TOKENS))
            case "bytes":
                content[place:place] = draw(st.binary(max_size=20))
            case "remove":
                del content[place : place + length]
            case _:
                content[place:place] = content[place : place + length]
    return bytes(content)


def json_files(good: Any) -> st.SearchStrategy[bytes]:
    """JSON files: well-formed ones with other content, damaged ones, and anything at all."""
    whole = json.dumps(good).encode()
    return (
        documents(good).map(lambda value: json.dumps(value).encode())
        | contents(whole)
        | st.binary(max_size=64)
    )
