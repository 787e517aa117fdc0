"""TensorBoard's event files of runs: `pip install jaxedit[tensorboard]`.

A run is one of TensorBoard's runs; the controls that were measured beside it are others, so that a measure and its
control share a chart. Steps are edits.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.errors import ConfigError
from jaxedit.report.page.source import Source, labels_of
from jaxedit.report.record import SCORES, kind_of, layer_of

FILE = "events.out.tfevents.0.jaxedit"  # TensorBoard's own names hold a time and a host
VERSION = "brain.Event:2"
Scalar = tuple[int, str, float]
"""Edits, tag, value."""


def write_events(sources: Sequence[Source], folder: str | Path) -> list[Path]:
    """Writes a folder of each run and each control, in place of what this function wrote there; returns the files.

    Scalars by edits: scores of single facts and their running means, norms, growth, norms of updates, all
    measures. Texts: the configuration. The same runs give the same bytes. Raises ConfigError where tensorboardX is
    not installed.
    """
    try:
        from tensorboardX.record_writer import RecordWriter
    except ImportError:
        raise ConfigError(
            "event files for TensorBoard need tensorboardX: `pip install jaxedit[tensorboard]`"
        ) from None
    written = []
    for source, label in zip(sources, labels_of(sources), strict=True):
        for name, scalars in {label: run_scalars(source), **_measured(source, label)}.items():
            file = Path(folder) / name / FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            writer = RecordWriter(str(file))
            for event in _events(scalars, source.config if name == label else {}):
                writer.write(event)
            writer.close()
            written.append(file)
    return written


def run_scalars(source: Source) -> list[Scalar]:
    """What a run recorded itself, and what was measured of its model."""
    record = source.record
    found: list[Scalar] = []
    for score in SCORES if record.scores else ():
        found += _series(f"running/{score}", record.running(score))
    for name, values in record.scores.items():
        found += _series(f"scores/{name}", values)
    for step, means in ((0, record.unedited), (int(record.edits[-1]), record.final)):
        found += [(step, f"all_edits/{name}", value) for name, value in means.items()]
    for path in record.norm:
        with np.errstate(invalid="ignore", divide="ignore"):
            growth = record.growth(path)
        edits, norm = record.trajectory(path)
        for name, at, series in (
            ("norm", edits, norm),
            ("growth", edits, growth),
            ("update_norm", record.edits, source.update_norm[path]),
        ):
            found += [(int(x), f"{name}/{path}", float(y)) for x, y in zip(at, series, strict=True)]
    return found + _rows(source, "edited")


def _measured(source: Source, label: str) -> dict[str, list[Scalar]]:
    models = sorted({row["model"] for row in source.measures} - {"edited"})
    return {f"{label}-{model}": _rows(source, model) for model in models}


def _rows(source: Source, model: str) -> list[Scalar]:
    edits = np.r_[0, source.record.edits]
    return [
        (int(edits[row["step"]]), _tag(row), row["value"]) for row in source.measures if row["model"] == model
    ]


def _tag(row: dict[str, Any]) -> str:
    what, layer = kind_of(row["where"]).removeprefix("layers."), layer_of(row["where"])
    parts = (what, row["measure"], row["prompts"], row["position"], f"layer_{layer}" if layer >= 0 else "")
    return "/".join(part for part in parts if part)


def _series(tag: str, values: Iterable[float]) -> list[Scalar]:
    return [(edit, tag, float(value)) for edit, value in enumerate(values, start=1)]


def _events(scalars: Iterable[Scalar], config: dict[str, Any]) -> Iterator[bytes]:
    """The file's version, the configuration, and one event a step."""
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event

    yield Event(file_version=VERSION).SerializeToString()
    if config:
        text = json.dumps(config, indent=2, ensure_ascii=False).replace("\n", "\n    ")
        yield Event(step=0, summary=summary.text("config", f"    {text}")).SerializeToString()
    steps: dict[int, Any] = {}
    for step, tag, value in scalars:
        event = steps.setdefault(step, Event(step=step))
        event.summary.MergeFrom(summary.scalar(tag, value))
    yield from (steps[step].SerializeToString() for step in sorted(steps))
