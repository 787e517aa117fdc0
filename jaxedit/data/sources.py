"""From a name or a path to a list of facts."""

from collections.abc import Callable
from pathlib import Path

from jaxedit.data import counterfact, knowedit, records, world, zsre
from jaxedit.data.facts import Fact
from jaxedit.data.reading import read_records, read_text_file
from jaxedit.errors import FactError, unknown_name

EMBEDDED = ("world",)

# Schema name, the fields that tell it, its loader; the first that fits is taken.
SCHEMAS: tuple[tuple[str, frozenset[str], Callable[..., list[Fact]]], ...] = (
    ("CounterFact", frozenset({"requested_rewrite"}), counterfact.load),
    ("flat CounterFact", frozenset({"locality_prompt", "ground_truth"}), counterfact.load),
    ("zsRE", frozenset({"src", "alt"}), zsre.load),
    ("KnowEdit ZsRE", frozenset({"locality", "ground_truth", "target_new"}), knowedit.load),
    ("KnowEdit WikiBio", frozenset({"concept", "labels"}), knowedit.load),
)


def load_facts(
    name_or_path: str | Path, *, seed: int = 0, limit: int | None = None, skip_invalid: bool = False
) -> list[Fact]:
    """Facts from the embedded set ("world", drawn with `seed`) or from a file whose schema is detected.

    A `.jsonl` file is read as this library's own; any other as a JSON list in the schema of CounterFact,
    flat CounterFact, zsRE or KnowEdit ZsRE. The first `limit` facts are returned, all where None.

    Raises:
        FactError: the name is unknown (the known ones are given), no schema fits, or the file, a record or
            a fact cannot be used (`skip_invalid` leaves unusable facts of a file out instead).
    """
    if limit is not None and limit < 1:
        raise FactError(f"limit is {limit}: ask for at least one fact, or None for all")
    if str(name_or_path) in EMBEDDED:
        return world.world_facts(seed)[:limit]
    path = Path(name_or_path)
    if not path.exists():
        kind = "set of facts (and there is no such file)"
        raise FactError(
            unknown_name(kind, str(name_or_path), EMBEDDED) + " Or give the path of a .json or .jsonl file."
        )
    return _loader(path)(path, skip_invalid=skip_invalid)[:limit]


def stated(path: str | Path) -> int:
    """How many facts a file states, those that cannot be used included. Raises FactError as `load_facts`."""
    if Path(path).suffix == ".jsonl":
        return sum(bool(line.strip()) for line in read_text_file(path).split("\n"))
    return len(read_records(path))


def _loader(path: Path) -> Callable[..., list[Fact]]:
    if path.suffix == ".jsonl":
        return records.load
    names = set(read_records(path)[0])
    for _, telling, loader in SCHEMAS:
        if telling <= names:
            return loader
    known = "; ".join(f"{name} ({', '.join(sorted(telling))})" for name, telling, _ in SCHEMAS[:-1])
    raise FactError(
        f"{path}: no known schema has the fields {', '.join(sorted(names)) or '(none)'}. Known schemas and"
        f" the fields that tell them: {known}. Or write one fact a line as .jsonl."
    )
