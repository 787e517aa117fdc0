"""Kills runs at random moments, resumes them, and compares every bit with a run that was left alone.

    python scripts/check_kills.py [--kills 100] [--seed 0] [--updates 30] [--json FILE]

Two editors on a tiny random model: MEMIT with memory (factors and a state that grows) and FT (dense updates).
Every process is a `jaxedit run` or `jaxedit resume` of its own, ended by SIGKILL. Its life has stages: loading
and compiling, each chunk with its save, scoring and figures at the end. A moment is drawn by choosing one of
the next few stages, then any instant of it, so that the short saves are met as often as the long loading.
After each kill all that the journal acknowledged is read again. At the end of each run its journal, metrics,
summary, factors and matrices are compared with the run left alone.
"""

import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

EDITORS = {"memit": "memory = true\nlayers = [0, 1]", "ft": "layers = [1]"}
AHEAD = 6  # stages among which one is drawn
COMPARED = ("journal.jsonl", "metrics.jsonl", "summary.json", "config.json", "facts.jsonl")
RUN = "run"
POLL = 0.002  # seconds


@dataclass(frozen=True)
class Check:
    """How often to kill."""

    kills: int = 100
    updates: int = 30
    """Updates of each run, one a chunk."""
    seed: int = 0
    folder: Path | None = None
    """Where to work; by default a temporary folder that is removed."""
    json: Path | None = None


@dataclass
class Tally:
    """What the kills of one editor came to."""

    kills: int = 0
    before_folder: int = (
        0  # kills before there was a run folder; the run then begins anew, and they do not count
    )
    in_saves: int = 0  # kills that left something unfinished behind
    chunks: dict[int, int] = field(default_factory=dict)  # how many chunks were finished when a kill came
    runs: int = 0  # runs that came to their end
    differences: int = 0
    seconds: float = 0.0


def worker(arguments: list[str], folder: str, log: str) -> None:
    """What a process does: the command line, in a folder, its output in a file."""
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from jaxedit.cli import main

    main(arguments)


class Workers:
    """Processes forked from one that has imported everything and computed nothing."""

    def __init__(self, home: Path):
        self.home = home
        os.environ |= {
            "JAXEDIT_CACHE": str(home / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "MPLCONFIGDIR": str(home / "matplotlib"),
        }
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["jaxedit.cli"])

    def start(self, arguments: list[str], folder: Path):
        """A process at work in a folder."""
        process = self._context.Process(
            target=worker, args=(arguments, str(folder), str(folder / "log")), daemon=True
        )
        process.start()
        return process

    def finish(self, arguments: list[str], folder: Path) -> list[float]:
        """Waits for the end of one; seconds up to each line of its run's journal, and to the end."""
        start, marks = time.monotonic(), list[float]()
        process = self.start(arguments, folder)
        while process.exitcode is None:
            time.sleep(POLL)
            marks += [time.monotonic() - start] * (lines_in(folder / RUN) - len(marks))
        refuse_failure(process, arguments, folder)
        return [*marks, time.monotonic() - start]


def refuse_failure(process, arguments: list[str], folder: Path) -> None:
    """Raises SystemExit where a process ended otherwise than well."""
    if process.exitcode:
        raise SystemExit(f"{arguments} ended with {process.exitcode}:\n{(folder / 'log').read_text()}")


def lines_in(run: Path) -> int:
    """Finished lines of a run's journal; none where there is no run."""
    try:
        return (run / "journal.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


class Stages:
    """How long the stages of a run last: to its folder, to each further line of its journal, and to its end."""

    def __init__(self, marks: list[float]):
        between = [b - a for a, b in pairwise(marks)]
        self.first, self.chunk, self.end = marks[0], median(between[1:-2]), between[-2:]
        self.loading = marks[1]  # to the first chunk

    def seconds(self, lines: int, updates: int, ahead: int) -> float:
        """Of the stage that begins when `lines` of the journal are there, `ahead` of them by this process."""
        if not lines:
            return self.first
        if lines == 1 or not ahead:
            return self.loading
        if lines <= updates:
            return self.chunk
        return self.end[lines - updates - 1]


def make_model(home: Path, updates: int) -> None:
    """A tiny random model, facts, and a configuration for each editor."""
    import torch

    from jaxedit.data import Fact, dump_jsonl
    from tests.reference.tiny import save_tiny, tiny_llama, tiny_tokenizer

    model = tiny_llama(torch.float32, max_position_embeddings=256, num_hidden_layers=2)
    save_tiny(model, tiny_tokenizer(), home / "model")
    towns = ("Paris", "Lyon", "Rome", "Italy")
    facts = [
        Fact(
            id=f"{i}",
            subject=towns[i % 4],
            prompt=f"The town of {towns[i % 4]} is located in",
            target_new=towns[(i + 1 + i // 4) % 4],
            target_true=towns[(i + 2 + i // 4) % 4],
            neighborhood=("The capital of the country is",),
        )
        for i in range(updates)
    ]
    dump_jsonl(facts, home / "facts.jsonl")
    for editor, settings in EDITORS.items():
        (home / f"{editor}.toml").write_text(
            f"editor = {json.dumps(editor)}\nmodel = {json.dumps(str(home / 'model'))}\n"
            f"facts = {json.dumps(str(home / 'facts.jsonl'))}\nout = {json.dumps(RUN)}\n"
            f"count = {updates}\nchunk = 1\nknown = false\n"
            f"[settings]\nsteps = 2\n{settings}\n[moments]\nlength = 32\n"
        )


class Judge:
    """Compares a run with the one that was left alone."""

    def __init__(self, whole: Path):
        from jaxedit import pipeline
        from jaxedit.digests import fingerprint

        self.whole, self._fingerprint = whole, fingerprint
        self._like, _, _ = pipeline.trajectory(whole)
        self._journal = (whole / "journal.jsonl").read_bytes()
        self._final = fingerprint(self._matrices(whole))

    def _open(self, run: Path):
        from jaxedit.trajectory.replay import Trajectory
        from jaxedit.trajectory.store import RunFolder

        return Trajectory(RunFolder.open(run), self._like.like, self._like._state, self._like._rerun)

    def _matrices(self, run: Path):
        found = self._open(run)
        return found.at(found.steps)

    def after_kill(self, run: Path, acknowledged: int) -> tuple[int, int, bool]:
        """Reads all that is acknowledged; bytes of the journal, chunks, and whether something is unfinished.

        Raises SystemExit where anything acknowledged before is gone, differs or cannot be read.
        """
        found = self._open(run)
        journal = found.folder.journal
        said = (run / "journal.jsonl").read_bytes()[: journal.size]
        if journal.size < acknowledged or not self._journal.startswith(said):
            raise SystemExit(f"{run}: the journal lost or changed what it had acknowledged")
        metrics = found.folder.metrics()
        edited, state = found.resumable(found.steps)
        expected = (
            found.folder.fingerprint(len(journal.chunks)),
            found.folder.fingerprint(len(journal.chunks), "state"),
        )
        if len(metrics) != found.steps or self._fingerprint(edited) != expected[0]:
            raise SystemExit(f"{run}: what the journal acknowledged cannot be read again")
        if expected[1] and self._fingerprint(state) != expected[1]:
            raise SystemExit(f"{run}: the editor's memory is not what the journal says")
        return journal.size, len(journal.chunks), bool(found.folder.damages())

    def differences(self, run: Path) -> list[str]:
        """Everything in which a finished run is not, byte for byte, the one left alone."""
        updates = sorted(file.name for file in (self.whole / "updates").iterdir())
        names = [*COMPARED, *(f"updates/{name}" for name in updates)]
        wrong = [name for name in names if (run / name).read_bytes() != (self.whole / name).read_bytes()]
        if sorted(file.name for file in (run / "updates").iterdir()) != updates:
            wrong.append("the list of update files")
        if self._fingerprint(self._matrices(run)) != self._final:
            wrong.append("the final matrices")
        return wrong + self._open(run).folder.damages()


class Campaign:
    """Kills runs of one editor until there are enough kills; every killed run is resumed to its end."""

    def __init__(self, workers: Workers, editor: str, check: Check):
        self.workers, self.editor, self.updates = workers, editor, check.updates
        self.start = ["run", str(workers.home / f"{editor}.toml")]
        self.tally, self.rng = Tally(), random.Random(f"{check.seed} {editor}")
        whole = workers.home / editor
        whole.mkdir()
        workers.finish(self.start, whole)  # compiles
        shutil.rmtree(whole / RUN)
        self.stages = Stages(workers.finish(self.start, whole))
        self.judge = Judge(whole / RUN)

    def run(self, kills: int) -> Tally:
        """Run after run."""
        start = time.monotonic()
        while self.tally.kills < kills:
            self._one(kills)
        self.tally.seconds = time.monotonic() - start
        return self.tally

    def _one(self, most: int) -> None:
        """One run: killed and resumed until it ends, or until there are `most` kills and it is left to end."""
        place = self.workers.home / f"{self.editor}-killed"
        place.mkdir()
        run, acknowledged = place / RUN, 0
        while not self._ended(place, run, most):
            if not run.exists():
                self.tally.before_folder += 1
                continue
            acknowledged, finished, unfinished = self.judge.after_kill(run, acknowledged)
            self.tally.kills += 1
            self.tally.in_saves += unfinished
            self.tally.chunks[finished] = self.tally.chunks.get(finished, 0) + 1
            print(f"{self.editor}: kill {self.tally.kills}, {finished} chunks finished", file=sys.stderr)
        if wrong := self.judge.differences(run):
            self.tally.differences += 1
            print(f"{self.editor}, run {self.tally.runs}: differs in {', '.join(wrong)}", file=sys.stderr)
        self.tally.runs += 1
        shutil.rmtree(place)

    def _ended(self, place: Path, run: Path, most: int) -> bool:
        """Lets a process work until it ends, or until its moment comes and it is killed."""
        begun = lines_in(run)
        arguments = ["resume", RUN] if begun else self.start
        process = self.workers.start(arguments, place)
        if self.tally.kills < most:
            ahead = self.rng.randint(0, min(AHEAD, self.updates + 2 - begun))
            while process.exitcode is None and lines_in(run) < begun + ahead:
                time.sleep(POLL)
            process.join(self.rng.uniform(0, self.stages.seconds(begun + ahead, self.updates, ahead)))
        else:
            process.join()
        if process.exitcode is not None:
            refuse_failure(process, arguments, place)
            return True
        process.kill()
        process.join()
        return False


def main(check: Check) -> None:
    """Prints a table; exits with 1 where a run came to other bits."""
    home = check.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    home.mkdir(parents=True, exist_ok=True)
    home = home.resolve()
    try:
        workers = Workers(home)
        make_model(home, check.updates)
        shares = {"memit": check.kills - check.kills // 3, "ft": check.kills // 3}
        tallies = {
            editor: Campaign(workers, editor, check).run(kills) for editor, kills in shares.items() if kills
        }
    finally:
        if check.folder is None:
            shutil.rmtree(home, ignore_errors=True)
    table = Table(title=f"SIGKILL at random moments, seed {check.seed}: {check.updates} updates a run")
    for name in (
        "editor",
        "kills",
        "in a save",
        "at finished chunks",
        "before the folder",
        "runs",
        "other bits",
        "s",
    ):
        table.add_column(name, justify="left" if name == "editor" else "right")
    for editor, tally in tallies.items():
        met = " ".join(f"{chunk}:{count}" for chunk, count in sorted(tally.chunks.items()))
        table.add_row(
            editor, str(tally.kills), str(tally.in_saves), met, str(tally.before_folder), str(tally.runs),
            str(tally.differences), f"{tally.seconds:.0f}",
        )  # fmt: skip
    Console(width=140).print(table)
    if check.json:
        check.json.write_text(json.dumps({name: asdict(tally) for name, tally in tallies.items()}, indent=2))
    if any(tally.differences for tally in tallies.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Check, description=__doc__))
