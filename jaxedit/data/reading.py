"""Files of records: every failure names the file and the place in it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxedit.data.facts import Fact, usable, validate_all
from jaxedit.errors import FactError

Record = dict[str, Any]


def read_text_file(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        FactError: the file is missing, is a folder, or is not UTF-8 (names line and byte).
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FactError(f"{path}: cannot be read ({error.strerror}); give the path of a file") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FactError(
            f"{path}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error


def read_json(path: str | Path) -> Any:
    """The value that a JSON file holds.

    Raises:
        FactError: the file cannot be read or is not whole, valid JSON (names line and column).
    """
    try:
        return json.loads(read_text_file(path))
    except json.JSONDecodeError as error:
        raise FactError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); the file is"
            " truncated or damaged, fetch or write it again"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise FactError(f"{path}: not readable as JSON ({error}); fetch or write the file again") from error


def read_records(path: str | Path) -> list[Record]:
    """A JSON file that is a list of objects.

    Raises:
        FactError: as `read_json`, or the file holds something else, or nothing.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise FactError(f"{path}: expected a JSON list of records, found {_kind(value)}")
    if not value:
        raise FactError(f"{path}: the list of records is empty")
    for number, record in enumerate(value, start=1):
        if not isinstance(record, dict):
            raise FactError(f"{path}, record {number}: expected a JSON object, found {_kind(record)}")
    return value


def take_text(record: Record, name: str, where: str) -> str:
    """The string field `name`, white space at its ends removed; FactError where absent or of another kind."""
    value = _take(record, name, where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise FactError(f"{where}: field {name!r} must be a string, found {_kind(value)}")
    return value.strip()


def take_texts(record: Record, name: str, where: str) -> tuple[str, ...]:
    """The field `name`, a list of strings; FactError where absent or of another kind."""
    value = _take(record, name, where)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FactError(f"{where}: field {name!r} must be a list of strings, found {_kind(value)}")
    return tuple(text.strip() for text in value)


def take_record(record: Record, name: str, where: str) -> Record:
    """The field `name`, a JSON object; FactError where absent or of another kind."""
    value = _take(record, name, where)
    if not isinstance(value, dict):
        raise FactError(f"{where}: field {name!r} must be a JSON object, found {_kind(value)}")
    return value


def load_records(
    path: str | Path, to_fact: Callable[[Record, int, str], Fact], skip_invalid: bool
) -> list[Fact]:
    """Read a list of records, turn each into a fact with `to_fact(record, number, where)`, and check all.

    Raises:
        FactError: the file, a record, or (unless `skip_invalid`) a fact cannot be used.
    """
    facts = [
        to_fact(record, number, f"{path}, record {number}")
        for number, record in enumerate(read_records(path), start=1)
    ]
    return checked(facts, str(path), skip_invalid)


def checked(facts: Sequence[Fact], where: str, skip_invalid: bool) -> list[Fact]:
    """The facts after `validate_all`; with `skip_invalid` those that cannot be used are left out before."""
    kept = [fact for fact in facts if usable(fact)] if skip_invalid else list(facts)
    if not kept:
        raise FactError(f"{where}: holds no usable fact (of {len(facts)} read)")
    validate_all(kept, where)
    return kept


def _take(record: Record, name: str, where: str) -> Any:
    if name not in record:
        raise FactError(f"{where}: field {name!r} is missing; the record has {', '.join(sorted(record))}")
    return record[name]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")
