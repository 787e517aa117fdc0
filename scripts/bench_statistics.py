"""Second moments of the keys of all layers in one pass, beside the bare forward pass over the same tokens.

    python scripts/bench_statistics.py [--model smollm2-135m] [--rows 8] [--length 256] [--json FILE]

The forward pass is that of the same decoder: up to the logits of every token, and, apart, of the layers alone, as the
statistics need no logits. Prints tokens a second, ratios, and what the arithmetic of k k^T allows.
"""

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.sources import load
from jaxedit.roofline import best_time, layer_flop, measure_ceiling
from jaxedit.statistics import STRIPS, init, update


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    model: str = "smollm2-135m"
    rows: int = 8
    length: int = 256
    repeats: int = 3
    json: Path | None = None


def main(bench: Bench) -> None:
    checkpoint = load(bench.model)
    model, params = checkpoint.model, checkpoint.params
    config, layers = model.config, range(model.config.n_layers)
    rng = np.random.default_rng(0)
    blocks = jnp.asarray(rng.integers(0, config.vocab_size, (bench.rows, bench.length)))
    valid = jnp.ones(blocks.shape, bool)

    def layers_alone(params, blocks, valid):
        decoder, position = model.bind(params), positions(valid)
        h = decoder.embed(blocks, position)
        return decoder.run(h, layers, position=position, mask=causal_mask(valid))[0]

    programs = {
        "forward to the logits": jax.jit(lambda params, *text: model.bind(params)(*text)),
        "layers alone": jax.jit(layers_alone),
        "statistics of all layers": jax.jit(
            lambda params, *text: functools.partial(update, model)(params, init(model, layers), *text)
        ),
    }
    seconds = {
        name: best_time(program, params, blocks, valid, repeats=bench.repeats)
        for name, program in programs.items()
    }
    ceiling, tokens, own = measure_ceiling(), blocks.size, seconds["statistics of all layers"]
    products = tokens * len(layers) * config.d_ff**2 * (STRIPS + 1) / STRIPS
    allowed = tokens * len(layers) * layer_flop(config)
    out = Console(highlight=False, soft_wrap=True)
    for name, time in seconds.items():
        out.print(f"{name}: {tokens / time:.0f} tokens a second; statistics at {time / own:.0%} of its speed")
    share, rate = allowed / (allowed + products), (products + allowed) / own
    out.print(
        f"k k^T is {products / allowed:.0%} of the layers' matrix products, so at most {share:.0%} of their speed; "
        f"{rate / ceiling.matmul:.0%} of the matmul rate {ceiling.matmul / 1e9:.0f} GFLOP/s, "
        f"{jax.devices()[0].device_kind}"
    )
    if bench.json is not None:
        found = {"seconds": seconds, "tokens": tokens, "ceiling": ceiling._asdict()}
        bench.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
