"""Perplexity against torch's cross entropy."""

import numpy as np
import pytest
import torch

from jaxedit.errors import ConfigError
from jaxedit.evaluation.perplexity import negative_log_likelihood, perplexity

from .conftest import Tiny


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_equals_torch_whatever_the_batch(typical: Tiny, tokens: np.ndarray, batch: int) -> None:
    rows = torch.from_numpy(tokens)
    with torch.no_grad():
        expected = typical.torch(rows, labels=rows).loss.exp().item()
    params = typical.model.split(typical.params, [typical.model.config.edited_path(1)])
    assert perplexity(typical.model, params, tokens, batch) == pytest.approx(expected, rel=1e-5)


def test_compiles_once_for_a_last_batch_that_is_not_full(typical: Tiny, tokens: np.ndarray) -> None:
    negative_log_likelihood.clear_cache()
    perplexity(typical.model, typical.params, tokens, 2)
    assert negative_log_likelihood._cache_size() == 1


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (4,)])
def test_blocks_without_a_prediction_are_refused(typical: Tiny, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="blocks"):
        perplexity(typical.model, typical.params, np.zeros(shape, int), 2)
