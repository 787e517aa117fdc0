"""For which sizes a run's value loop is compiled: those where its batches fall."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxedit.data.encode import encode_requests
from jaxedit.data.facts import Fact
from jaxedit.data.tokens import Tokenizer
from jaxedit.models.packing import Size

MOST = 3  # sizes beside that for all there is room for; each costs seconds of compilation
CANDIDATES = 32


def sizes_for(
    facts: Sequence[Fact], tokenizer: Tokenizer, contexts: int, together: int, max_length: int
) -> tuple[Size, ...]:
    """Sizes that hold all batches of `together` facts in so many contexts, ascending.

    They are those that leave the fewest places empty. The loop of several facts goes on at a smaller size when
    half of them are done.
    """
    bare = encode_requests(facts, tokenizer, max_length=max_length)
    prompt, essence = np.asarray(bare.tail_mask).sum(axis=-1).T
    tokens = by_batch(contexts * prompt + essence, together)
    reads = by_batch(contexts * np.asarray(bare.target_mask).sum(axis=-1), together)
    sizes = [Size(int(t), int(reads[tokens <= t].max())) for t in levels(tokens, MOST - (together > 1))]
    if together > 1:
        sizes.insert(0, Size(-(-sizes[0].tokens // 2), -(-sizes[0].reads // 2)))
    return tuple(sizes)


def by_batch(x: Int[np.ndarray, "F"], together: int) -> Int[np.ndarray, "N"]:
    """Sums over `together` facts after one another; the last batch may have fewer."""
    return np.add.reduceat(x, np.arange(0, len(x), together))


def levels(x: Int[np.ndarray, "N"], most: int) -> Int[np.ndarray, "K"]:
    """At most so many levels, ascending, the last the greatest of x.

    Each x counts as the least level that holds it; no other choice (from some quantiles) has a lesser sum.
    """
    found = np.unique(np.quantile(x, np.linspace(0, 1, CANDIDATES + 1), method="higher"))
    chosen = [
        np.array([*lower, found[-1]])
        for count in range(min(most, len(found)))
        for lower in itertools.combinations(found[:-1], count)
    ]
    return min(chosen, key=lambda level: level[np.searchsorted(level, x)].sum())
