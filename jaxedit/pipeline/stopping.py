"""Being asked to stop by the system."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jaxedit.pipeline.sequence import Stop


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Tells whether SIGTERM came, as it does before a machine is taken away; the chunk at work is then finished."""
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
