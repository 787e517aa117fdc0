"""Fixtures that several rooms share, and what tests compile."""

import functools
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Generator

import jax
import pytest

from tests.cases import BUILDERS, FAMILIES, Case, make_case

FOLDER = pytest.StashKey[str]()
LONG = {"commands", "editors", "tests", "training"}
QUICK = "--xla_cpu_use_fusion_emitters=false"  # XLA's older way from fusions to LLVM, which compiles twice as fast


def pytest_configure(config: pytest.Config) -> None:
    """Programs of tiny models are compiled once: workers and subprocesses read what one of them did."""
    gc.set_threshold(100_000, 20, 20)  # else it goes over torch and transformers again and again
    flags = os.environ.get("XLA_FLAGS", "")
    if config.option.markexpr != "slow" and QUICK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK}"  # for workers and subprocesses too
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # a worker, or the caller has a folder
        return
    config.stash[FOLDER] = tempfile.mkdtemp(prefix="jaxedit-tests-")
    given = {
        "jax_compilation_cache_dir": config.stash[FOLDER],
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in given.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (folder := config.stash.get(FOLDER, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rooms whose files take minutes begin, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Compiles tiny models in half the time and runs them a little slower; real models as users have them.

    Around the whole test, fixtures of any scope included: other optimisations give other last bits.
    """
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("slow") is None)
    try:
        return (yield)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every tiny model by name."""
    return {name: make_case(name, tmp_path_factory.mktemp(f"case-{name}")) for name in BUILDERS}


@pytest.fixture(scope="session", params=sorted(BUILDERS))
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Each of them in turn."""
    return cases[request.param]


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Tiny models of the other families by name, each made when it is first asked for."""
    return functools.cache(lambda name: make_case(name, tmp_path_factory.mktemp(f"case-{name}")))


@pytest.fixture(scope="session", params=FAMILIES)
def family_case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    """Each of them in turn."""
    return case_of(request.param)


@pytest.fixture(scope="session")
def gpt2(cases: dict[str, Case]) -> Case:
    """The one for what does not depend on the architecture."""
    return cases["gpt2"]
