"""The run folder keeps what was finished, and says what is wrong with it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxedit.errors import RunError
from jaxedit.trajectory.run import Step
from jaxedit.trajectory.store import FORMAT, RunFolder
from jaxedit.types import LowRank

PATH = "layers.0.mlp.down.kernel"


def new_run(path: Path) -> RunFolder:
    return RunFolder.create(path, config={}, environment={"format": FORMAT})


def steps(updates: int) -> Step:
    rng = np.random.default_rng(updates)
    left, right = rng.normal(size=(updates, 6, 1)), rng.normal(size=(updates, 1, 4))
    factors = {PATH: LowRank(left.astype(np.float32), right.astype(np.float32))}
    return Step(
        norm={}, delta_norm={}, finite=np.ones(updates, bool), metrics={}, observed={}, factors=factors
    )


def test_factors_come_back_to_the_bit(tmp_path: Path) -> None:
    run, chunk = new_run(tmp_path / "run"), steps(3)
    run.append(0, chunk, [{"update": i} for i in range(3)])
    stored = load_file(tmp_path / "run" / "updates" / "chunk-00000.safetensors")
    np.testing.assert_array_equal(stored[f"{PATH}/left"], chunk.factors[PATH].left)
    np.testing.assert_array_equal(stored[f"{PATH}/right"], chunk.factors[PATH].right)


def test_state_comes_back_to_the_bit_in_its_own_precision(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with jax.enable_x64(True):
        inverse = jnp.eye(3, dtype=jnp.float64) / 3
    edited, state = {PATH: jnp.arange(6.0).reshape(2, 3)}, {PATH: inverse}
    run.save(1, edited, state)
    back, remembered = RunFolder.open(tmp_path / "run").restore(edited, state)
    np.testing.assert_array_equal(back[PATH], edited[PATH])
    assert remembered[PATH].dtype == np.float64
    np.testing.assert_array_equal(np.asarray(remembered[PATH]), np.asarray(inverse))


def test_what_was_not_finished_is_dropped(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.append(0, steps(2), [{"update": 0}, {"update": 1}])
    run.save(1, {PATH: jnp.ones((2, 2))}, {})
    run.append(1, steps(2), [{"update": 2}, {"update": 3}])
    again = RunFolder.open(tmp_path / "run")
    again.drop_unfinished(2)
    assert again.metrics() == [{"update": 0}, {"update": 1}]
    assert [file.name for file in (tmp_path / "run" / "updates").iterdir()] == ["chunk-00000.safetensors"]


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"exists already\. Continue it with `jaxedit resume .*--out"):
        new_run(tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", config={}, environment={"format": 99})
    with pytest.raises(RunError, match="run format 99, this version of jaxedit reads 1"):
        RunFolder.open(tmp_path / "run")


def test_other_base_weights_are_refused_by_name(tmp_path: Path) -> None:
    run = RunFolder.create(
        tmp_path / "run", config={}, environment={"format": FORMAT, "fingerprint": "a" * 64}
    )
    run.require_base("mine", "a" * 64)
    with pytest.raises(RunError, match=r"other weights: the model 'mine' has fingerprint bbb.*the run aaa"):
        run.require_base("mine", "b" * 64)


def test_damaged_documents_are_named_with_their_line(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"summary\.json is missing"):
        run.read("summary")
    (run.path / "config.json").write_text('{\n"a": 1,,\n}')
    with pytest.raises(RunError, match=r"config\.json is damaged at line 2, column \d+"):
        run.read("config")
    (run.path / "metrics.jsonl").write_text(json.dumps({"update": 0}) + '\n{"update": \n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2 is damaged.*before it are good"):
        run.metrics()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.append(0, steps(1), [{"update": 0}])
    run.save(1, {PATH: jnp.ones((2, 2))}, {})
    metrics = run.path / "metrics.jsonl"
    kept = metrics.read_text()
    metrics.unlink()
    metrics.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"no space is left .*finished before are safe.*jaxedit resume"):
        run.append(1, steps(1), [{"update": 1}])
    metrics.unlink()
    metrics.write_text(kept)
    again = RunFolder.open(run.path)
    again.drop_unfinished(1)
    assert (again.finished_chunks, again.metrics()) == (1, [{"update": 0}])


LIMITED = """
import resource, signal, sys
import jax, jax.numpy as jnp
from jaxedit.errors import RunError
from jaxedit.trajectory.store import RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = RunFolder.open(sys.argv[1])
big = jax.random.normal(jax.random.key(0), (512, 512))
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    run.save(2, {"layers.0.mlp.down.kernel": big}, {})
except RunError as error:
    print(error)
    sys.exit(7)
"""


def test_no_room_for_a_state_leaves_the_one_before(tmp_path: Path) -> None:
    """The limit on a file's size is the kernel's own, so the checkpointer fails as on a full disk."""
    run, edited = new_run(tmp_path / "run"), {PATH: jnp.ones((2, 2))}
    run.save(1, edited, {})
    done = subprocess.run([sys.executable, "-c", LIMITED, str(run.path)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr[-2000:]
    assert "no space is left" in done.stdout
    again = RunFolder.open(run.path)
    assert again.finished_chunks == 1
    np.testing.assert_array_equal(again.restore(edited, {})[0][PATH], edited[PATH])
