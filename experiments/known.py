"""What a model knows of a fact set, divided into facts to edit and facts that never are.

    python -m experiments.known [--model smollm2-135m] [--facts world] [--count 500] [--out runs/smollm2]

Writes OUT/facts.jsonl and OUT/controls.jsonl, which experiments take by --facts and --controls. The small models of
`experiments.small_models` bring theirs along.
"""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console

from experiments.common import shuffled
from jaxedit.compiling import set_up_compiling
from jaxedit.data import dump_jsonl, load_facts
from jaxedit.models.sources import load
from jaxedit.pipeline import known_facts


@dataclasses.dataclass(frozen=True)
class Known:
    """What to ask whom."""

    model: str = "smollm2-135m"
    facts: str = "world"
    count: int = 500
    """Facts to edit; all others that the model knows are controls."""
    out: Path = Path("runs/smollm2")
    seed: int = 0


def main(options: Known) -> None:
    set_up_compiling()
    facts = load_facts(options.facts)
    known = known_facts(shuffled(facts, options.seed), len(facts), load(options.model))
    if len(known) <= options.count:
        raise SystemExit(f"{options.model} knows {len(known)} of {len(facts)} facts: lower --count")
    options.out.mkdir(parents=True, exist_ok=True)
    dump_jsonl(known[: options.count], options.out / "facts.jsonl")
    dump_jsonl(known[options.count :], options.out / "controls.jsonl")
    Console(stderr=True).print(
        f"{options.count} facts to edit, {len(known) - options.count} controls, of {len(facts)}",
        highlight=False,
    )


if __name__ == "__main__":
    main(tyro.cli(Known, description=__doc__))
