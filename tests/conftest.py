"""Fixtures that several rooms share."""

from collections.abc import Iterator

import jax
import pytest

from tests.cases import BUILDERS, Case, make_case


@pytest.fixture(autouse=True)
def light_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles tiny models in half the time and runs them a little slower; real models as users have them."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("slow") is None)
    yield
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
def gpt2(cases: dict[str, Case]) -> Case:
    """The one for what does not depend on the architecture."""
    return cases["gpt2"]
