"""Every family's tokenizer: what is encoded piece by piece is what one text gives, told by decoding alone."""

import unicodedata

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxedit.data import Fact, encode_probes, encode_requests, encode_trace, join_context
from jaxedit.data.contexts import MEMIT_OPENINGS, sample_contexts
from jaxedit.data.known import KnownFact
from jaxedit.data.prompts import encode_prompts
from jaxedit.data.tokens import leading_ids
from jaxedit.errors import FactError
from jaxedit.models.sources import load_tokenizer
from tests.data.conftest import real_tokenizer
from tests.data.published import PUBLISHED

CONTEXTS = ("", "The city of Lyon is old", "It's 1990, and nobody's there")
SUBJECTS = (
    ("Lyon", "Lyon is in the country of"),  # at the start
    ("Lyon", "The city of Lyon is in"),
    ("Lyon", "The country of Lyon"),
    ("Lyon", "In Lyon, the twin of Lyon is"),  # repeated
    ("Lyon", "Lyonnais people of Lyon say"),
    ("Danielle Darrieux", "Danielle Darrieux's mother tongue is"),
    ("Lyon", "What is (Lyon)? It is"),  # punctuation
    ("AT&T, Inc.", "The firm AT&T, Inc. is in"),
    ("Łódź (Poland)", "Łódź (Poland) is in"),
    ("Who?", "The song Who? is by"),
    ("O'Neil", "O'Neil's team is"),
    ("1990", "In the year 1990 it was"),  # digits
    ("1990", "It happened in the mid-1990s when"),
    ("Apollo 11", "Apollo 11 was launched by"),
    ("Москва", "Где Москва? Она"),
    ("東京", "東京都は"),
    ("北京", "中国的首都是北京吗"),
    ("القاهرة", "عاصمة مصر هي القاهرة في"),
    ("서울", "서울은 어디에 있습니까"),
    ("दिल्ली", "दिल्ली शहर"),
    ("🎉", "The emoji 🎉 means"),
    ("🎉", "🎉"),
    ("👩‍👩‍👧", "A 👩‍👩‍👧 is called"),
    (
        "Sa\u0303o Tome\u0301",
        "The island of Sa\u0303o Tome\u0301 is near",
    ),  # accents apart from their letters
    ("\u1112\u1161\u11ab", "\u1112\u1161\u11ab is a word of"),
)
TARGETS = ("France", "São Paulo", "日本", "the Ivory Coast", "1990", "U.S.", '"Lyon"', "القاهرة", "🎉", "'s")
FACTS = [
    Fact(str(i), subject, prompt, TARGETS[i % len(TARGETS)], TARGETS[(i + 1) % len(TARGETS)], (prompt,))
    for i, (subject, prompt) in enumerate([*SUBJECTS, *SUBJECTS[:3], *SUBJECTS[:3]])
]


@pytest.fixture(scope="session", params=[*PUBLISHED, "real gpt2", "real pythia"])
def family(request, tmp_path_factory):
    """A family's tokenizer as it is loaded from a folder, and the same as its file alone describes it."""
    if request.param.startswith("real "):
        loaded = real_tokenizer(request.param.removeprefix("real "))
        return loaded, loaded.backend_tokenizer, 0
    folder = tmp_path_factory.mktemp("tokenizer")
    published = PUBLISHED[request.param]
    plain = published.save(folder)
    return load_tokenizer(folder), plain, published.leading


def ids_of(plain: Tokenizer, text: str) -> list[int]:
    return plain.encode(text).ids


def read(plain: Tokenizer, ids: list[int]) -> str:
    return unicodedata.normalize("NFC", plain.decode(ids, skip_special_tokens=True))


def tokens_up_to(plain: Tokenizer, ids: list[int], text: str) -> int:
    """How many tokens it takes to write the text."""
    text = unicodedata.normalize("NFC", text)
    return next(n for n in range(len(ids) + 1) if read(plain, ids[:n]).startswith(text))


def real(tokens, mask) -> list[int]:
    return tokens[mask].tolist()


def test_loaded_is_what_the_file_describes(family):
    loaded, plain, leading = family
    texts = [prompt for _, prompt in SUBJECTS] + ["", " led", "two  spaces   and", "trailing ", "a\n\nb\tc"]
    for text in texts:
        assert loaded(text)["input_ids"] == ids_of(plain, text), text
    assert leading_ids(loaded) == ids_of(plain, "Lyon")[:leading]


def test_requests_are_the_whole_text(family):
    loaded, plain, leading = family
    requests = encode_requests(FACTS, loaded, CONTEXTS, max_length=512)
    for b, fact in enumerate(FACTS):
        target = real(requests.target[b], requests.target_mask[b])
        before = fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]
        if fact.prompt.startswith("Lyonnais"):
            before = "Lyonnais people of Lyon"
        for c, context in enumerate(CONTEXTS):
            prompt = join_context(context, fact.prompt)
            whole = ids_of(plain, f"{prompt} {fact.target_new}")
            prefix = real(requests.prefix[b, c], requests.prefix_mask[b, c])
            row = prefix + real(requests.tail[b, c], requests.tail_mask[b, c])
            assert [*row, target[-1]] == whole, prompt
            assert len(prefix) + 1 == tokens_up_to(plain, whole, join_context(context, before)), prompt
            assert len(whole) - len(target) == tokens_up_to(plain, whole, prompt), prompt
            at = requests.predict_at[b, c][requests.target_mask[b]] + len(prefix)
            assert whole[at[0] + 1 : at[-1] + 2] == target
        kl = real(requests.prefix[b, -1], requests.prefix_mask[b, -1]) + requests.tail[b, -1, :1].tolist()
        whole = ids_of(plain, f"{fact.subject} is a")
        assert kl == whole[: tokens_up_to(plain, whole, fact.subject)]
        assert kl[:leading] == ids_of(plain, "Lyon")[:leading]


def test_probes_are_the_whole_texts(family):
    loaded, plain, _ = family
    probes = encode_probes(FACTS, loaded, max_length=512)
    for b, fact in enumerate(FACTS):
        for n, prompt in enumerate((fact.prompt, *fact.paraphrases)):
            for side, target in enumerate((fact.target_new, fact.target_true)):
                ids = real(probes.target[b, n, side], probes.target_mask[b, n, side])
                row = probes.tokens[b, n][(probes.branch[b, n] == 0) | (probes.branch[b, n] == side + 1)]
                whole = ids_of(plain, f"{prompt} {target}")
                assert [*row.tolist(), ids[-1]] == whole
                assert len(whole) - len(ids) == tokens_up_to(plain, whole, prompt)


def test_traces_split_at_the_subjects_first_token(family):
    loaded, plain, leading = family
    facts = [KnownFact(str(i), *pair, "France") for i, pair in enumerate(SUBJECTS)]
    prompts = encode_trace(facts, loaded, max_length=512)
    for b, (subject, text) in enumerate(SUBJECTS):
        whole = ids_of(plain, text)
        prefix = real(prompts.prefix[b], prompts.prefix_mask[b])
        assert prefix + real(prompts.tail[b], prompts.tail_mask[b]) == whole
        before = "Lyonnais people of " if text.startswith("Lyonnais") else text[: text.index(subject)]
        before = unicodedata.normalize("NFC", before)
        fits = [n for n in range(len(whole)) if before.startswith(read(plain, whole[:n]))]
        assert len(prefix) == (fits[-1] if before else leading), text


def test_prompts_and_contexts_are_whole_texts(family):
    loaded, plain, _ = family
    rows = encode_prompts([text for _, text in SUBJECTS], loaded, max_length=512)
    for tokens, valid, (_, text) in zip(rows.tokens, rows.valid, SUBJECTS, strict=True):
        assert real(tokens, valid) == ids_of(plain, text)

    def goes_on(prompt, valid, steps, key):
        texts = [
            read(plain, real(*row)) + " city of Москва is in France"
            for row in zip(prompt, valid, strict=True)
        ]
        return np.array(
            [ids_of(plain, text)[sum(row) :][:steps] for text, row in zip(texts, valid, strict=True)]
        )

    contexts = sample_contexts(goes_on, loaded, "memit", jax.random.key(0))
    assert contexts[0] == ""
    for opening, context in zip(MEMIT_OPENINGS, contexts[1:], strict=True):
        assert context.startswith(f"{opening} city of ")
        assert context in f"{opening} city of Москва is in France"


def test_a_target_behind_a_special_token_is_what_the_whole_text_has(family):
    loaded, plain, _ = family
    end = "<|end|>" if "<|end|>" in loaded.get_vocab() else (loaded.eos_token or "<|endoftext|>")
    prompt = f"Where is Lyon?{end}"
    requests = encode_requests([Fact("1", "Lyon", prompt, "France", "Spain")], loaded, max_length=512)
    row = real(requests.prefix[0, 0], requests.prefix_mask[0, 0]) + real(
        requests.tail[0, 0], requests.tail_mask[0, 0]
    )
    ids = real(requests.target[0], requests.target_mask[0])
    whole = ids_of(plain, f"{prompt} France")
    assert [*row, ids[-1]] == whole
    assert ids == whole[whole.index(plain.token_to_id(end), len(row) - len(ids)) + 1 :]


def test_targets_that_cannot_be_told_apart_are_refused(tmp_path):
    PUBLISHED["gpt_neox"].save(tmp_path)  # whose vocabulary has runs of spaces
    loaded = load_tokenizer(tmp_path)
    with pytest.raises(
        FactError, match="'France' behind prompt 'Lyon is ': the tokenizer joins it with 'is '"
    ):
        encode_requests([Fact("1", "Lyon", "Lyon is ", "France", "Spain")], loaded, max_length=512)
    with pytest.raises(FactError, match="special or unknown token in it"):
        encode_requests(
            [Fact("1", "Lyon", "Lyon is", f"France{loaded.eos_token}", "Spain")], loaded, max_length=512
        )
