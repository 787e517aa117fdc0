"""Several processes that make one run: all compute the same numbers, and the first alone writes.

What one process would read from its own disk, its clock or its signals, all must agree on before they compute: they
would wait for each other for ever otherwise. Alone, a process asks nobody.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxedit.errors import ConfigError, RunError

T = TypeVar("T")
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LAST_WORDS = 30  # seconds that a process which ends in an error waits for the others


def join_processes() -> None:
    """Joins the other processes of this run; before anything else is asked of JAX, and once.

    JAX finds them on TPU pods, GKE, Slurm and Open MPI; elsewhere the environment names them: the address of the
    first, how many they are, and which one this is.

    Raises ConfigError where none can be found.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            num_processes=_number(COUNT), process_id=_number(NUMBER), shutdown_timeout_seconds=LAST_WORDS
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the other processes were not found ({error}): start by Slurm, Open MPI, GKE or on a TPU pod, or set "
            f"{ADDRESS} (host:port of the first), {COUNT} and {NUMBER} (from 0) for each"
        ) from None


def _number(name: str) -> int | None:
    given = os.environ.get(name)
    if given is None or given.isdigit():
        return None if given is None else int(given)
    raise ConfigError(f"{name} is {given!r}; it must be a number")


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def by_first(work: Callable[[], T]) -> T | None:
    """`work()` in the first process while the others wait, and None in these.

    Raises what `work` raises, and RunError in the others.
    """
    if not several():
        return work()
    result, error = None, None
    if is_first():
        try:
            result = work()
        except BaseException as raised:
            error = raised
    failed = bool(multihost_utils.broadcast_one_to_all(np.int32(error is not None)))
    if error is not None:
        raise error
    if failed:
        raise RunError("the first process of this run has stopped with an error; its message says what to do")
    return result


def from_first(make: Callable[[], T], like: T) -> T:
    """What `make()` gives in the first process, in all; `like` has its structure, shapes and types.

    Raises as `by_first`.
    """
    if not several():
        return make()
    made = by_first(make)
    return multihost_utils.broadcast_one_to_all(like if made is None else made)


def any_process(flag: bool) -> bool:
    """Whether it is so in any process; all must ask."""
    return flag if not several() else bool(multihost_utils.process_allgather(np.int32(flag)).any())


def least_bytes(count: int) -> int:
    """The smallest of the numbers of bytes that the processes give, in whole MiB; all must ask."""
    if not several():
        return count
    return int(multihost_utils.process_allgather(np.int32(count >> 20)).min()) << 20


def to_host(tree: Any) -> Any:
    """All arrays as numpy's, whole, in every process; all must ask."""

    def whole(x: Any) -> np.ndarray:
        spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
        return multihost_utils.process_allgather(x, tiled=True) if spread else np.asarray(x)

    return jax.tree.map(whole, tree)
