"""This library's own file of facts: JSON Lines, one `Fact` a line."""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jaxedit.data.facts import Fact
from jaxedit.data.reading import checked, read_text_file, take_text, take_texts
from jaxedit.errors import FactError, unknown_name

LISTS = ("paraphrases", "neighborhood", "generation_prompts", "neighborhood_true")
REQUIRED = ("id", "subject", "prompt", "target_new", "target_true")
FIELDS = tuple(field.name for field in fields(Fact))


def load(path: str | Path, *, skip_invalid: bool = False) -> list[Fact]:
    """Read facts from JSON Lines; empty lines are passed over, fields other than the texts are optional.

    Raises:
        FactError: with file and line where a line is not a JSON object, has an unknown field (the nearest
            names are given), lacks a field or has one of the wrong kind; or where facts cannot be used
            (`skip_invalid` leaves those out instead).
    """
    lines = read_text_file(path).split("\n")
    facts = [_parse(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    return checked(facts, str(path), skip_invalid)


def dump_jsonl(facts: Iterable[Fact], path: str | Path) -> None:
    """Write facts as JSON Lines that `load` reads back equal. An existing file is replaced.

    Raises:
        FactError: the file cannot be written.
    """
    try:
        Path(path).write_text(jsonl(facts), encoding="utf-8", newline="\n")
    except OSError as error:
        raise FactError(f"{path}: cannot be written ({error.strerror})") from error


def jsonl(facts: Iterable[Fact]) -> str:
    """Facts as the text of such a file."""
    return "".join(json.dumps(asdict(fact), ensure_ascii=False) + "\n" for fact in facts)


def _parse(line: str, where: str) -> Fact:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise FactError(
            f"{where}, column {error.colno}: not valid JSON ({error.msg}); a line is one JSON object"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FactError(f"{where}: not readable as JSON ({error}); a line is one JSON object") from error
    if not isinstance(record, dict):
        raise FactError(f"{where}: expected a JSON object with the fields of a fact")
    for name in record:
        if name not in FIELDS:
            raise FactError(f"{where}: {unknown_name('field', name, FIELDS)}")
    values: dict[str, Any] = {
        name: take_texts(record, name, where) if name in LISTS else take_text(record, name, where)
        for name in FIELDS
        if name in record or name in REQUIRED
    }
    return Fact(**values)
