"""The writer of a run that several processes make, as each of them sees it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxedit.processes import by_first
from jaxedit.trajectory.guard import Policy
from jaxedit.trajectory.store import RunFolder
from jaxedit.trajectory.writer import Done, RunWriter


class Follower:
    """`RunWriter` in all processes but the first."""

    def change_policy(self, policy: Policy) -> None:
        """Leaves the line to the first process."""

    def append(self, done: Done) -> None:
        """Leaves the chunk to the first process."""

    def wait(self) -> None:
        """Returns at once."""

    def end(self, summary: dict[str, Any]) -> None:
        """Leaves the summary to the first process."""


@contextmanager
def writer_of(folder: RunFolder) -> Iterator[RunWriter | Follower]:
    """The writer in the first process, followers in the others; they begin and end together."""
    with ExitStack() as stack:
        writer = by_first(lambda: stack.enter_context(RunWriter(folder)))
        yield Follower() if writer is None else writer
    by_first(lambda: None)
