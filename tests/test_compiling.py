"""What compiling leaves behind."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxedit import compiling

compiling.TRIMMED_SECONDS = 0.0
if sys.argv[1] == "given back":
    compiling.set_up_compiling(keep=False)
    compiling.set_up_compiling(keep=False)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

before = resident()
blocks = [libc.malloc(2**16) for _ in range(8_000)]
for block in blocks:
    ctypes.memset(block, 1, 2**16)
for block in blocks[:-1]:  # behind the last one the C library cannot shrink its heap by itself
    libc.free(block)
jax.jit(lambda x: jnp.sin(x) * 2)(jnp.ones(3))
print((resident() - before) / 1024)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs Linux with glibc",
)
def test_what_was_freed_is_given_back_when_a_program_was_compiled() -> None:
    mebibytes = {
        case: float(
            subprocess.run([sys.executable, "-c", PROGRAM, case], check=True, capture_output=True).stdout
        )
        for case in ("kept", "given back")
    }
    assert mebibytes["kept"] > 450  # of 500
    assert mebibytes["given back"] < 200
