"""CounterFact (Meng et al. 2022, arXiv 2202.05262), in its original and in its flat schema."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxedit.data.facts import Fact
from jaxedit.data.reading import Record, load_records, read_json, take_record, take_text, take_texts
from jaxedit.errors import FactError


def load(path: str | Path, *, skip_invalid: bool = False) -> list[Fact]:
    """Read CounterFact; the schema is told record by record from its fields.

    The original schema has `requested_rewrite`, whose prompt carries "{}" for the subject, and lists of
    paraphrase, neighborhood and generation prompts. The flat schema has the prompt filled in, one
    paraphrase and one neighborhood prompt (`rebuild_neighborhood` finds more).

    Raises:
        FactError: file, record or fact cannot be used; `skip_invalid` leaves unusable facts out instead.
    """
    return load_records(path, _to_fact, skip_invalid)


def _to_fact(record: Record, number: int, where: str) -> Fact:
    return _from_original(record, where) if "requested_rewrite" in record else _from_flat(record, where)


def _from_original(record: Record, where: str) -> Fact:
    rewrite = take_record(record, "requested_rewrite", where)
    template, subject = take_text(rewrite, "prompt", where), take_text(rewrite, "subject", where)
    if "{}" not in template:
        raise FactError(f"{where}: prompt {template!r} has no {{}} where the subject {subject!r} belongs")
    return Fact(
        id=take_text(record, "case_id", where),
        subject=subject,
        prompt=template.replace("{}", subject),
        target_new=take_text(take_record(rewrite, "target_new", where), "str", where),
        target_true=take_text(take_record(rewrite, "target_true", where), "str", where),
        paraphrases=take_texts(record, "paraphrase_prompts", where),
        neighborhood=take_texts(record, "neighborhood_prompts", where),
        generation_prompts=take_texts(record, "generation_prompts", where),
        relation=take_text(rewrite, "relation_id", where) if "relation_id" in rewrite else "",
    )


def _from_flat(record: Record, where: str) -> Fact:
    true = take_text(record, "ground_truth", where)
    answer = take_text(record, "locality_ground_truth", where)
    return Fact(
        id=take_text(record, "case_id", where),
        subject=take_text(record, "subject", where),
        prompt=take_text(record, "prompt", where),
        target_new=take_text(record, "target_new", where),
        target_true=true,
        paraphrases=(take_text(record, "rephrase_prompt", where),),
        neighborhood=(take_text(record, "locality_prompt", where),),
        neighborhood_true=() if answer == true else (answer,),
    )


def rebuild_neighborhood(
    facts: Sequence[Fact], templates: str | Path, *, count: int = 10, seed: int = 0
) -> list[Fact]:
    """Give flat CounterFact facts up to `count` neighborhood prompts, and their relation ids.

    `templates` is a JSON file: fact id -> [relation id, template with "{}"], null where unknown. A
    neighborhood prompt is another fact's: same relation, same true object, its subject in its template.
    Facts without a template, or without a companion, keep their own prompts.

    Raises:
        FactError: the file cannot be read, or an entry is neither null nor such a pair.
    """
    known = _read_templates(templates)
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for fact in facts:
        if fact.id in known:
            relation, template = known[fact.id]
            groups[relation, fact.target_true].append((fact.subject, template))
    rng = np.random.default_rng(seed)
    return [_with_companions(fact, known, groups, count, rng) for fact in facts]


def _with_companions(
    fact: Fact,
    known: dict[str, tuple[str, str]],
    groups: dict[tuple[str, str], list[tuple[str, str]]],
    count: int,
    rng: np.random.Generator,
) -> Fact:
    if fact.id not in known:
        return fact
    relation = known[fact.id][0]
    group = groups[relation, fact.target_true]
    others = {subject: template for subject, template in group if subject != fact.subject}
    if not others:
        return replace(fact, relation=relation)
    subjects = sorted(others)
    drawn = rng.permutation(len(subjects))[:count]
    prompts = tuple(others[subjects[i]].replace("{}", subjects[i]).strip() for i in drawn)
    return replace(fact, relation=relation, neighborhood=prompts, neighborhood_true=())


def _read_templates(path: str | Path) -> dict[str, tuple[str, str]]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise FactError(f"{path}: expected an object, fact id -> [relation id, template]")
    known = {}
    for name, entry in value.items():
        if entry is None or (isinstance(entry, list) and entry[:1] == [None]):
            continue
        pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
        if not pair or "{}" not in entry[1]:
            raise FactError(f"{path}, entry {name!r}: expected [relation id, template with {{}}] or null")
        known[name] = (entry[0], entry[1])
    return known
