"""Damages the files of finished runs, one bit or one cut at a time, and reads what is left.

    python scripts/check_damage.py [--trials 300] [--seed 0] [--json FILE]

Two runs of random updates made by the true driver and the true writer: low-rank updates, and dense ones. Each
trial copies one, picks one of its files and flips one bit or cuts the file somewhere. `jaxedit verify` must tell;
every array that is read must be the true one to the bit, or refused by name; and every step that does not need
the damaged bytes must still be readable.
"""

import json
import random
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxedit.digests import fingerprint
from jaxedit.errors import RunError
from jaxedit.trajectory.snapshots import retained
from jaxedit.trajectory.store import RunFolder
from tests.trajectory.synthetic import Synthetic, draw_figures, write_run

UPDATES, CHUNK, STEPS = 70, 2, 6


@dataclass(frozen=True)
class Check:
    """How much to damage."""

    trials: int = 300
    seed: int = 0
    json: Path | None = None


@dataclass
class Tally:
    """What the trials on one kind of file came to."""

    trials: int = 0
    flips: int = 0
    verified: int = 0  # `verify` told
    read: int = 0  # arrays that were read, all of them true
    refused: int = 0  # steps that were refused, all of them in need of the damaged bytes
    silent: list[str] = field(default_factory=list)  # damage that `verify` did not see
    wrong: list[str] = field(default_factory=list)  # arrays that were wrong
    lost: list[str] = field(default_factory=list)  # intact steps that could not be read


class Damage(NamedTuple):
    """One change of one file."""

    name: str  # of the file within the run
    place: int  # of the bit, or of the cut
    cut: bool

    @property
    def kind(self) -> str:
        """What sort of file it is."""
        parts = Path(self.name).parts
        if parts[0] == "snapshots":
            return f"snapshots, {parts[2]}"
        return parts[0] if len(parts) == 1 else f"{parts[0]}/"

    def apply(self, run: Path) -> None:
        """Changes the file."""
        file = run / self.name
        content = bytearray(file.read_bytes())
        if self.cut:
            del content[self.place :]
        else:
            content[self.place // 8] ^= 1 << self.place % 8
        file.write_bytes(content)


def draw(rng: random.Random, run: Path) -> Damage:
    """Any file but empty ones; any bit of it, or a cut anywhere."""
    files = sorted(file for file in run.rglob("*") if file.is_file() and file.stat().st_size)
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(Damage(str(file.relative_to(run)), 0, False).kind, []).append(file)
    file = rng.choice(groups[rng.choice(sorted(groups))])
    size, cut = file.stat().st_size, rng.random() < 0.3
    return Damage(str(file.relative_to(run)), rng.randrange(size if cut else 8 * size), cut)


class Truth:
    """A run as it was written."""

    def __init__(self, run: Synthetic, low_rank: bool, updates: int):
        self.run, self.low_rank, self.updates = run, low_rank, updates
        self.chunks = len(run.truth) - 1
        found = run.steps()
        self._found, self._at = (
            found,
            {
                min(chunks * CHUNK, updates): fingerprint(matrices)
                for chunks, matrices in enumerate(run.truth)
            },
        )
        self.state = fingerprint(found.folder.state(run.state))
        self.metrics = found.folder.metrics()
        self.snapshots = sorted(retained(self.chunks, low_rank)["edited"])

    def at(self, step: int) -> str:
        """Fingerprint of a step: the driver's after a chunk, within one that of the intact run."""
        if step not in self._at:
            self._at[step] = fingerprint(self._found.at(step))
        return self._at[step]

    def intact(self, damage: Damage, step: int, lines: int) -> bool:
        """Whether a step must be readable; `lines` of the journal are left."""
        parts = Path(damage.name).parts
        if step > min(CHUNK * max(lines - 1, 0), self.updates) or not lines:
            return False
        if parts[0] == "updates":
            chunk = int(Path(damage.name).stem)
            later = min((n for n in self.snapshots if n > chunk), default=self.chunks + 1)
            return not CHUNK * chunk < step < CHUNK * later
        if parts[0] == "snapshots" and int(parts[1]) == 0:
            parts_needed = ("edited",) if self.low_rank else ("edited", "state")
            return parts[2] not in parts_needed or step >= CHUNK * self.snapshots[1]
        return True


def cut_journal(run: Path) -> int:
    """Cuts a damaged journal as its error says; how many good lines it has."""
    file = run / "journal.jsonl"
    content = file.read_bytes()
    for good in range(content.count(b"\n"), 0, -1):
        file.write_bytes(b"".join(content.splitlines(keepends=True)[:good]))
        try:
            RunFolder.open(run)
        except RunError:
            continue
        return good
    return 0


def try_one(truth: Truth, damage: Damage, run: Path, rng: random.Random, tally: Tally) -> None:
    """One trial on a copy of a run."""
    about = f"{damage.name}, {'cut at' if damage.cut else 'bit'} {damage.place}"
    damage.apply(run)
    tally.trials, tally.flips = tally.trials + 1, tally.flips + (not damage.cut)
    try:
        told = bool(RunFolder.open(run).damages())
    except RunError:
        told = True
    tally.verified += told
    if not told:
        tally.silent.append(about)
    lines = cut_journal(run)
    if not lines:
        tally.refused += STEPS
        return
    found = truth.run.steps(run)
    for step in rng.sample(range(truth.updates + 1), STEPS):
        try:
            right = fingerprint(found.at(step)) == truth.at(step)
        except RunError as error:
            tally.refused += 1
            if truth.intact(damage, step, lines):
                tally.lost.append(f"{about}: step {step}: {error}")
            continue
        tally.read += 1
        if not right:
            tally.wrong.append(f"{about}: step {step}")
    others = {"metrics": lambda: found.folder.metrics() == truth.metrics[: found.steps]}
    if found.steps == truth.updates:
        others["state"] = lambda: fingerprint(found.folder.state(truth.run.state)) == truth.state
    for name, read in others.items():
        try:
            if not read():
                tally.wrong.append(f"{about}: {name}")
        except RunError:
            pass


def damage_many(folder: Path, trials: int, seed: int, updates: int = UPDATES) -> dict[str, Tally]:
    """All trials, by kind of file; two thirds on low-rank updates, a third on dense ones."""
    tallies: dict[str, Tally] = {}
    for dense in (False, True):
        kind = "dense" if dense else "low rank"
        run = write_run(folder / kind, updates, CHUNK, dense=dense, seed=seed)
        draw_figures(run.path)
        truth, rng = Truth(run, not dense, updates), random.Random(f"{seed} {kind}")
        for _ in range(trials // 3 if dense else trials - trials // 3):
            damage, copy = draw(rng, run.path), folder / "copy"
            shutil.copytree(run.path, copy)
            try_one(truth, damage, copy, rng, tallies.setdefault(damage.kind, Tally()))
            shutil.rmtree(copy)
    return dict(sorted(tallies.items()))


def main(check: Check) -> None:
    """Prints a table; exits with 1 where damage was not seen, an array was wrong, or an intact step was lost."""
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        tallies = damage_many(Path(folder), check.trials, check.seed)
    table = Table(title=f"One bit flipped, or one cut, in each of {check.trials} runs; seed {check.seed}")
    names = ("file", "trials", "flips", "seen by verify", "steps read", "refused", "wrong", "intact but lost")
    for name in names:
        table.add_column(name, justify="left" if name == "file" else "right")
    rows = {
        kind: (t.trials, t.flips, t.verified, t.read, t.refused, len(t.wrong), len(t.lost))
        for kind, t in tallies.items()
    }
    rows["all"] = tuple(int(total) for total in np.sum(list(rows.values()), axis=0))  # type: ignore[assignment]
    for kind, row in rows.items():
        table.add_row(kind, *map(str, row), end_section=kind == list(tallies)[-1])
    Console(width=130).print(table)
    problems = [line for t in tallies.values() for line in (*t.silent, *t.wrong, *t.lost)]
    print("\n".join(problems))
    if check.json:
        check.json.write_text(json.dumps({kind: asdict(t) for kind, t in tallies.items()}, indent=2))
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Check, description=__doc__))
