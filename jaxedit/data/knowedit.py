"""KnowEdit's ZsRE (Zhang et al. 2024, arXiv 2401.01286)."""

from pathlib import Path

from jaxedit.data.facts import Fact
from jaxedit.data.reading import Record, load_records, take_record, take_text, take_texts
from jaxedit.errors import FactError


def load(path: str | Path, *, skip_invalid: bool = False) -> list[Fact]:
    """Read KnowEdit ZsRE; every locality question becomes a neighborhood prompt with its own answer.

    Portability questions have no place in a `Fact` and are not read. The set has no ids: a fact is named
    by its record, `knowedit-1` first. KnowEdit's WikiBio is refused: it rewrites sentences of a passage
    and states no true answer to edit away from.

    Raises:
        FactError: file, record or fact cannot be used; `skip_invalid` leaves unusable facts out instead.
    """
    return load_records(path, _to_fact, skip_invalid)


def _to_fact(record: Record, number: int, where: str) -> Fact:
    if "concept" in record and "labels" in record:
        raise FactError(
            f"{where}: this is KnowEdit's WikiBio, which names no subject-object fact and no true answer;"
            " use its ZsRE file, or write facts as JSONL"
        )
    answers = take_texts(record, "ground_truth", where)
    if not answers:
        raise FactError(f"{where}: field 'ground_truth' is an empty list; give the true answer")
    questions = [
        (take_text(question, "prompt", where), _first_answer(question, where))
        for questions in take_record(record, "locality", where).values()
        for question in _records(questions, where)
    ]
    return Fact(
        id=f"knowedit-{number}",
        subject=take_text(record, "subject", where),
        prompt=take_text(record, "prompt", where),
        target_new=take_text(record, "target_new", where),
        target_true=answers[0],
        paraphrases=(take_text(record, "rephrase_prompt", where),),
        neighborhood=tuple(prompt for prompt, _ in questions),
        neighborhood_true=tuple(answer for _, answer in questions),
    )


def _records(value: object, where: str) -> list[Record]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise FactError(
            f"{where}: each entry of 'locality' must be a list of objects with prompt and ground_truth"
        )
    return value


def _first_answer(question: Record, where: str) -> str:
    if isinstance(question.get("ground_truth"), list):
        answers = take_texts(question, "ground_truth", where)
        return answers[0] if answers else ""
    return take_text(question, "ground_truth", where)
