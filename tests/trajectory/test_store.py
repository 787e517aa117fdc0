"""The run folder keeps what was finished, and says what is wrong with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.errors import ConfigError, RunError
from jaxedit.trajectory import journal as journals
from jaxedit.trajectory.journal import Finished
from jaxedit.trajectory.run import Chunk, chunk_function
from jaxedit.trajectory.snapshots import restore, save
from jaxedit.trajectory.store import FORMAT, RunFolder
from jaxedit.trajectory.writer import Done, RunWriter, create, refuse_existing
from tests.cases import same_bits
from tests.trajectory.made import Made, drawn, grow, make, new, requests, start


def damages(path: Path) -> list[str]:
    return RunFolder.open(path).damages()


def test_a_whole_run_is_found_whole(tmp_path: Path) -> None:
    made = make(tmp_path / "run", 7)
    assert made.folder.finished
    assert made.folder.damages() == []
    assert [line["update"] for line in made.folder.metrics()] == [*range(7)]
    assert [line["update"] for line in made.folder.metrics(behind=2)] == [6]
    assert made.folder.read("summary") == {"edits": 7}


def test_state_comes_back_to_the_bit_in_its_own_precision(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        inverse = {"layer": jnp.eye(3, dtype=jnp.float64) / 3}
    run = new(tmp_path / "run", inverse)
    back = run.state(inverse)
    assert back["layer"].dtype == np.float64
    assert same_bits(back, inverse)


def test_a_state_may_be_one_array(tmp_path: Path) -> None:
    count = jnp.arange(3, dtype=jnp.int32)
    assert same_bits(new(tmp_path / "run", count).state(jnp.zeros(3, jnp.int32)), count)


def test_same_run_leaves_the_same_bytes(tmp_path: Path) -> None:
    one, other = (make(tmp_path / name, 10).folder.path for name in ("one", "other"))
    for name in ("journal.jsonl", "metrics.jsonl", "summary.json", "updates/000002.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_what_was_not_acknowledged_is_dropped(tmp_path: Path) -> None:
    made = grow(new(tmp_path / "run"), 6)
    path = made.folder.path
    before = (path / "journal.jsonl").read_bytes()
    with (path / "journal.jsonl").open("a") as file:
        file.write('{"digest":"12')
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 6, "fac')
    (path / "updates" / "000002.safetensors").write_bytes(b"half")
    (path / "snapshots" / "000003" / "edited.partial").mkdir(parents=True)
    (path / "summary.json").write_text("{")
    assert RunFolder.open(path).updates == 6
    assert len(damages(path)) == 4
    with RunWriter(RunFolder.open(path)):
        pass
    assert damages(path) == []
    assert (path / "journal.jsonl").read_bytes() == before
    assert len(RunFolder.open(path).metrics()) == 6


@pytest.mark.parametrize("lines", [1, 2])
def test_a_journal_that_was_cut_loses_nothing_else(tmp_path: Path, lines: int) -> None:
    """With one line less the only state left is beyond the journal, with two more than a stop ever leaves."""
    path = grow(new(tmp_path / "run"), 12).folder.path
    journal = path / "journal.jsonl"
    whole, rows = journal.read_bytes(), journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(rows[:-lines]))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}
    with (
        pytest.raises(RunError, match=r"lines were cut\. Nothing was removed"),
        RunWriter(RunFolder.open(path)),
    ):
        pass
    assert {file: file.read_bytes() for file in before} == before
    journal.write_bytes(whole)
    with RunWriter(RunFolder.open(path)):
        pass
    assert damages(path) == []


def test_an_empty_folder_that_a_copy_left_out_is_no_damage(tmp_path: Path) -> None:
    path = new(tmp_path / "run").path
    (path / "updates").rmdir()
    assert damages(path) == []
    with RunWriter(RunFolder.open(path)):
        pass
    assert (path / "updates").is_dir()


def test_a_snapshot_is_on_the_disk_before_anything_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its files and folders, and the names that lead to them; its own name last."""
    synced: list[str] = []
    waits = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        waits(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "snapshots" / "000001" / "state"
    save(folder, {"w": jnp.ones((2, 2))})
    inside = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    draft = f"{folder}.partial/"
    assert inside <= {name.removeprefix(draft) for name in synced if name.startswith(draft)}
    assert {str(folder.parents[1]), str(folder.parent), draft[:-1]} <= set(synced)
    assert synced[-1] == str(folder.parent)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    with (
        RunWriter(run),
        pytest.raises(RunError, match="is being written by another process"),
        RunWriter(run),
    ):
        pass
    with RunWriter(run):
        pass


def test_nothing_is_written_behind_the_end(tmp_path: Path) -> None:
    made = make(tmp_path / "run", 3)
    summary = (made.folder.path / "summary.json").read_bytes()
    with RunWriter(made.folder) as writer:
        with pytest.raises(RunError, match="came to its end already"):
            writer.end({"edits": 9})
        with pytest.raises(RunError, match="came to its end already"):
            writer.change_policy("skip")
        with pytest.raises(RunError, match="came to its end already"):
            extend(writer)
    assert damages(made.folder.path) == []
    assert (made.folder.path / "summary.json").read_bytes() == summary


def test_a_folder_that_orbax_cannot_read_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"run\[0\]: checkpoints below a folder with '\[' in its name are lost"
    ):
        refuse_existing(tmp_path / "run[0]")


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"exists already\. Continue it with `jaxedit resume .*--out"):
        new(tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["mine.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(RunError, match=rf"run format 1, .*reads format {FORMAT}"):
        RunFolder.open(tmp_path)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    journals.create(tmp_path / "journal.jsonl", journals.Start(99, "", "", "", ""))
    with pytest.raises(RunError, match=f"line 1: run format 99; this version of jaxedit reads {FORMAT}"):
        RunFolder.open(tmp_path)


def test_other_base_weights_are_refused_by_name(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    run.require_base("mine", "f" * 64)
    with pytest.raises(RunError, match=r"other weights: the model 'mine' has fingerprint bbb.*the run fff"):
        run.require_base("mine", "b" * 64)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "run", 9)


def test_changed_settings_are_refused(made: Made) -> None:
    (made.folder.path / "config.json").write_text('{"editor": "other"}\n')
    with pytest.raises(RunError, match=r"config\.json was altered since the run wrote it\. A run keeps"):
        made.folder.read("config")


def test_damaged_metrics_are_named_by_their_updates(made: Made) -> None:
    file = made.folder.path / "metrics.jsonl"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged in the lines of updates 3 to 5, bytes \d+ to \d+"):
        made.folder.metrics()
    os.truncate(file, 5)
    with pytest.raises(RunError, match=r"was cut\. The updates are still good"), RunWriter(made.folder):
        pass


def test_damaged_factors_lose_their_own_steps_only(made: Made) -> None:
    file = made.folder.path / "updates" / "000001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (problem,) = made.folder.damages()
    assert "updates 3 to 5 are lost" in problem
    found = made.trajectory()
    for step in (0, 3, 6, 9):
        assert same_bits(found.at(step), made.live[step])
    with pytest.raises(RunError, match=r"updates 3 to 5 are lost.*Steps up to 3, and those"):
        found.at(4)


@pytest.mark.parametrize("line", [0, 1, 3])
def test_a_damaged_journal_names_the_line(made: Made, line: int) -> None:
    file = made.folder.path / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    broken = bytearray(lines[line])
    broken[-20] ^= 1
    file.write_bytes(b"".join([*lines[:line], bytes(broken), *lines[line + 1 :]]))
    with pytest.raises(RunError, match=rf"line {line + 1} is damaged"):
        RunFolder.open(made.folder.path)


def test_a_journal_with_a_line_missing_is_refused(made: Made) -> None:
    file = made.folder.path / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(RunError, match="line 3 is damaged, or a line before it is missing"):
        RunFolder.open(made.folder.path)
    file.write_bytes(b"".join(lines[:-1]))
    assert any("does not reach the end" in problem for problem in damages(made.folder.path))


def test_chunks_out_of_order_are_refused_though_their_digests_fit(made: Made, tmp_path: Path) -> None:
    entries = made.folder.journal.entries
    for number, first, match in ((1, 3, "chunk 1 of updates from 3 follows 0 chunks"), (0, 0, None)):
        file = tmp_path / f"journal-{number}.jsonl"
        journal = journals.create(file, made.folder.journal.start)
        journals.write(file, journal, Finished(number, first, 3, (), "", "", 0, ""))
        if match is None:
            assert len(journals.read(file, FORMAT).chunks) == 1
            continue
        with pytest.raises(RunError, match=match):
            journals.read(file, FORMAT)
    assert isinstance(entries[1], Finished)


def test_a_missing_snapshot_and_a_stranger_are_told(made: Made) -> None:
    (made.folder.path / "updates" / "mine.bin").write_bytes(b"x")
    (made.folder.path / "snapshots" / "000001").rename(made.folder.path / "elsewhere")
    found = "\n".join(damages(made.folder.path))
    assert "mine.bin is not in the journal" in found
    assert "000001/edited is missing" in found


def test_a_snapshot_of_other_numbers_is_refused(tmp_path: Path) -> None:
    """Checksums that fit, numbers that do not: the journal has the last word."""
    tree = {"a": jnp.ones((2, 2))}
    save(tmp_path / "one", tree)
    with pytest.raises(RunError, match="holds other numbers than the journal says"):
        restore(tmp_path / "one", tree, "0" * 64)
    with pytest.raises(RunError, match="is missing"):
        restore(tmp_path / "absent", tree, "0" * 64)


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "one", {"a": jnp.ones((2, 2))})
    for like in ({"a": jnp.ones((3, 2))}, {"b": jnp.ones((2, 2))}):
        with pytest.raises(RunError):
            restore(tmp_path / "one", like, "0" * 64)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    made = grow(new(tmp_path / "run"), 3)
    metrics = made.folder.path / "metrics.jsonl"
    kept = metrics.read_bytes()
    with RunWriter(made.folder) as writer:
        metrics.unlink()
        metrics.symlink_to("/dev/full")
        with pytest.raises(RunError, match=r"no space is left .*finished before are safe.*jaxedit resume"):
            extend(writer)
        metrics.unlink()
        metrics.write_bytes(kept)
    assert damages(made.folder.path) == []
    assert RunFolder.open(made.folder.path).updates == 3


def extend(writer: RunWriter) -> None:
    """One more chunk of the drawn editor's updates."""
    state = {"sum": jnp.zeros((), jnp.int32)}
    edited, state, steps = chunk_function(drawn())(start(), {}, state, Chunk(requests(range(3)), None))
    writer.append(Done(3, (1, 1, 1), steps, ["{}\n"] * 3, edited, state))
    writer.wait()


LIMITED = """
import resource, signal, sys
import jax
from jaxedit.errors import RunError
from jaxedit.trajectory.writer import create
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
big = {"layers.0.mlp.down.kernel": jax.random.normal(jax.random.key(0), (512, 512))}
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    create(sys.argv[1], {"config": {}, "environment": {}}, "", big, None)
except RunError as error:
    print(error)
    sys.exit(7)
"""


def test_no_room_for_a_snapshot_leaves_nothing_half_made(tmp_path: Path) -> None:
    """The limit on a file's size is the kernel's own, so the checkpointer fails as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr[-2000:]
    assert "no space is left" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_documents_are_json_for_people(tmp_path: Path) -> None:
    create(tmp_path / "run", {"config": {"a": 1}, "environment": {}}, "", {"w": jnp.ones(2)}, None)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"a": 1}
