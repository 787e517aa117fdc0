"""A fact to edit, and what makes it usable."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jaxedit.errors import FactError

SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Fact:
    """One piece of knowledge and what it is to become.

    `prompt` is the filled-in text; it contains `subject`, ends without a space, and is completed by
    `" " + target_true` before the edit and by `" " + target_new` after it. `paraphrases` ask the same in
    other words. `neighborhood` prompts ask about other subjects and must keep their answers, which are
    `neighborhood_true` where given (one for each prompt), else `target_true`.
    """

    id: str
    subject: str
    prompt: str
    target_new: str
    target_true: str
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    relation: str = ""
    neighborhood_true: tuple[str, ...] = ()

    def neighborhood_answers(self) -> tuple[str, ...]:
        """The answer that each neighborhood prompt must keep."""
        return self.neighborhood_true or (self.target_true,) * len(self.neighborhood)

    def bare(self) -> "Fact":
        """The fact scored on its prompt alone."""
        return replace(self, paraphrases=(), neighborhood=(), neighborhood_true=())


def validate(fact: Fact, where: str) -> None:
    """Check one fact; `where` is the place it came from, such as `file.json, record 3`.

    Raises:
        FactError: with all that is wrong with the fact, the place, its id, and what to do.
    """
    found = list(_problems(fact))
    if found:
        raise FactError(f"{where}: fact {fact.id!r} cannot be used: {'; '.join(found)}.")


def usable(fact: Fact) -> bool:
    """Whether `validate` accepts the fact."""
    return next(_problems(fact), None) is None


def validate_all(facts: Iterable[Fact], where: str) -> None:
    """Check a set of facts, their ids included, and report the first problems together.

    Raises:
        FactError: listing up to ten unusable or doubled facts, each with its position in the set.
    """
    first_place: dict[str, str] = {}
    found: list[str] = []
    count = unusable = 0
    for number, fact in enumerate(facts, start=1):
        place = f"{where}, fact {number}"
        bad = list(_problems(fact))
        unusable += bool(bad)
        if fact.id in first_place:
            bad.append(f"the id is also used by {first_place[fact.id]}: give each fact its own id")
        first_place.setdefault(fact.id, place)
        if bad:
            count += 1
            if len(found) < SHOWN_PROBLEMS:
                found.append(f"{place} (id {fact.id!r}): {'; '.join(bad)}")
    if count:
        remedy = "Correct them"
        if unusable:
            remedy += ", or leave them out with --skip-invalid (in Python skip_invalid=True)"
        more = f"\n  ... and {count - len(found)} more" if count > len(found) else ""
        lines = "\n  ".join(found)
        raise FactError(f"{where}: {count} fact(s) cannot be used. {remedy}:\n  {lines}{more}")


def _problems(fact: Fact) -> Iterator[str]:
    if not fact.id:
        yield "the id is empty: give each fact an id of its own"
    for name, text in (("id", fact.id), ("relation", fact.relation)):
        yield from _character_problems(name, text)
    yield from _text_problems("subject", fact.subject)
    yield from _text_problems("prompt", fact.prompt)
    yield from _text_problems("target_new", fact.target_new)
    yield from _text_problems("target_true", fact.target_true)
    if fact.subject.strip() and fact.subject.strip() not in fact.prompt:
        yield (
            f"subject {fact.subject!r} does not occur in prompt {fact.prompt!r}: write the subject exactly as"
            " the prompt does, capitals included"
        )
    if fact.target_new.strip() and fact.target_new.strip() == fact.target_true.strip():
        yield f"target_new and target_true are both {fact.target_new!r}: there is nothing to edit"
    for name, texts in (
        ("paraphrases", fact.paraphrases),
        ("neighborhood", fact.neighborhood),
        ("generation_prompts", fact.generation_prompts),
        ("neighborhood_true", fact.neighborhood_true),
    ):
        for index, text in enumerate(texts):
            yield from _text_problems(f"{name}[{index}]", text)
    if fact.neighborhood_true and len(fact.neighborhood_true) != len(fact.neighborhood):
        yield (
            f"neighborhood_true has {len(fact.neighborhood_true)} answers for {len(fact.neighborhood)}"
            " neighborhood prompts: give one for each prompt, or none where target_true is the answer"
        )


def _text_problems(name: str, text: str) -> Iterator[str]:
    if not text.strip():
        yield f"{name} is empty"
    elif text != text.strip():
        yield f"{name} {text!r} has white space at an end: remove it (the target is joined by one space)"
    yield from _character_problems(name, text)


def _character_problems(name: str, text: str) -> Iterator[str]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        yield f"{name} {text!r} has half a character (a lone surrogate) at place {error.start}: write it anew"
