"""A short run of scripts/fuzz.py."""

from pathlib import Path

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_come_out(name: str, tmp_path: Path) -> None:
    count = fuzz(TARGETS[name], tmp_path, cases=3 * TARGETS[name].share, seed=0)
    assert 0 < count.refused < count.cases, "cases are neither all good nor all bad"
