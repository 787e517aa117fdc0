"""Peak host memory and time of loading a checkpoint in bfloat16, of a published shape with random weights.

    python scripts/bench_load.py [--shape llama-3-8b] [--processes 1] [--json FILE]

Writes the checkpoint to a temporary folder (--folder to choose the disk), in files of at most --shard GiB, and loads
it in fresh processes. Several processes are one `jax.distributed` run whose devices split the matrices: each should
hold its share and no more. Prints the peak of resident memory (VmHWM, mapped pages of the files and Python itself
included) over the checkpoint's size: on CPU, where parameters are host memory too.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tyro
from rich.console import Console

from jaxedit.models.families import decoder_config, family_of
from jaxedit.models.model import Model
from jaxedit.models.tensorfiles import INDEX, write_tensors
from jaxedit.models.weights import load_safetensors_folder
from jaxedit.parallel import devices_for
from scripts.shapes import SHAPES

BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    shape: str = "llama-3-8b"
    processes: int = 1
    shard: float = 4.0
    """GiB of a file, at most."""
    folder: Path | None = None
    json: Path | None = None
    part: tuple[int, str] | None = None
    """Of a process that loads: its number and the coordinator's address. Set by this script."""


def main(bench: Bench) -> None:
    if bench.part is not None:
        load(bench)
        return
    with tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
        folder = Path(scratch)
        size = write(folder, bench)
        found = processes(bench, folder)
    report = {"shape": bench.shape, "processes": bench.processes, "bytes": size, "loaded": found}
    report["ratio"] = [one["peak"] / size for one in found]
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"{bench.shape}, bfloat16: {size / 2**30:.2f} GiB of weights")
    for i, one in enumerate(found):
        out.print(
            f"process {i}: peak {one['peak'] / 2**30:.2f} GiB = {one['peak'] / size:.3f} x all weights "
            f"({one['before'] / 2**30:.2f} GiB before loading), parameters {one['held'] / 2**30:.2f} GiB, "
            f"{one['seconds']:.1f} s, {size / 2**30 / one['seconds']:.2f} GiB/s"
        )
    if bench.json is not None:
        bench.json.write_text(json.dumps(report, indent=1) + "\n")


def write(folder: Path, bench: Bench) -> int:
    """A checkpoint in shards; returns the bytes of its weights. One random block fills all tensors."""
    config = decoder_config(SHAPES[bench.shape])
    shapes = Model(config).shapes
    named = [(t.name, t.stored_shape(shapes)) for t in family_of(config.family).tensors(config)]
    block = (np.random.default_rng(0).standard_normal(2**20) * 0.02).astype(BF16)

    def numbers(tensors: list[tuple[str, tuple[int, ...]]]) -> Iterator[np.ndarray]:
        for _, shape in tensors:
            yield np.resize(block, shape)

    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    limit, used = bench.shard * 2**30 / BF16.itemsize, 0
    for tensor in named:
        count = int(np.prod(tensor[1]))
        if used and used + count > limit:
            files.append([])
            used = 0
        files[-1].append(tensor)
        used += count
    places: dict[str, str] = {}
    for i, tensors in enumerate(files, 1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        write_tensors(folder / name, tensors, BF16, numbers(tensors))
        places |= {tensor: name for tensor, _ in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return sum(int(np.prod(shape)) for _, shape in named) * BF16.itemsize


def processes(bench: Bench, folder: Path) -> list[dict[str, float]]:
    """What every process says of its loading."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    common = ["--shape", bench.shape, "--processes", str(bench.processes), "--folder", str(folder)]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *common, "--part", str(i), address], stdout=subprocess.PIPE, text=True
        )
        for i in range(bench.processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a process that loads has failed")
    return [json.loads(output) for output in outputs]


def load(bench: Bench) -> None:
    """Loads the checkpoint in this process and prints what that took."""
    assert bench.part is not None
    assert bench.folder is not None
    number, address = bench.part
    if bench.processes > 1:
        jax.distributed.initialize(address, bench.processes, number)
    devices = devices_for("mesh", tensor=bench.processes) if bench.processes > 1 else devices_for("one")
    config = decoder_config(SHAPES[bench.shape])
    jax.block_until_ready(jnp.zeros(()) + 1)
    before, start = peak(), time.perf_counter()
    params = jax.block_until_ready(load_safetensors_folder(bench.folder, config, jnp.bfloat16, devices))
    seconds = time.perf_counter() - start
    held = sum(shard.data.nbytes for leaf in params.values() for shard in leaf.addressable_shards)
    sys.stdout.write(json.dumps({"peak": peak(), "before": before, "held": held, "seconds": seconds}))


def peak() -> int:
    """Bytes of resident memory at its highest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
