"""Running a target on drawn cases: which errors may come out, how long it may take, how much it may hold."""

import signal
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from jaxedit.errors import JaxeditError

SECONDS = 30  # of processor time for one case; cases take milliseconds
BYTES = 100 * 2**20


class Target(NamedTuple):
    """One entrance of the library. `run(place, case)` may raise nothing but a JaxeditError."""

    cases: st.SearchStrategy[Any]
    run: Callable[[Path, Any], None]
    share: int  # of every 100 cases


class Count:
    """How many cases there were, and how many of them were refused."""

    def __init__(self) -> None:
        self.cases = self.refused = 0


def fuzz(target: Target, place: Path, cases: int, seed: int) -> Count:
    """Runs the target on so many cases. Raises what a case brought out that no error of the library is."""
    count = Count()
    suppressed = [*HealthCheck]

    @with_seed(seed)
    @settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=suppressed, print_blob=True,
        phases=[Phase.generate],
    )  # fmt: skip
    @given(target.cases)
    def each(case: Any) -> None:
        count.cases += 1
        with limits():
            count.refused += refused(target, place, case)

    each()
    return count


def refused(target: Target, place: Path, case: Any) -> bool:
    """Whether a case is refused, with a message."""
    try:
        target.run(place, case)
    except JaxeditError as error:
        if not str(error).strip():
            raise ValueError("an error without a message") from error
        return True
    return False


@contextmanager
def limits():
    """Raises TimeoutError or MemoryError where a block takes too long, or too much memory at any moment."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"a case takes more than {SECONDS} s of processor time")

    before = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    held = _memory("VmRSS", reset=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if held is not None and _memory("VmHWM") - held > BYTES:
        raise MemoryError(f"a case held {(_memory('VmHWM') - held) / 2**20:.0f} MiB")


def _memory(name: str, reset: bool = False) -> Any:
    """Bytes of this process by the kernel's account; None where it keeps none."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
    return None
