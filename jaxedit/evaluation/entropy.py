"""How varied generated text is: the n-gram entropy of Zhang et al. 2018, as ROME reports it (arXiv 2202.05262)."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of bigrams and trigrams


def words(text: str) -> list[str]:
    """Words and punctuation marks, in their order."""
    return re.findall(r"\w+|[^\w\s]", text)


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    """Entropy in bits of the n-grams' frequencies; 0 where there are none."""
    counts = np.array(list(Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).values()), np.float64)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def generation_entropy(texts: Sequence[str]) -> float:
    """100 times the mean over texts of the weighted mean of bigram and trigram entropy; NaN without texts."""
    found = [[w * ngram_entropy(words(text), n) for n, w in WEIGHTS.items()] for text in texts]
    return 100 * float(np.mean(found)) if found else float("nan")
