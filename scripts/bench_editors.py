"""Seconds an edit, for every editor, beside a plain PyTorch implementation on the same facts in the same run.

    python scripts/bench_editors.py [--editors memit r-rome] [--facts 8] [--batch 32] [--oracle-batch 4]

The PyTorch side is tests/reference: float32, sdpa, two threads, one fact at a time, all tokens through all
layers in every step, as the published tools do. Prints a table and, with --json, writes the figures.
"""

import functools
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxedit.data.encode import encode_requests, request_shape
from jaxedit.data.probes import encode_probes
from jaxedit.editors import method
from jaxedit.editors.closed_form import preservation, solve, write
from jaxedit.editors.finetune import FineTuneConfig
from jaxedit.editors.locate import LocateConfig, mean_keys
from jaxedit.evaluation.edits import probe_scores, room_of
from jaxedit.lookup import lead_of, rows_of, split_pass
from jaxedit.models.sources import load
from jaxedit.pipeline import Prepared, RunConfig, choose_facts, draw_contexts, prepare, quiet
from jaxedit.roofline import best_time, measure_ceiling, value_step_flop
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from jaxedit.values import optimise_values
from tests.reference import editors as oracle
from tests.reference import layout
from tests.reference.facts import Fact as OracleFact
from tests.reference.values import Settings as OracleSettings


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    editors: tuple[str, ...] = ("memit", "r-rome", "rome", "emmet", "ft", "ft-l")
    model: str = "smollm2-135m"
    facts: int = 8
    """Facts edited one at a time, by both sides."""
    batch: int = 32
    """Facts written together by the library."""
    oracle_batch: int = 4
    """Facts of the batch that the PyTorch side edits; it takes them one after the other, so its time an edit
    does not depend on how many there are."""
    threads: int = 2
    json: Path | None = None


def main(bench: Bench) -> None:
    torch.set_num_threads(bench.threads)
    console = Console()
    rows = []
    common = RunConfig(model=bench.model, count=max(bench.facts, bench.batch))
    checkpoint = load(common.model)
    facts = choose_facts(common, checkpoint, quiet)
    for name in bench.editors:
        config = replace(common, editor=name)
        contexts = draw_contexts(config, checkpoint)
        ready, together = (
            prepare(replace(config, batch_size=size), checkpoint, facts, contexts, quiet)
            for size in (1, bench.batch)
        )
        console.print(f"[bold]{name}[/bold]")
        one = time_library(ready, bench.facts, 1)
        many = time_library(together, bench.batch, bench.batch)
        console.print(
            f"{one['seconds']:.2f} s an edit one at a time, {many['seconds']:.2f} s in a batch; PyTorch next",
            highlight=False,
        )
        reference = time_oracle(name, ready, bench)
        row = {"editor": name, "one": one, "batch": many, "oracle": reference}
        row["ratio_one"] = reference["one"] / one["seconds"]
        row["ratio_batch"] = reference["batch"] / many["seconds"]
        rows.append(row | {"parts": time_parts(name, ready)})
        console.print_json(json.dumps(rows[-1]))
    ceiling = measure_ceiling()
    console.print(table(rows, ceiling.matmul))
    console.print(
        f"matmul {ceiling.matmul / 1e9:.0f} GFLOP/s, copy {ceiling.copy / 1e9:.1f} GB/s, {jax.devices()[0]}"
    )
    if bench.json:
        bench.json.write_text(json.dumps({"rows": rows, "ceiling": ceiling._asdict()}, indent=2))


def requests_of(ready: Prepared, facts: list, batch: int):
    limit = ready.checkpoint.model.config.max_positions
    shape = request_shape(facts, ready.checkpoint.tokenizer, ready.contexts, max_length=limit)
    return [
        encode_requests(
            facts[i : i + batch], ready.checkpoint.tokenizer, ready.contexts, max_length=limit, shape=shape
        )
        for i in range(0, len(facts), batch)
    ]


def time_library(ready: Prepared, count: int, batch: int) -> dict[str, Any]:
    """Seconds an edit of `count` facts in batches, all in one compiled chunk; compilation apart."""
    updates = requests_of(ready, ready.facts[:count], batch)
    apply: Any = chunk_function(ready.editor)
    chunk = jax.device_put(Chunk(stack(updates), None))
    state = jax.block_until_ready(ready.editor.init(ready.params))
    start = time.perf_counter()
    compiled = apply.lower(ready.params.edited, ready.frozen, state, chunk).compile()
    compile_seconds = time.perf_counter() - start
    seconds, steps = [], None
    for _ in range(2 if batch == 1 else 1):
        edited, copied = jax.tree.map(jnp.copy, (ready.params.edited, state))
        jax.block_until_ready((edited, copied))
        start = time.perf_counter()
        _, _, steps = jax.block_until_ready(compiled(edited, ready.frozen, copied, chunk))
        seconds.append((time.perf_counter() - start) / count)
    return {"seconds": min(seconds), "compile": compile_seconds} | necessary(ready, updates, steps, count)


def necessary(ready: Prepared, updates: list, steps: Any, count: int) -> dict[str, Any]:
    """FLOP an edit of the value optimisation, counting real tail tokens and the steps that were taken."""
    if "value_loss" not in steps.metrics:
        return {}
    config = ready.checkpoint.model.config
    layer = max(int(path.split(".")[1]) for path in ready.params.edited)
    losses = np.asarray(steps.metrics["value_loss"])  # [E, steps, B]
    total = 0
    for i, update in enumerate(updates):
        tails = np.asarray(update.tail_mask).sum(axis=(1, 2))
        reads = np.asarray(update.target_mask).sum(axis=1) * update.predict_at.shape[1] + 1
        taken = (~np.isnan(losses[i])).sum(axis=0)
        for fact in range(len(tails)):
            total += taken[fact] * value_step_flop(config, layer, int(tails[fact]), int(reads[fact]))
    return {"flop": total / count, "steps": float((~np.isnan(losses)).sum() / count)}


def time_parts(name: str, ready: Prepared) -> dict[str, float]:
    """Seconds of one edit's parts, each compiled apart: split pass, values, keys, solve, scores."""
    checkpoint, params = ready.checkpoint, ready.params
    model = checkpoint.model
    one = jax.device_put(requests_of(ready, ready.facts[:1], 1)[0])
    probes = encode_probes(ready.facts[:1], checkpoint.tokenizer, max_length=model.config.max_positions)
    score = jax.jit(functools.partial(probe_scores, model, room=room_of(probes, [slice(0, 1)])))
    parts = {"scores": best_time(score, params, probes)}
    config = editor_config(name, ready)
    if not isinstance(config, LocateConfig):
        return parts
    first, last = config.layers[0], config.layers[-1]
    split = jax.jit(lambda p, r: split_pass(model.bind(p), rows_of(r), first, last))
    found = split(params, one)
    parts["split pass"] = best_time(split, params, one)
    values = jax.jit(lambda p, r, s: optimise_values(model.bind(p), r, rows_of(r), s, last, config.values))
    parts["values"] = best_time(values, params, one, found, repeats=2)
    lead = jax.jit(
        lambda p, r, s: model.bind(p).run(
            (lead := lead_of(rows_of(r), s)).hidden,
            range(first, last + 1),
            position=lead.position,
            mask=lead.mask,
        )[0]
    )
    parts["keys"] = best_time(lead, params, one, found) if len(config.layers) > 1 else 0.0
    keys = mean_keys(found.trace.key[first], one, config.key_mean).mean
    kept = jax.jit(lambda: preservation(jnp.eye(model.config.d_ff), 1.0))()
    solved = jax.jit(
        lambda k, x: write(solve(k, x), x, jnp.ones((1, model.config.d_model)), 1.0, jnp.ones(1))
    )
    parts["solve"] = len(config.layers) * best_time(solved, kept, keys)
    return parts


def editor_config(name: str, ready: Prepared) -> LocateConfig | FineTuneConfig:
    return method(name).configure(ready.checkpoint.model.config)


def time_oracle(name: str, ready: Prepared, bench: Bench) -> dict[str, float]:
    """Seconds an edit of the PyTorch implementation: one at a time, and in a batch where the method has one."""
    model = AutoModelForCausalLM.from_pretrained(
        ready.checkpoint.folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    tokenizer, config = ready.checkpoint.tokenizer, editor_config(name, ready)
    facts = [OracleFact(fact.prompt, fact.subject, fact.target_new) for fact in ready.facts]
    layers = config.layers
    edit = oracle_edit(name, model, tokenizer, ready, config)
    with layout.restored(model, layers):
        start = time.perf_counter()
        for fact in facts[: bench.facts]:
            edit([fact])
        one = (time.perf_counter() - start) / bench.facts
    if name in ("rome", "r-rome"):
        return {"one": one, "batch": one}
    with layout.restored(model, layers):
        start = time.perf_counter()
        edit(facts[: bench.oracle_batch])
        return {"one": one, "batch": (time.perf_counter() - start) / bench.oracle_batch}


def oracle_edit(
    name: str, model: Any, tokenizer: Any, ready: Prepared, config: LocateConfig | FineTuneConfig
):
    """The method as a function of a list of facts, with the library's own settings, contexts and C0."""
    if isinstance(config, FineTuneConfig):
        return lambda facts: oracle.finetune(
            model, tokenizer, facts, config.layers[0], config.learning_rate, config.steps, config.bound
        )
    v = config.values
    settings = OracleSettings(v.learning_rate, v.steps, v.weight_decay, v.clamp, v.kl, v.stop_loss)
    C0 = {layer: torch.from_numpy(np.asarray(m, np.float64)) for layer, m in ready.moments.items()}
    contexts, layer = list(ready.contexts), config.layers[0]
    if name in ("rome", "r-rome"):
        method = oracle.rome if name == "rome" else oracle.r_rome
        return lambda facts: method(model, tokenizer, facts[0], contexts, layer, C0[layer], settings)
    if name == "emmet":
        return lambda facts: oracle.emmet(
            model, tokenizer, facts, contexts, layer, C0[layer], settings, config.lam, eps=config.ridge
        )
    return lambda facts: oracle.memit(
        model, tokenizer, facts, contexts, config.layers, C0, settings, config.lam
    )


def table(rows: list[dict[str, Any]], matmul: float) -> Table:
    result = Table(title="Seconds an edit")
    for heading in (
        "editor",
        "one at a time",
        "PyTorch",
        "ratio",
        "batch",
        "PyTorch",
        "ratio",
        "of matmul rate",
        "compile",
    ):
        result.add_column(heading, justify="left" if heading == "editor" else "right")
    for row in rows:
        shares = [
            f"{part['flop'] / part['seconds'] / matmul:.0%}" if "flop" in part else "-"
            for part in (row["one"], row["batch"])
        ]
        result.add_row(
            row["editor"],
            f"{row['one']['seconds']:.2f}",
            f"{row['oracle']['one']:.2f}",
            f"{row['ratio_one']:.1f}x",
            f"{row['batch']['seconds']:.2f}",
            f"{row['oracle']['batch']:.2f}",
            f"{row['ratio_batch']:.1f}x",
            " / ".join(shares),
            f"{row['one']['compile']:.0f} s",
        )
    return result


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
