"""n-gram entropy against scipy's, and where it is known."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from jaxedit.evaluation.entropy import generation_entropy, ngram_entropy, words


def test_words_and_marks_are_apart() -> None:
    assert words("It's Étienne's,\nno?") == ["It", "'", "s", "Étienne", "'", "s", ",", "no", "?"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_equals_scipys_entropy_of_the_frequencies(n: int) -> None:
    tokens = np.random.default_rng(n).choice(list("abc"), 40).tolist()
    grams = [" ".join(tokens[i : i + n]) for i in range(40 - n + 1)]
    _, counts = np.unique(grams, return_counts=True)
    assert ngram_entropy(tokens, n) == pytest.approx(entropy(counts, base=2))


def test_repetition_has_none_and_variety_the_most() -> None:
    assert generation_entropy(["no " * 50]) == 0
    assert generation_entropy(["", "one", "one two"]) == 0
    varied = " ".join(f"w{i}" for i in range(18))
    expected = 100 * (2 / 3 * math.log2(17) + 4 / 3 * 4) / 2
    assert generation_entropy([varied]) == pytest.approx(expected)
    assert generation_entropy([varied, "no no no"]) == pytest.approx(expected / 2)
    assert math.isnan(generation_entropy([]))
