"""Array sizes: a short ladder, so that few different shapes are ever compiled; padding of batches."""

from typing import NamedTuple

import numpy as np

from jaxedit.errors import FactError
from jaxedit.types import Probes, Requests


class RequestShape(NamedTuple):
    """Sizes of `Requests`: P prefix tokens, S tail tokens, T target tokens."""

    P: int
    S: int
    T: int


class ProbeShape(NamedTuple):
    """Sizes of `Probes`: N rows a fact, L tokens a row, T target tokens."""

    N: int
    L: int
    T: int


def ladder(size: int, smallest: int = 1) -> int:
    """The least step not below `size` (and `smallest`) of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, ..."""
    wanted = max(size, smallest)
    power = 1
    while power < wanted:
        if wanted <= power + power // 2 and power >= 2:
            return power + power // 2
        power *= 2
    return power


def pad_requests(requests: Requests, batch: int) -> Requests:
    """Pad B facts to `batch` with facts of weight 0 and case -1.

    A padding fact is one token 0 in every row and one target token 0, so that softmax and mean over it
    stay finite.

    Raises:
        FactError: there are more than `batch` facts.
    """
    extra = _extra(len(requests.weight), batch)
    padded = Requests._make(_zeros_after(np.asarray(array), extra) for array in requests)
    if extra:
        padded.tail_mask[-extra:, :, 0] = True
        padded.target_mask[-extra:, 0] = True
        padded.case[-extra:] = -1
    return padded


def pad_probes(probes: Probes, batch: int) -> Probes:
    """Pad B facts to `batch` with facts all of whose rows are padding: kind -1, one token 0 on branch 0.

    Raises:
        FactError: there are more than `batch` facts.
    """
    extra = _extra(len(probes.kind), batch)
    padded = Probes._make(_zeros_after(np.asarray(array), extra) for array in probes)
    if extra:
        padded.branch[-extra:, :, 1:] = -1
        padded.kind[-extra:] = -1
    return padded


def _extra(count: int, batch: int) -> int:
    if count > batch:
        raise FactError(f"{count} facts do not fit a batch of {batch}: split them first")
    return batch - count


def _zeros_after(array: np.ndarray, extra: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((extra, *array.shape[1:]), array.dtype)])
