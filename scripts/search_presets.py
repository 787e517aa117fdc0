"""Searches an editor's settings on facts that a model knows.

    python scripts/search_presets.py --editor memit --grid lam=10,100,1000 layers=8,6-10 [--facts 20]

Every fact is written alone into the unedited model, and scored right after. Settings are compared by the mean
score S (harmonic mean of ES, PS and NS), equal ones by the smaller change of the weights. Prints a table and
writes the figures, with everything they depend on, as JSON. What is learned goes into jaxedit/editors/presets.py.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxedit.compiling import set_up_compiling
from jaxedit.configs import build
from jaxedit.data.encode import encode_requests, request_shape
from jaxedit.data.probes import encode_probes, probe_shape
from jaxedit.editors import Settings
from jaxedit.editors.presets import known_model
from jaxedit.evaluation.edits import probe_scores, summarise
from jaxedit.linalg import dense, frobenius
from jaxedit.models.sources import load
from jaxedit.pipeline import Prepared, RunConfig, choose_facts, draw_contexts, prepare, quiet
from jaxedit.pipeline.prepare import environment
from jaxedit.pipeline.sweep import read_grid
from jaxedit.types import Params, Probes, Requests

SHOWN = ("ES", "PS", "NS", "S", "EM")


@dataclass(frozen=True)
class Search:
    """What to try: every combination of the grid's values."""

    editor: str = "memit"
    model: str = "smollm2-135m"
    grid: tuple[str, ...] = ()
    """SETTING=VALUE,VALUE,...; layers as 8 or 6-10. The preset alone where nothing is given."""
    facts: int = 20
    """Known facts of `world` to edit, in order."""
    seed: int = 0
    out: Path | None = None
    """JSON file to write; by default runs/search-EDITOR.json."""


def main(search: Search) -> None:
    console = Console()
    set_up_compiling()
    common = RunConfig(model=search.model, editor=search.editor, seed=search.seed, count=search.facts)
    checkpoint = load(common.model)
    facts = choose_facts(common, checkpoint, quiet)
    contexts = draw_contexts(common, checkpoint)
    grid = read_grid(search.grid)
    rows: list[dict[str, Any]] = []
    for combination in itertools.product(*grid.values()):
        settings = build(Settings, dict(zip(grid, combination, strict=True)))
        config = dataclasses.replace(common, settings=settings)
        ready = prepare(config, checkpoint, facts, contexts, quiet)
        rows.append(described(settings) | measure(ready))
        console.print_json(json.dumps(rows[-1]))
    best = max(rows, key=lambda row: (round(row["S"], 6), -row["change"]))
    console.print(table(search, rows, best))
    out = search.out or Path("runs") / f"search-{search.editor}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record(search, common, ready, rows, best), indent=1))
    console.print(f"Figures in {out}", markup=False, highlight=False)


def described(settings: Settings) -> dict[str, Any]:
    """The departures from the preset."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}


def measure(ready: Prepared) -> dict[str, Any]:
    """Mean scores of every fact written alone, and the mean ||Delta|| / ||W|| over edits and matrices."""
    checkpoint, model = ready.checkpoint, ready.checkpoint.model
    limit, tokenizer = model.config.max_positions, checkpoint.tokenizer
    shape = request_shape(ready.facts, tokenizer, ready.contexts, max_length=limit)
    probes_shape = probe_shape(ready.facts, tokenizer, max_length=limit)
    score = functools.partial(probe_scores, model)

    @jax.jit
    def edit(params: Params, state: Any, requests: Requests, probes: Probes) -> tuple[Any, Any, Any]:
        edited, _, info = ready.editor.update(params, state, requests)
        change = [frobenius(dense(d)) / frobenius(params.edited[path]) for path, d in info.delta.items()]
        return score(edited, probes), sum(change) / len(change), info.finite

    state = ready.editor.init(ready.params)
    scores, changes, finite = [], [], True
    start = time.perf_counter()
    for fact in ready.facts:
        requests = encode_requests([fact], tokenizer, ready.contexts, max_length=limit, shape=shape)
        probes = encode_probes([fact], tokenizer, max_length=limit, shape=probes_shape)
        found, change, well = jax.device_get(edit(ready.params, state, requests, probes))
        scores.append(found)
        changes.append(float(change))
        finite = finite and bool(well)
    means = summarise({name: np.concatenate([one[name] for one in scores]) for name in scores[0]})
    seconds = time.perf_counter() - start
    return means | {"change": float(np.mean(changes)), "finite": finite, "seconds": seconds}


def record(
    search: Search, config: RunConfig, ready: Prepared, rows: list[dict[str, Any]], best: dict[str, Any]
) -> dict[str, Any]:
    """Figures and what they depend on."""
    return {
        "search": dataclasses.asdict(search) | {"out": None},
        "model": known_model(ready.checkpoint.model.config),
        "environment": environment(config, ready),
        "facts": [fact.id for fact in ready.facts],
        "rows": rows,
        "best": best,
    }


def table(search: Search, rows: list[dict[str, Any]], best: dict[str, Any]) -> Table:
    """One row a combination, in percent; the best is bold."""
    result = Table(title=f"{search.editor} on {search.model}, {search.facts} facts one at a time")
    given = list(read_grid(search.grid))
    for name in (*given, *SHOWN, "change", "finite", "seconds"):
        result.add_column(name, justify="right")
    for row in rows:
        numbers = [f"{100 * row[name]:.1f}" for name in (*SHOWN, "change")]
        cells = [str(row.get(name, "preset")) for name in given]
        rest = [str(row["finite"]), f"{row['seconds']:.0f}"]
        result.add_row(*cells, *numbers, *rest, style="bold" if row is best else "")
    return result


if __name__ == "__main__":
    main(tyro.cli(Search, description=__doc__))
