"""`jaxedit trace`: causal tracing of a model on facts that it knows, its figure, and the layers to edit."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from jaxedit.commands.common import say
from jaxedit.configs import require_at_least
from jaxedit.data.known import KnownFact, load_known
from jaxedit.data.trace import encode_trace
from jaxedit.diagnostics.layers import choose_layer, choose_span
from jaxedit.diagnostics.tracing import (
    WINDOW,
    Effects,
    Site,
    TraceConfig,
    average_effects,
    each_token,
    noise_scale,
    recall,
    subject_noise,
    subject_tokens,
    trace_effects,
)
from jaxedit.errors import ConfigError, FactError
from jaxedit.models.sources import Checkpoint, load
from jaxedit.report.progress import reporting
from jaxedit.report.trace_figure import KINDS, TraceMap, write_trace_figure
from jaxedit.types import LAST_SUBJECT, TracePrompts

Report = Callable[[str, int, int], None]
RECALLED_TOGETHER = 64


@dataclass(frozen=True)
class TraceRun:
    """A causal trace, fully specified: the same configuration gives the same numbers."""

    model: Annotated[Positional[str], arg(metavar="MODEL")] = "smollm2-135m"
    """Folder, hub id, or built-in name of the model."""
    out: Path = Path("runs/trace")
    """Folder to write; it must not exist."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    facts: str = "world"
    """"world", or a file of facts; known_1000.json of Meng et al. 2022 too."""
    skip_invalid: bool = False
    """Leave out facts that cannot be used, instead of stopping; records of known_1000.json are never left out."""
    count: int = 20
    """How many facts to average over."""
    known: bool = True
    """Take only facts whose object the model gives by arg-max, by measuring."""
    subject_tokens: int = 2
    """Least tokens of a subject: with one, early layers put back undo the noise itself, whatever they recall."""
    sites: tuple[Site, ...] = ("residual", "mlp", "attention")
    """What is put back; layers are chosen by "mlp"."""
    window: int = WINDOW["mlp"]
    """Layers whose MLP or attention outputs are put back together; of the residual stream it is one."""
    samples: int = 10
    """Draws of the noise."""
    noise: float = 3.0
    """Its standard deviation over that of the subjects' embeddings."""
    at_once: int | None = None
    """Draws run together; fewer take less memory."""
    span: int = 5
    """Layers to choose for editors of several."""
    seed: int = 0
    """Of the noise."""


class Traced(NamedTuple):
    """What a trace found."""

    maps: tuple[TraceMap, ...]
    clean: float  # mean probability of the object
    corrupted: float
    layer: int | None  # None where MLP outputs were not traced
    span: tuple[int, ...] | None


def execute_trace(config: TraceRun, out: Console, err: Console) -> None:
    """Traces, writes `trace.json` and the figure, and prints the peaks and the chosen layers."""
    with reporting(err, "loading the model") as report:
        found = trace(config, report)
    out.print(peak_table(found))
    if found.layer is not None and found.span is not None:
        layers = " ".join(map(str, found.span))
        several = f"Layers {found.span[0]} to {found.span[-1]} for editors of several"
        say(out, f"Layer {found.layer} for editors of one layer: --settings.layers {found.layer}")
        say(out, f"{several}: --settings.layers {layers}")
    say(out, f"Figure and numbers are in {config.out}")


def trace(config: TraceRun, report: Report) -> Traced:
    """Causal tracing of `config`; writes its folder. Raises ConfigError and FactError for what cannot work."""
    _check(config)
    checkpoint = load(config.model, dtype=jnp.dtype(config.dtype))
    facts = _choose_facts(config, checkpoint, report)
    prompts = encode_trace(facts, checkpoint.tokenizer, max_length=checkpoint.model.config.max_positions)
    scale = float(noise_scale(checkpoint.model, checkpoint.params, prompts, config.noise))
    effects = {site: _effects(config, site, checkpoint, prompts, scale, report) for site in config.sites}
    maps = tuple(_map(site, config, found, prompts) for site, found in effects.items())
    first = next(iter(effects.values()))
    profile = {found.site: found.effect[LAST_SUBJECT] for found in maps}.get("mlp")
    found = Traced(
        maps=maps,
        clean=float(first.clean.mean()),
        corrupted=float(first.corrupted.mean()),
        layer=None if profile is None else choose_layer(profile),
        span=None if profile is None else choose_span(profile, min(config.span, len(profile))),
    )
    config.out.mkdir(parents=True)
    (config.out / "trace.json").write_text(
        json.dumps(_record(config, checkpoint, facts, scale, first, found), indent=1)
    )
    name = Path(config.model).name
    write_trace_figure(maps, config.out, f"{name}: where {len(facts)} facts are recalled")
    return found


def peak_table(found: Traced) -> Table:
    """By site and kind of token: the highest average indirect effect, and its layer in brackets."""
    title = f"p(object) is {found.clean:.3f}, with noise {found.corrupted:.3f}. Given back at most (layer)"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("token")
    for one in found.maps:
        table.add_column(f"{one.site} x{one.window}", justify="right", no_wrap=True)
    for kind, name in enumerate(KINDS):
        table.add_row(name, *(_peak(one.effect[kind]) for one in found.maps))
    return table


def _peak(effect: np.ndarray) -> str:
    return "–" if np.isnan(effect).any() else f"{effect.max():+.3f} ({effect.argmax()})"


def _check(config: TraceRun) -> None:
    if config.out.exists():
        raise ConfigError(f"{config.out} exists already: choose another folder with --out")
    require_at_least(config, count=1, subject_tokens=1, samples=1, window=1, span=1)
    if not config.sites or len(set(config.sites)) != len(config.sites):
        raise ConfigError(f"sites are {config.sites}; give one or more, each once")
    if not config.noise > 0:
        raise ConfigError(f"noise is {config.noise}; it must be above 0")


def _choose_facts(config: TraceRun, checkpoint: Checkpoint, report: Report) -> list[KnownFact]:
    """The first `count` facts with long enough subjects, and objects that the model gives by arg-max."""
    facts = load_known(config.facts, skip_invalid=config.skip_invalid)
    limit = checkpoint.model.config.max_positions
    prompts = encode_trace(facts, checkpoint.tokenizer, max_length=limit)
    fits = np.asarray(subject_tokens(prompts)).sum(axis=-1) >= config.subject_tokens
    step = jax.jit(functools.partial(recall, checkpoint.model))
    chosen: list[KnownFact] = []
    for start in range(0, len(facts), RECALLED_TOGETHER):
        if len(chosen) >= config.count:
            break
        rows = np.minimum(np.arange(start, start + RECALLED_TOGETHER), len(facts) - 1)
        batch = range(start, min(start + RECALLED_TOGETHER, len(facts)))
        good = fits[rows]
        if config.known:
            good &= np.asarray(step(checkpoint.params, TracePrompts(*(x[rows] for x in prompts))).knows)
        chosen += [facts[i] for i, yes in zip(batch, good, strict=False) if yes]
        report("choosing facts", min(len(chosen), config.count), config.count)
    if len(chosen) < config.count:
        what = "that the model knows " if config.known else ""
        raise FactError(
            f"{config.facts!r} has {len(chosen)} facts {what}with subjects of {config.subject_tokens} or more"
            f" tokens but {config.count} are asked for: lower --count, or --subject-tokens"
            + (", or take unknown facts too with --no-known" if config.known else "")
        )
    return chosen[: config.count]


def _effects(
    config: TraceRun, site: Site, checkpoint: Checkpoint, prompts: TracePrompts, scale: float, report: Report
) -> Effects:
    """Every token put back alone, one fact a call."""
    model, stage = checkpoint.model, f"tracing the {site}"
    one = TraceConfig(site=site, window=_window(site, config), at_once=config.at_once)

    @jax.jit
    def step(params: dict[str, Array], prompt: TracePrompts) -> Effects:
        key = jax.random.key(config.seed)
        noise = subject_noise(key, prompt, config.samples, model.config.d_model, scale)
        return trace_effects(model, params, prompt, noise, each_token(prompt), one)

    parts = []
    report(stage, 0, len(prompts.case))
    for i in range(len(prompts.case)):
        parts.append(jax.device_get(step(checkpoint.params, TracePrompts(*(x[i : i + 1] for x in prompts)))))
        report(stage, i + 1, len(prompts.case))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _window(site: Site, config: TraceRun) -> int:
    return WINDOW[site] if site == "residual" else config.window


def _map(site: Site, config: TraceRun, effects: Effects, prompts: TracePrompts) -> TraceMap:
    average = average_effects(effects.indirect, prompts)
    return TraceMap(site, _window(site, config), np.asarray(average.effect), np.asarray(average.facts))


def _record(
    config: TraceRun,
    checkpoint: Checkpoint,
    facts: Sequence[KnownFact],
    scale: float,
    effects: Effects,
    found: Traced,
) -> dict[str, Any]:
    kinds = [kind.replace(" ", "_") for kind in KINDS]
    return {
        "config": dataclasses.asdict(config) | {"out": str(config.out)},
        "fingerprint": checkpoint.fingerprint,
        "noise": scale,
        "facts": [
            dataclasses.asdict(fact) | {"clean": float(clean), "corrupted": float(corrupted)}
            for fact, clean, corrupted in zip(facts, effects.clean, effects.corrupted, strict=True)
        ],
        "layer": found.layer,
        "span": found.span,
        "sites": {
            one.site: {
                "window": one.window,
                "facts": dict(zip(kinds, one.facts.tolist(), strict=True)),
                "indirect_effect": {
                    kind: None if np.isnan(row).any() else row.tolist()
                    for kind, row in zip(kinds, one.effect.astype(float), strict=True)
                },
            }
            for one in found.maps
        },
    }
