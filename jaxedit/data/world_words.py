"""Languages and words of the embedded set, from babel (CLDR) and pycountry."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

import pycountry
from babel import Locale
from babel.core import get_global
from babel.languages import get_territory_language_info
from babel.localedata import locale_identifiers

from jaxedit.data.world_items import ENGLISH, LETTERS, MOST_WORDS, Item, clean, language_name
from jaxedit.data.world_places import WITH_ARTICLE, countries_by_code, country_names

ALIKE = 0.6  # foreign names spelled closer than this to the English one give the answer away
# Languages whose words are asked about, the best known to an English reader first.
WORD_LANGUAGES = (
    "fr", "es", "de", "it", "pt", "nl", "sv", "pl", "ru", "tr", "fi", "hu", "el", "cs", "ro", "da", "id",
    "vi", "cy", "ga", "is", "hr", "sw", "lt", "eu", "et", "sq", "lv", "sl", "ca", "sk", "af", "mt",
)  # fmt: skip
NAMED_LANGUAGES = (
    "fr", "es", "de", "it", "ru", "zh", "ja", "pt", "ar", "nl", "el", "pl", "tr", "sv", "ko", "he", "hu",
    "fi", "da", "cs", "ro", "th", "hi", "fa", "uk", "vi", "la",
)  # fmt: skip
INFLECTED = {"fi": "md"}  # kinds of words (months, days) that CLDR's date patterns hold in another case
# Close relatives: a word they share with a language above does not tell the language.
RELATIVES = ("nb", "nn", "gl", "bs", "sr_Latn", "mk", "bg", "uk", "be", "ms")


def language_items() -> Iterator[Item]:
    """Living languages written in one script, and the script."""
    scripts = {
        code: tag.split("_")[1] for code, tag in get_global("likely_subtags").items() if "_" not in code
    }
    several = {
        tag.split("_")[0]
        for tag in locale_identifiers()
        if len(tag.split("_")) > 1 and len(tag.split("_")[1]) == 4
    }
    reach = _speakers()
    for code, script in sorted(scripts.items()):
        known = (
            pycountry.languages.get(alpha_2=code) if len(code) == 2 else pycountry.languages.get(alpha_3=code)
        )
        name = language_name(code)
        living = known is not None and getattr(known, "type", "") == "L"
        if living and code not in several and clean(name) and reach[code] > 0 and script in ENGLISH.scripts:
            yield Item(name, f"{ENGLISH.scripts[script]} script", reach[code])


def _speakers() -> Counter[str]:
    """Rough number of speakers by language code; codes that name a script count for it alone."""
    countries = countries_by_code()
    total: Counter[str] = Counter()
    for code, entry in countries.items():
        for language, info in get_territory_language_info(code).items():
            total[language] += int(info["population_percent"] * entry["population"] / 100)
    return total


def words() -> Iterator[tuple[str, str, str, float]]:
    """Foreign words as (word, language, English meaning, fame): countries, languages, days and months.

    A word that another language also has is left out. The meaning is empty where the word is spelled
    nearly as in English, or is not in its dictionary form.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    found: list[tuple[str, str, str, float]] = []
    countries = {code: name for code, name in country_names().items() if not WITH_ARTICLE.search(name)}
    populations = {code: entry["population"] for code, entry in countries_by_code().items()}
    english = _vocabulary(ENGLISH, countries) | {("c", code): name for code, name in countries.items()}
    for rank, code in enumerate([*WORD_LANGUAGES, *RELATIVES]):
        for key, word in _vocabulary(Locale.parse(code), countries).items():
            owners[word.casefold()].add(code)
            if (
                code in WORD_LANGUAGES
                and len(word) > 2
                and LETTERS.fullmatch(word)
                and len(word.split()) <= MOST_WORDS
            ):
                told = (
                    "" if key[0] in INFLECTED.get(code, "m") or _alike(word, english[key]) else english[key]
                )
                found.append((word, ENGLISH.languages[code], told, _word_fame(key, rank, populations)))
    counts = Counter(word.casefold() for word, *_ in found)
    foreign = {word.casefold() for word in english.values()}
    for entry in sorted(found, key=lambda entry: (-entry[3], entry[0])):
        name = entry[0].casefold()
        if len(owners[name]) == 1 and counts[name] == 1 and name not in foreign:
            yield entry


def _vocabulary(locale: Locale, countries: Iterable[str]) -> dict[tuple[str, str], str]:
    """A language's words by kind (c country, l language, d day, m month) and key."""
    pairs = {("c", code): locale.territories.get(code, "") for code in countries}
    pairs |= {("l", code): locale.languages.get(code, "") for code in NAMED_LANGUAGES}
    pairs |= {("d", str(day)): locale.days["format"]["wide"][day] for day in range(7)}
    pairs |= {("m", str(month)): locale.months["format"]["wide"][month] for month in range(1, 13)}
    return {key: word for key, word in pairs.items() if word}


def _word_fame(key: tuple[str, str], rank: int, populations: dict[str, int]) -> float:
    """Known languages first; in each days and months, countries by population, and names of languages."""
    kind, code = key
    people = 1e9
    if kind == "c":
        people = float(populations[code])
    elif kind == "l":
        people = 1e8 / (1 + NAMED_LANGUAGES.index(code))
    return people / (1 + rank) ** 2


def _alike(word: str, meaning: str) -> bool:
    plain = unicodedata.normalize("NFD", word.casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    if plain[:4] == meaning.casefold()[:4]:
        return True
    return SequenceMatcher(None, plain, meaning.casefold(), autojunk=False).ratio() >= ALIKE
