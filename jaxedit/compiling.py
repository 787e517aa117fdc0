"""What becomes of the work of compiling: programs are kept for later, and the memory that it took is given back."""

import ctypes
import functools
import os

import jax

from jaxedit.models.sources import default_cache

CACHED_SECONDS = 0.3  # programs that compile faster than this are not kept
CACHED_BYTES = 2 * 1024**3
TRIMMED_SECONDS = 1.0  # programs that compile faster than this leave little
COMPILED = "/jax/core/compile/backend_compile_duration"


def set_up_compiling(keep: bool = True) -> None:
    """For programs of one's own, before they compute: `give_back_memory`, and `keep_compiled` if asked."""
    give_back_memory()
    if keep:
        keep_compiled()


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, unless the environment has set it, or has it off."""
    if os.environ.get("JAXEDIT_COMPILE_CACHE", "1") == "0" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
    jax.config.update("jax_compilation_cache_max_size", CACHED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHED_SECONDS)


@functools.cache
def give_back_memory() -> None:
    """Gives the system back what is free in this process whenever a program was compiled.

    The C library keeps what the compiler frees: 6 GB for continual pre-training of a model of 0.5 GB. Only glibc can
    be asked; with others nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is None:
        return

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED and duration_secs >= TRIMMED_SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)
