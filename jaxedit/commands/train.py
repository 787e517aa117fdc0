"""`jaxedit train`: trains the network of an editor that needs one."""

import time
from dataclasses import dataclass, field
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from jaxedit.commands.common import Computing, say
from jaxedit.pipeline.train import TrainRun, train
from jaxedit.report.progress import reporting


@dataclass(frozen=True, kw_only=True)
class Train(Computing):
    """Train the network of an editor that needs one; the same command again goes on after a stop."""

    config: Annotated[TrainRun, arg(name="")] = field(default_factory=TrainRun)


def execute_train(config: TrainRun, out: Console, err: Console) -> None:
    """Trains and tells what came of it."""
    start = time.monotonic()
    with reporting(err, "loading the model") as report:
        file, curve = train(config, report)
    seconds = time.monotonic() - start
    say(out, f"Loss on the held-out facts: {curve[0]:.4f} untrained, {min(curve):.4f} at best.")
    say(out, f"The network is in {file}; it took {seconds:.0f} s. Edit with it:")
    say(out, f"  jaxedit run --editor {config.editor} --network {file}")
