"""Killed runs come to the bits of one that was left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_kills.py"


@pytest.mark.slow
def test_killed_and_resumed_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ["--kills", "4", "--updates", "12", "--folder", str(tmp_path / "home"), "--json", str(figures)]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    tallies = json.loads(figures.read_text())
    assert sum(tally["kills"] for tally in tallies.values()) == 4
    assert all(tally["runs"] and not tally["differences"] for tally in tallies.values())
