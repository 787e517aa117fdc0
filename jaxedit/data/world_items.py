"""What the relations of the embedded set relate: subjects, objects, and which names are fit for them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from babel import Locale

LETTERS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
LAST_LATIN = "\u024f"
MOST_WORDS = 3
ENGLISH = Locale("en")


@dataclass(frozen=True)
class Item:
    """A subject with its object; `fame` orders the items of a relation, the best known first."""

    subject: str
    object: str
    fame: float
    shown: str = ""  # the subject as it stands in a sentence ("the Philippines"), where that differs

    def leaks(self) -> bool:
        """Whether the subject gives its object away by containing it, or the other way round."""
        subject = self.subject.casefold()
        return names(subject, self.object) or subject in self.object.casefold()


def names(subject: str, name: str) -> bool:
    """Whether the subject contains an object's name (of "Arabic script" its first word)."""
    return name.removesuffix(" script").casefold() in subject.casefold()


def language_name(code: str) -> str:
    """The common English name of a language; empty where there is none."""
    return "Bengali" if code == "bn" else ENGLISH.languages.get(code, "")


def clean(name: str) -> bool:
    """Letters of Latin-script languages, single spaces, hyphens and apostrophes; no other signs."""
    return bool(LETTERS.fullmatch(name)) and max(name) <= LAST_LATIN


def distinct(items: Iterable[Item], taken: set[str]) -> list[Item]:
    """Items whose subject, capitals aside, is not yet taken and does not leak; adds theirs to `taken`."""
    kept = []
    for item in sorted(items, key=lambda item: (-item.fame, item.subject)):
        if item.subject.casefold() not in taken and not item.leaks():
            taken.add(item.subject.casefold())
            kept.append(item)
    return kept
