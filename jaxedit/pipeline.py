"""From settings to a finished run: loads, measures, edits, scores. The only place where all rooms meet."""

import dataclasses
import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxedit.configs import build
from jaxedit.data.contexts import sample_contexts
from jaxedit.data.encode import encode_requests, request_shape
from jaxedit.data.facts import Fact
from jaxedit.data.probes import encode_probes, probe_shape
from jaxedit.data.records import dump_jsonl
from jaxedit.data.shapes import RequestShape, pad_probes, pad_requests
from jaxedit.data.sources import load_facts
from jaxedit.editors import Settings, method
from jaxedit.errors import ConfigError, FactError
from jaxedit.evaluation.edits import probe_scores, score_all, summarise
from jaxedit.evaluation.generation import sample
from jaxedit.models.model import join
from jaxedit.models.sources import Checkpoint, load
from jaxedit.moments import MomentSource, load_moments
from jaxedit.trajectory.run import Chunk, Step, chunk_function, matrix_norms, stack
from jaxedit.trajectory.store import FORMAT, RunFolder
from jaxedit.types import Editor, Params, Requests

Report = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class RunConfig:
    """A sequence of edits, fully specified: the same configuration gives the same numbers."""

    out: str = "runs/latest"
    """Run folder to write; it must not exist."""
    model: str = "smollm2-135m"
    """Folder, hub id, or built-in name of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; edited matrices are float32 always."""
    facts: str = "world"
    """"world", or a file of facts (CounterFact, zsRE, KnowEdit, JSONL)."""
    count: int = 30
    """How many facts to edit."""
    known: bool = True
    """Take only facts that the unedited model knows, by measuring."""
    editor: str = "memit"
    """Name of the editor; `jaxedit editors` lists them."""
    settings: Settings = Settings()
    """Departures from the editor's preset."""
    batch_size: int = 1
    """Facts written by one update; 0 writes all at once."""
    chunk: int = 10
    """Updates between saves; each chunk is one compiled call."""
    moments: MomentSource = MomentSource()
    """Where the second moments of keys come from."""
    score: bool = True
    """Score every edit right after its update."""
    seed: int = 0
    """Of everything random: contexts, sampled text, the order of facts."""


class Prepared(NamedTuple):
    """A run's ingredients, before its first update."""

    checkpoint: Checkpoint
    facts: list[Fact]
    contexts: tuple[str, ...]
    moments: dict[int, Float[Array, "d_k d_k"]]  # empty for editors without
    editor: Editor
    params: Params


def quiet(stage: str, done: int, total: int) -> None:
    """A report that says nothing."""


def run(config: RunConfig, report: Report = quiet) -> RunFolder:
    """Edits `config.count` facts in sequence and writes the run folder; returns it when all is done."""
    check(config)
    if Path(config.out).exists():
        RunFolder.create(config.out)  # refuses before any work is done
    checkpoint = load(config.model, dtype=jnp.dtype(config.dtype))
    facts = choose_facts(config, checkpoint, report)
    contexts = draw_contexts(config, checkpoint)
    folder = RunFolder.create(
        config.out,
        config=dataclasses.asdict(config),
        environment=environment(config, checkpoint, contexts),
    )
    dump_jsonl(facts, folder.path / "facts.jsonl")
    prepared = prepare(config, checkpoint, facts, contexts, report)
    return finish(config, folder, prepared, report)


def resume(path: str | Path, report: Report = quiet) -> RunFolder:
    """Goes on with a stopped run from its last finished chunk, to the same end as if it had not stopped."""
    folder = RunFolder.open(path)
    config = config_from(folder.read("config") | {"out": str(path)})
    checkpoint = load(config.model, dtype=jnp.dtype(config.dtype))
    folder.require_base(config.model, checkpoint.fingerprint)
    facts = load_facts(str(folder.path / "facts.jsonl"))
    prepared = prepare(config, checkpoint, facts, tuple(folder.read("environment")["contexts"]), report)
    return finish(config, folder, prepared, report)


def check(config: RunConfig) -> None:
    """Raises ConfigError for settings that cannot work, before anything is loaded."""
    method(config.editor)
    for name, least in (("count", 1), ("chunk", 1), ("batch_size", 0)):
        if getattr(config, name) < least:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be at least {least}")


def choose_facts(config: RunConfig, checkpoint: Checkpoint, report: Report) -> list[Fact]:
    """The facts to edit, in order. Raises FactError where the set has too few."""
    facts = load_facts(config.facts)
    if config.known:
        facts = known_facts(facts, config.count, checkpoint, report)
    if len(facts) < config.count:
        what = "that the model knows " if config.known else ""
        raise FactError(
            f"{config.facts!r} has {len(facts)} facts {what}but {config.count} are asked for: lower --count"
            + (", or take unknown facts too with --no-known" if config.known else "")
        )
    return facts[: config.count]


def known_facts(
    facts: Sequence[Fact], count: int, checkpoint: Checkpoint, report: Report = quiet, batch: int = 64
) -> list[Fact]:
    """The first `count` facts whose true object the unedited model gives by arg-max on the bare prompt."""
    model = checkpoint.model
    bare = [
        dataclasses.replace(fact, paraphrases=(), neighborhood=(), neighborhood_true=()) for fact in facts
    ]
    shape = probe_shape(bare, checkpoint.tokenizer, max_length=model.config.max_positions)
    step = jax.jit(functools.partial(probe_scores, model))
    known: list[Fact] = []
    for start in range(0, len(facts), batch):
        rows = bare[start : start + batch]
        probes = encode_probes(
            rows + rows[-1:] * (batch - len(rows)),
            checkpoint.tokenizer,
            max_length=model.config.max_positions,
            shape=shape,
        )
        knows = np.asarray(step(checkpoint.params, probes)["knows"])[: len(rows)]
        known += [fact for fact, yes in zip(facts[start : start + batch], knows, strict=True) if yes]
        report("finding facts the model knows", min(len(known), count), count)
        if len(known) >= count:
            break
    return known[:count]


def draw_contexts(config: RunConfig, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The editor's context prefixes, sampled from the model by the run's seed."""
    style = method(config.editor).contexts
    if style is None:
        return ("",)
    return sample_contexts(
        generator(checkpoint, top_k=5), checkpoint.tokenizer, style, run_key(config, "contexts")
    )


def generator(checkpoint: Checkpoint, top_k: int):
    """`sample` on the unedited model, special tokens banned."""
    banned = tuple(sorted(set(checkpoint.tokenizer.all_special_ids)))

    def generate(prompt: Array, valid: Array, steps: int, key: Array) -> Array:
        return sample(checkpoint.model, checkpoint.params, prompt, valid, steps, key, top_k, 1.0, banned)

    return generate


def run_key(config: RunConfig, purpose: str) -> Array:
    """An independent PRNG key for each purpose of a run."""
    purposes = ("contexts", "corpus")
    return jax.random.fold_in(jax.random.key(config.seed), purposes.index(purpose))


def prepare(
    config: RunConfig, checkpoint: Checkpoint, facts: list[Fact], contexts: tuple[str, ...], report: Report
) -> Prepared:
    """The editor with its second moments, and the parameters split for it."""
    chosen = method(config.editor)
    resolved = chosen.configure(checkpoint.model.config, config.settings)
    moments: dict[int, Float[Array, "d_k d_k"]] = {}
    if chosen.needs_moments:
        generate = generator(checkpoint, top_k=50)
        moments = load_moments(
            config.moments, checkpoint, resolved.layers, generate, run_key(config, "corpus"), report
        )
    editor = chosen.build(checkpoint.model, moments, resolved)
    paths = checkpoint.model.edited_paths(resolved.layers)
    params = checkpoint.model.split(checkpoint.params, paths.values())
    return Prepared(checkpoint, facts, contexts, moments, editor, params)


def finish(config: RunConfig, folder: RunFolder, prepared: Prepared, report: Report) -> RunFolder:
    """Applies all chunks that are not yet in the folder, then scores everything on the final model."""
    model, params = prepared.checkpoint.model, prepared.params
    apply = chunk_function(prepared.editor, functools.partial(probe_scores, model) if config.score else None)
    # Copied, since chunks take over the buffers they are given and the checkpoint's are still needed.
    edited = jax.tree.map(jnp.copy, params.edited)
    state = prepared.editor.init(params)
    batches = batched(prepared.facts, config.batch_size)
    groups = [batches[i : i + config.chunk] for i in range(0, len(batches), config.chunk)]
    if begun := folder.finished_chunks:
        edited, state = folder.restore(edited, state)
    folder.drop_unfinished(min(begun * config.chunk, len(batches)))
    report("editing", min(begun * config.chunk, len(batches)), len(batches))
    for index, chunk in encoded_chunks(config, prepared, groups, begun):
        edited, state, steps = apply(edited, params.frozen, state, chunk)
        steps = jax.tree.map(lambda x: np.asarray(x)[: len(groups[index])], steps)  # noqa: B023
        folder.append(index, steps, metric_lines(steps, groups, index, config.chunk))
        folder.save(index + 1, edited, state)
        report("editing", min((index + 1) * config.chunk, len(batches)), len(batches))
    folder.write("summary", summary(config, prepared, Params(edited, params.frozen), report))
    return folder


def batched(facts: list[Fact], size: int) -> list[list[Fact]]:
    """Facts in batches of `size`; all in one for size 0."""
    size = size or len(facts)
    return [facts[i : i + size] for i in range(0, len(facts), size)]


def encoded_chunks(
    config: RunConfig, prepared: Prepared, groups: list[list[list[Fact]]], begun: int
) -> Iterator[tuple[int, Chunk]]:
    """Chunks in one of a few shapes, padded to full batches and full chunks with facts of weight 0."""
    tokenizer, limit = prepared.checkpoint.tokenizer, prepared.checkpoint.model.config.max_positions
    size = max(len(batch) for group in groups for batch in group)
    updates = min(config.chunk, max(map(len, groups)))
    flat = [[fact for batch in group for fact in batch] for group in groups]
    shapes = few_shapes([request_shape(f, tokenizer, prepared.contexts, max_length=limit) for f in flat])
    everything = [fact for facts in flat for fact in facts]
    scored = probe_shape(everything, tokenizer, max_length=limit) if config.score else None
    first_case = np.cumsum([0, *map(len, flat)])
    for index in range(begun, len(groups)):
        case, requests, probes = int(first_case[index]), [], []
        for batch in groups[index]:
            cases = range(case, case := case + len(batch))
            encoded = encode_requests(
                batch, tokenizer, prepared.contexts, max_length=limit, shape=shapes[index], cases=cases
            )
            requests.append(pad_requests(encoded, size))
            if scored is not None:
                encoded_probes = encode_probes(batch, tokenizer, max_length=limit, shape=scored)
                probes.append(pad_probes(encoded_probes, size))
        missing = updates - len(groups[index])
        requests += [empty(requests[-1])] * missing
        probes += probes[-1:] * missing
        yield index, Chunk(stack(requests), stack(probes) if probes else None)


def few_shapes(needed: Sequence[RequestShape]) -> list[RequestShape]:
    """A shape for every chunk, two different ones at most, since each costs a compilation.

    Prefixes are run once and share one size. Tails are run at every step of an optimisation, so chunks
    whose tails are not above the median keep a smaller one.
    """
    median = sorted(shape.S for shape in needed)[len(needed) // 2]
    prefix = max(shape.P for shape in needed)

    def common(members: list[RequestShape]) -> RequestShape:
        return RequestShape(prefix, max(shape.S for shape in members), max(shape.T for shape in members))

    small = common([shape for shape in needed if median >= shape.S])
    large = common(list(needed))
    return [small if median >= shape.S else large for shape in needed]


def empty(requests: Requests) -> Requests:
    """Requests of the same shape that ask for nothing."""
    return requests._replace(weight=jnp.zeros_like(requests.weight), case=jnp.full_like(requests.case, -1))


def metric_lines(
    steps: Step, groups: list[list[list[Fact]]], index: int, chunk: int
) -> Iterator[dict[str, Any]]:
    """One JSON object for every update of a chunk; per-fact figures are lists in the order of `facts`."""
    for offset, batch in enumerate(groups[index]):
        one = jax.tree.map(lambda x: x[offset], steps)  # noqa: B023
        facts = len(batch)
        yield {
            "update": index * chunk + offset,
            "facts": [fact.id for fact in batch],
            "finite": bool(one.finite),
            "norm": plain(one.norm, facts),
            "delta_norm": plain(one.delta_norm, facts),
            "metrics": plain(one.metrics, facts),
            "scores": plain(one.observed, facts),
        }


def plain(values: dict[str, np.ndarray], facts: int) -> dict[str, Any]:
    """Arrays as JSON numbers and lists, padding facts cut off, `null` for NaN."""

    def convert(x: np.ndarray) -> Any:
        x = np.asarray(x)
        x = x[..., :facts] if x.ndim else x
        if x.dtype.kind != "f":
            return x.tolist()
        plain_numbers = x.astype(object)
        plain_numbers[np.isnan(x)] = None
        return plain_numbers.tolist()

    return {name: convert(value) for name, value in values.items()}


def summary(config: RunConfig, prepared: Prepared, final: Params, report: Report) -> dict[str, Any]:
    """Scores of all edits on the final model and on the unedited one, and norms of every MLP matrix."""
    checkpoint = prepared.checkpoint
    limit = checkpoint.model.config.max_positions
    probes = encode_probes(prepared.facts, checkpoint.tokenizer, max_length=limit)
    result: dict[str, Any] = {"edits": len(prepared.facts)}
    report("scoring all edits", 0, 2)
    result["unedited"] = summarise(score_all(checkpoint.model, checkpoint.params, probes))
    report("scoring all edits", 1, 2)
    result["final"] = summarise(score_all(checkpoint.model, join(final), probes))
    report("scoring all edits", 2, 2)
    norms = matrix_norms(checkpoint.params)
    result["unedited_norm"] = {path: float(norm) for path, norm in norms.items()}
    result["final_norm"] = {path: float(jnp.linalg.norm(w)) for path, w in final.edited.items()}
    return result


def environment(config: RunConfig, checkpoint: Checkpoint, contexts: tuple[str, ...]) -> dict[str, Any]:
    """What, besides the configuration, the numbers depend on."""
    packages = ("jaxedit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    resolved = method(config.editor).configure(checkpoint.model.config, config.settings)
    return {
        "format": FORMAT,
        "fingerprint": checkpoint.fingerprint,
        "model_config": dataclasses.asdict(checkpoint.model.config),
        "editor": dataclasses.asdict(resolved),
        "contexts": list(contexts),
        "seed": config.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "versions": {name: metadata.version(name) for name in packages},
    }


def config_from(content: dict[str, Any]) -> RunConfig:
    """A `RunConfig` from plain data. Raises ConfigError for names it does not have, with the nearest ones."""
    return build(RunConfig, content)
