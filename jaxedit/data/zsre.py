"""zsRE in the schema of MEND (Mitchell et al. 2022, arXiv 2110.11309)."""

from pathlib import Path

from jaxedit.data.facts import Fact
from jaxedit.data.reading import Record, load_records, take_text, take_texts
from jaxedit.errors import FactError


def load(path: str | Path, *, skip_invalid: bool = False) -> list[Fact]:
    """Read zsRE: `src` is the question, `alt` the new answer, `answers[0]` the true one.

    The locality question (`loc`, `loc_ans`) becomes the single neighborhood prompt with its own answer.
    The set has no ids: a fact is named by its record, `zsre-1` first. Published files hold some facts
    whose answers are empty or equal; they are refused unless `skip_invalid`.

    Raises:
        FactError: file, record or fact cannot be used; `skip_invalid` leaves unusable facts out instead.
    """
    return load_records(path, _to_fact, skip_invalid)


def _to_fact(record: Record, number: int, where: str) -> Fact:
    answers = take_texts(record, "answers", where)
    if not answers:
        raise FactError(f"{where}: field 'answers' is an empty list; give the true answer")
    return Fact(
        id=f"zsre-{number}",
        subject=take_text(record, "subject", where),
        prompt=take_text(record, "src", where),
        target_new=take_text(record, "alt", where),
        target_true=answers[0],
        paraphrases=(take_text(record, "rephrase", where),),
        neighborhood=(take_text(record, "loc", where),),
        neighborhood_true=(take_text(record, "loc_ans", where),),
    )
