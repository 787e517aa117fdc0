"""Facts that a model is to recall, with nothing to write in their place: what causal tracing reads."""

from dataclasses import dataclass
from pathlib import Path

from jaxedit.data.facts import Fact
from jaxedit.data.reading import Record, read_records, take_text
from jaxedit.data.sources import load_facts
from jaxedit.errors import FactError

TELLING = frozenset({"known_id", "attribute"})


@dataclass(frozen=True)
class KnownFact:
    """`prompt` contains `subject`, ends without a space, and is completed by `" " + object`."""

    id: str
    subject: str
    prompt: str
    object: str


def load_known(
    name_or_path: str | Path, *, limit: int | None = None, seed: int = 0, skip_invalid: bool = False
) -> list[KnownFact]:
    """Known facts of a JSON list in the schema of Meng et al. 2022 (`known_id, subject, prompt, attribute`).

    Any other source of facts is read by `load_facts`, as `skip_invalid` says, and its true objects are taken.

    Raises:
        FactError: as `load_facts`; a record lacks a field, a field is empty, or the prompt does not
            contain the subject.
    """
    path = Path(name_or_path)
    if path.suffix == ".json" and path.is_file() and set((records := read_records(path))[0]) >= TELLING:
        if limit is not None and limit < 1:
            raise FactError(f"limit is {limit}: ask for at least one fact, or None for all")
        return [
            _to_known(record, f"{path}, record {number}")
            for number, record in enumerate(records[:limit], start=1)
        ]
    facts = load_facts(name_or_path, seed=seed, limit=limit, skip_invalid=skip_invalid)
    return [as_known(fact) for fact in facts]


def as_known(fact: Fact) -> KnownFact:
    """What a fact says before it is edited."""
    return KnownFact(fact.id, fact.subject, fact.prompt, fact.target_true)


def _to_known(record: Record, where: str) -> KnownFact:
    fact = KnownFact(
        id=take_text(record, "known_id", where),
        subject=take_text(record, "subject", where),
        prompt=take_text(record, "prompt", where),
        object=take_text(record, "attribute", where),
    )
    empty = [name for name in ("subject", "prompt", "object") if not getattr(fact, name)]
    if empty:
        raise FactError(f"{where}: {', '.join(empty)} must not be empty (object is the field 'attribute')")
    if fact.subject not in fact.prompt:
        raise FactError(
            f"{where}: subject {fact.subject!r} does not occur in prompt {fact.prompt!r}: write it exactly as there"
        )
    return fact
