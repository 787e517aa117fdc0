"""Everything jaxedit refuses, by kind. Each message says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class JaxeditError(Exception):
    """Base of all errors this library raises on bad input."""


class FactError(JaxeditError):
    """A fact, or a file of facts, cannot be used: names the file, the line or the fact's id."""


class ModelError(JaxeditError):
    """A model cannot be found, read or written: names the folder, the tensors and the architecture."""


class ConfigError(JaxeditError):
    """A setting is unknown or out of range: names the setting and the values that are allowed."""


class StatisticsError(JaxeditError):
    """Second moments are missing, not finite, or belong to another model."""


class RunError(JaxeditError):
    """A run folder cannot be created, continued or read."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that is not in `known`: the nearest valid names first, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}."
