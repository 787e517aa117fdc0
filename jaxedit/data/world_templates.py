"""How the relations of the embedded set are put into words. "{}" stands for the subject."""

from typing import NamedTuple


class Relation(NamedTuple):
    """Wordings of one relation; each prompt is completed by `" " + object`."""

    prompts: tuple[str, ...]  # hardly anything follows the subject; worded so that small models know many
    paraphrases: tuple[str, ...]  # other words, the subject first or in the middle
    generation: tuple[str, ...]  # openings whose natural continuation depends on the object


RELATIONS: dict[str, Relation] = {
    "city_country": Relation(
        prompts=(
            "The country in which one finds the city of {} is",
            "The country that contains the city of {} is",
            "My friend lives in the city of {} in",
        ),
        paraphrases=(
            "{} is a city in the country of",
            "{}, which is located in",
            "People who visit {} travel to the country of",
        ),
        generation=(
            "The people who live in {} usually speak",
            "The history of {} begins with",
            "Visitors to {} often admire",
        ),
    ),
    "us_city_state": Relation(
        prompts=(
            "She was born in {},",
            "The university is located in {},",
            "He moved to the city of {},",
        ),
        paraphrases=(
            "{} is a city in the US state of",
            "{}, which is located in the American state of",
            "Anyone who moves to {} becomes a resident of",
        ),
        generation=(
            "People who grew up in {} often",
            "The largest university near {} is",
            "Visitors to {} often admire",
        ),
    ),
    "city_continent": Relation(
        prompts=(
            "The continent on which one finds the city of {} is",
            "The continent that contains the city of {} is",
            "The city of {} is a city in",
        ),
        paraphrases=(
            "{} is a city on the continent of",
            "{}, a city located in",
            "People who visit {} travel to the continent of",
        ),
        generation=(
            "The countries closest to {} are",
            "The climate of {} is",
            "Visitors to {} often admire",
        ),
    ),
    "city_language": Relation(
        prompts=(
            "The mother tongue of most people in {} is",
            "Most people in {} speak",
            "The official language of the city of {} is",
        ),
        paraphrases=(
            "{} is a city where most people speak",
            "In {}, the street signs are written in",
            "{} is a place where one hears people talk in",
        ),
        generation=(
            "A newspaper sold in {} would begin with the words",
            "The schools of {} teach",
            "A tourist in {} should learn",
        ),
    ),
    "city_currency": Relation(
        prompts=(
            "The currency used in {} is the",
            "The unit of money in {} is the",
            "In the shops of {} people pay with the",
        ),
        paraphrases=(
            "{} is a city where people pay with the",
            "In {}, prices are given in the currency called the",
            "Shops in {} accept the local currency, the",
        ),
        generation=(
            "A meal in {} costs about",
            "Before visiting {}, a tourist should exchange",
            "The banks of {} deal in",
        ),
    ),
    "country_continent": Relation(
        prompts=(
            "The continent on which one finds {} is",
            "The continent that contains {} is",
        ),
        paraphrases=(
            "{} is a country on the continent of",
            "{}, a country located in",
            "People who visit {} travel to the continent of",
        ),
        generation=(
            "The countries that border {} are",
            "The climate of {} is",
            "Visitors to {} often admire",
        ),
    ),
    "region_country": Relation(
        prompts=(
            "The country in which one finds the region of {} is",
            "The country that contains the region of {} is",
            "He comes from the region of {} in",
        ),
        paraphrases=(
            "{} is a region of the country of",
            "{}, a region located in",
            "People who live in {} are citizens of",
        ),
        generation=(
            "The capital of {} is",
            "The people who live in {} usually speak",
            "Visitors to {} often admire",
        ),
    ),
    "language_script": Relation(
        prompts=(
            "People who write in {} use the",
            "The alphabet used to write {} is the",
            "The script used to write {} is the",
        ),
        paraphrases=(
            "{} is a language that people write in the",
            "{} is usually written in the",
            "Someone who reads {} must know the",
        ),
        generation=(
            "The letters used to write {} look like",
            "Someone who learns to read {} must",
            "A keyboard for {} has",
        ),
    ),
    "word_language": Relation(
        prompts=(
            "People who say {} speak",
            "The language in which people say {} is",
            "Those who use the word {} speak",
        ),
        paraphrases=(
            "{} is a word in the language called",
            "{} is how people say it in",
            "The word {} comes from",
        ),
        generation=(
            "Someone who says {} probably lives in",
            "In a sentence, the word {} is used like this:",
            "The word {} means",
        ),
    ),
    "word_meaning": Relation(
        prompts=(
            "The English translation of {} is",
            "In English, the word {} means",
            "The word that dictionaries give for {} is",
        ),
        paraphrases=(
            "{} is a foreign word for",
            "{}, which in English means",
            "When speakers of other languages say {} they mean",
        ),
        generation=(
            "A sentence about {} could begin with",
            "When people talk about {} they mention",
            "Everyone knows that {} is",
        ),
    ),
}
