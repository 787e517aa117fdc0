"""What all commands of the command line share."""

from dataclasses import dataclass

from rich.console import Console

TERMINATED = 143
"""Exit code after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Computing(Common):
    """What every command takes that compiles."""

    compile_cache: bool = True
    """Keep compiled programs in the cache folder. JAXEDIT_COMPILE_CACHE=0 turns it off for good."""


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints a line as it is: no markup, no colouring of numbers, no breaks but its own."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
