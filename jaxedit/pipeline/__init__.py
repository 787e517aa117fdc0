"""From settings to finished runs and back again. The only rooms where all others meet."""

from jaxedit.pipeline.config import DeviceConfig, Limits, RunConfig, TextStream, check, config_from
from jaxedit.pipeline.history import branch, model_at, trajectory
from jaxedit.pipeline.prepare import (
    Prepared,
    Report,
    choose_facts,
    draw_contexts,
    generator,
    known_facts,
    prepare,
    quiet,
    run_key,
)
from jaxedit.pipeline.sequence import Stop, devices_of, resume, run

__all__ = [
    "DeviceConfig",
    "Limits",
    "Prepared",
    "Report",
    "RunConfig",
    "Stop",
    "TextStream",
    "branch",
    "check",
    "choose_facts",
    "config_from",
    "devices_of",
    "draw_contexts",
    "generator",
    "known_facts",
    "model_at",
    "prepare",
    "quiet",
    "resume",
    "run",
    "run_key",
    "trajectory",
]
