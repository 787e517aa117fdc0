"""Tokenizers and facts that the tests of this room share."""

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from jaxedit.data import Fact

TRAINING = (
    "The mother tongue of Danielle Darrieux is French. The city of Lyon is in France.",
    "The city of Berlin is in Germany. Paris is a city; Lyon is a city.",
    "The capital of France is Paris. What is the twin city of Lyon? It is Beirut.",
    "It's the year 1990, and in the year 2024 nobody's there. Москва, 東京, São Paulo, and the Ivory Coast!",
)


def _byte_level(digits_apart: bool) -> Tokenizer:
    """A small byte-level BPE; with `digits_apart` its pre-tokenizer is the one of SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if digits_apart
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING * 4, trainer)
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """As Llama 2: "▁" stands for a space and is put before every text, so that " x" alone starts with two."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TRAINING * 4, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


def _with_bos() -> Tokenizer:
    tokenizer = _byte_level(digits_apart=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return tokenizer


def data_folder() -> Path:
    """The folder of real data, or a skip that says why."""
    folder = os.environ.get("JAXEDIT_DATA")
    if not folder:
        pytest.skip("real data: set JAXEDIT_DATA to the folder that holds it")
    return Path(folder)


def _gpt2() -> PreTrainedTokenizerFast:
    folder = data_folder() / "tokenizers"
    tokenizer = Tokenizer(
        models.BPE.from_file(str(folder / "gpt2-encoder.json"), str(folder / "gpt2-vocab.bpe"))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def _pythia() -> PreTrainedTokenizerFast:
    path = data_folder() / "tokenizers" / "pythia-tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)


def _small(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", clean_up_tokenization_spaces=False
    )


def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """GPT-2's or Pythia's own; skips where the data is absent."""
    return BYTE_LEVEL[name]()


BYTE_LEVEL = {
    "bpe": lambda: _small(_byte_level(digits_apart=False)),
    "bpe_digits": lambda: _small(_byte_level(digits_apart=True)),
    "bpe_bos": lambda: _small(_with_bos()),
    "gpt2": _gpt2,
    "pythia": _pythia,
}


@pytest.fixture(scope="session", params=BYTE_LEVEL)
def byte_level(request):
    """Byte-level tokenizers: three trained here, two real ones where the data is present."""
    return BYTE_LEVEL[request.param]()


@pytest.fixture(scope="session")
def sentencepiece():
    """A tokenizer with SentencePiece's habits, BOS before and EOS after each text."""
    return _small(_sentencepiece())


@pytest.fixture(scope="session")
def bpe():
    """The plainest tokenizer."""
    return _small(_byte_level(digits_apart=False))


@pytest.fixture(scope="session")
def bpe_bos():
    """A tokenizer that puts BOS before each text."""
    return _small(_with_bos())


@pytest.fixture
def real_data():
    """The folder of real data; skips where it is absent."""
    return data_folder()


@pytest.fixture
def facts():
    """Subjects at the start, in the middle and at the end; targets of one token and of many."""
    return [
        Fact(
            id="start",
            subject="Danielle Darrieux",
            prompt="Danielle Darrieux's mother tongue is",
            target_new="English",
            target_true="French",
            paraphrases=("In 1990, Danielle Darrieux spoke",),
            neighborhood=("The mother tongue of Jean Gabin is", "Jean Cocteau speaks"),
        ),
        Fact(
            id="middle",
            subject="Lyon",
            prompt="What is the twin city of Lyon? It is",
            target_new="São Paulo",
            target_true="Beirut",
            paraphrases=("Lyon is twinned with", "The city of Lyon is a twin of"),
            neighborhood=("nq question: who is the author of it",),
            neighborhood_true=("Walter Sobchak",),
        ),
        Fact(id="end", subject="東京", prompt="The country of 東京", target_new="France", target_true="日本"),
    ]
