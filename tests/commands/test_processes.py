"""Two processes make one run, to the bit what one process makes of it on as many devices."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from jaxedit.cli import main
from jaxedit.data import dump_jsonl
from jaxedit.processes import ADDRESS, COUNT, NUMBER
from tests.commands.test_cli import CONFIG, FACTS, numbers
from tests.reference.tiny import save_tiny, tiny_llama, tiny_tokenizer

HISTORY = ("--editor", "memit-history", "--chunk", "1", "--devices.way", "mesh", "--devices.tensor", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, facts, a configuration, and the run of one process that has two devices."""
    home = tmp_path_factory.mktemp("processes")
    save_tiny(tiny_llama(torch.float32, max_position_embeddings=256), tiny_tokenizer(), home / "model")
    dump_jsonl(FACTS, home / "facts.jsonl")
    paths = f"model = {json.dumps(str(home / 'model'))}\nfacts = {json.dumps(str(home / 'facts.jsonl'))}\n"
    (home / "run.toml").write_text(paths + CONFIG)
    alone = started(home, "run", str(home / "run.toml"), *HISTORY, "--out", str(home / "alone"), devices=2)
    ended([alone])
    return home


def started(home: Path, *arguments: str, devices: int = 1, **variables: str) -> subprocess.Popen:
    """The command line in a process of its own, in the cache of `home`."""
    command = ("-m", "jaxedit.cli", *arguments, "--no-compile-cache")
    return python(home, *command, devices=devices, **variables)


def python(home: Path, *arguments: str, devices: int = 1, **variables: str) -> subprocess.Popen:
    """Python with these arguments."""
    given = {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    given |= {"JAXEDIT_CACHE": str(home / "cache"), **variables}
    command = [sys.executable, *arguments]
    return subprocess.Popen(
        command, env=os.environ | given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def pair(
    home: Path, *arguments: str, begin: Callable[..., subprocess.Popen] = started
) -> list[subprocess.Popen]:
    """Two processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    return [begin(home, *arguments, **{ADDRESS: address, COUNT: "2", NUMBER: str(i)}) for i in range(2)]


def ended(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


@pytest.fixture
def run_of_two(home: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, list[subprocess.Popen]]]:
    """A run folder, and the two processes that have begun to write it."""
    out = home / re.sub(r"\W", "-", request.node.name)
    begun = pair(home, "run", str(home / "run.toml"), *HISTORY, "--devices.distributed", "--out", str(out))
    yield out, begun
    for process in begun:
        process.kill()
        process.wait()


def test_two_processes_make_the_run_of_one(
    home: Path, run_of_two: tuple[Path, list[subprocess.Popen]]
) -> None:
    out, processes = run_of_two
    first, second = ended(processes)
    assert numbers(out) == numbers(home / "alone")
    assert f"The run is in {out}" in first
    assert "The run is in" not in second
    main(["verify", str(out)])


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_run_of_two_goes_on_after_either_was_killed(
    home: Path, run_of_two: tuple[Path, list[subprocess.Popen]], killed: int
) -> None:
    out, processes = run_of_two
    journal, deadline = out / "journal.jsonl", time.monotonic() + 300
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 1):
        assert time.monotonic() < deadline
        over = [process for process in processes if process.poll() is not None]
        assert not over, over[0].communicate()[0]
        time.sleep(0.01)
    processes[killed].kill()
    processes[1 - killed].terminate()  # as those do that start them; it may wait for the other
    time.sleep(1)
    processes[1 - killed].kill()
    assert not (out / "summary.json").exists()
    ended(pair(home, "resume", str(out)))
    assert numbers(out) == numbers(home / "alone")


def test_processes_agree_on_the_least_memory(home: Path) -> None:
    """Else they would cut their batches in different ways, and wait for each other for ever."""
    here = "jaxedit.processes.least_bytes(6 << 32 if jax.process_index() else 5 << 32)"
    script = f"import jax, jaxedit.processes; jaxedit.processes.join_processes(); print('found', {here})"
    for output in ended(pair(home, "-c", script, begin=python)):
        assert f"found {5 << 32}" in output


def test_without_others_the_message_names_what_to_set(home: Path) -> None:
    alone = started(home, "run", str(home / "run.toml"), *HISTORY, "--devices.distributed")
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 2
    assert f"set {ADDRESS} (host:port of the first), {COUNT} and {NUMBER}" in " ".join(output.split())
