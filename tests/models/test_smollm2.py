"""The real model: fetched, converted, and as good as it should be."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jaxedit.errors import ModelError
from jaxedit.evaluation.perplexity import perplexity
from jaxedit.models.sources import Checkpoint, load

from .conftest import torch_logits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    try:
        return load("smollm2-135m")
    except ModelError as error:
        pytest.skip(f"SmolLM2-135M cannot be fetched: {error}")


@pytest.fixture(scope="module")
def wikitext(smollm2: Checkpoint) -> np.ndarray:
    """Ids of the start of WikiText-2's validation text."""
    folder = os.environ.get("JAXEDIT_DATA")
    if not folder:
        pytest.skip("JAXEDIT_DATA is not set; it names the folder of the data")
    path = Path(folder) / "text" / "wikitext-2-valid.txt"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return np.array(smollm2.tokenizer(path.read_text(encoding="utf-8")[:150_000])["input_ids"])


def _logits(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    return np.asarray(checkpoint.model.bind(checkpoint.params)(ids))


def test_tokenizer_splits_digits_and_adds_no_bos(smollm2: Checkpoint) -> None:
    tokenize = smollm2.tokenizer.tokenize
    assert tokenize("in 1984, 3.5") == ["in", "Ġ", "1", "9", "8", "4", ",", "Ġ", "3", ".", "5"]
    assert len(smollm2.tokenizer("a")["input_ids"]) == 1
    text = "Étienne's <|im_start|>  naïve\n\ttest 日本"
    assert smollm2.tokenizer.decode(smollm2.tokenizer(text)["input_ids"]) == text
    assert smollm2.tokenizer(text)["input_ids"].count(1) == 1


def test_knows_the_capital_of_france(smollm2: Checkpoint) -> None:
    ids = np.array([smollm2.tokenizer("The capital of France is")["input_ids"]])
    assert smollm2.tokenizer.decode([int(_logits(smollm2, ids)[0, -1].argmax())]) == " Paris"


def test_logits_equal_those_of_transformers(smollm2: Checkpoint) -> None:
    ids = np.random.default_rng(0).integers(20, 49_000, (1, 256))
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32).eval()
    np.testing.assert_allclose(_logits(smollm2, ids), torch_logits(theirs, ids), atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    ("length", "blocks", "batch", "expected"), [(1024, 20, 1, 16.7), (256, 40, 4, 27.4)], ids=["1024", "256"]
)
def test_perplexity_of_wikitext(
    smollm2: Checkpoint, wikitext: np.ndarray, length: int, blocks: int, batch: int, expected: float
) -> None:
    rows = wikitext[: length * blocks].reshape(blocks, length)
    assert perplexity(smollm2.model, smollm2.params, rows, batch) == pytest.approx(expected, abs=0.05)
