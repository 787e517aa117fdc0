"""The sizes of a run's value loop hold its batches, with as little room left as may be."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxedit.data import encode_requests
from jaxedit.packed import asked, real_tail, sizes_of
from jaxedit.pipeline.sizes import levels, sizes_for
from tests.cases import FACTS, Case
from tests.reference.tiny import TINY_CONTEXTS


@given(x=st.lists(st.integers(1, 12), min_size=1, max_size=30), most=st.integers(1, 3))
def test_no_other_levels_count_less(x: list[int], most: int) -> None:
    values = np.array(x)
    found = levels(values, most)
    assert len(found) <= most
    assert set(found) <= set(x)
    assert found[-1] == max(x)

    def counted(chosen) -> int:
        return sum(min(level for level in chosen if level >= value) for value in x)

    others = (
        counted((*lower, max(x)))
        for count in range(most)
        for lower in itertools.combinations(sorted(set(x)), count)
    )
    assert counted(found) == min(others)


@pytest.mark.parametrize("together", [1, 2])
def test_every_batch_of_a_run_finds_room_and_the_largest_fills_it(gpt2: Case, together: int) -> None:
    tokenizer = gpt2.checkpoint.tokenizer
    facts = FACTS[: len(FACTS) // together * together]
    sizes = sizes_for(facts, tokenizer, len(TINY_CONTEXTS), together, max_length=64)
    shape = {"tokenizer": tokenizer, "contexts": TINY_CONTEXTS, "max_length": 64}
    batches = [encode_requests(facts[i : i + together], **shape) for i in range(0, len(facts), together)]
    needed = [(int(real_tail(batch).sum()), int(asked(batch).sum())) for batch in batches]
    assert max(tokens for tokens, _ in needed) == sizes[-1].tokens
    for tokens, reads in needed:
        assert next(size.reads for size in sizes if size.tokens >= tokens) >= reads


def test_sizes_given_stand_for_shares_and_end_at_the_arrays(gpt2: Case) -> None:
    requests = gpt2.encode(FACTS)
    whole = (requests.tail.size, requests.predict_at.size)
    assert sizes_of(requests, (0.5,), ((3, 2), (10**6, 10**6))) == [(3, 2), whole]
    assert len(sizes_of(requests, (0.5,))) == 2
