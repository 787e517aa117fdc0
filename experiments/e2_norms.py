"""E2: the norm of the edited matrices against the number of edits, for every editor, and the law by which it grows.

python -m experiments.e2_norms [--model runs/small/llama] [--editors memit ft ...]
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.arms import arm, editors_of_facts
from experiments.common import Json, Study, begin, every_seed
from experiments.drawing import brief, curves, growth, markdown, named, rises, shown, write
from jaxedit.diagnostics.growth import compare, winner


@dataclasses.dataclass(frozen=True)
class Norms(Study):
    """Which editors."""

    editors: tuple[str, ...] = editors_of_facts()
    """`mend` and `malmen` too; their networks learn from facts that the run does not edit."""


def main(options: Norms) -> None:
    begin(options)
    arms = [arm(options, editor) for editor in options.editors]
    tables = named(arms, every_seed(options, arms))
    laws = {label: [law_of(table) for table in found] for label, found in tables.items()}
    rows = [
        [
            f"`{label}`",
            *(shown([at(table, share) for table in found], 3) for share in (0.25, 0.5, 1.0)),
            shown([100 * rises(table) for table in found], 1),
            shown([reason(table) for table in found]),
            ", ".join(law or "divided" for law in laws[label]),
        ]
        for label, found in tables.items()
    ]
    head = ["editor", "growth at 1/4", "at 1/2", "at the end", "updates that raise it, %"]
    head += ["share due to <W, Delta>", "law, by seed"]
    write(
        options, "e2", {"laws": laws, "arms": brief(tables)}, markdown(head, rows), curves(tables, null=False)
    )


def at(table: Json, share: float) -> float:
    """Growth of the norm after this share of the updates."""
    values = growth(table)
    return float(values[round(share * (len(values) - 1))])


def reason(table: Json) -> float:
    """How much of the growth of ||W||^2 is due to <W, Delta>, mean over the matrices: 0 for random directions."""
    return float(np.nanmean(list(table["alignment_share"].values())))


def law_of(table: Json) -> str | None:
    """The law that fits best and foresees too, of the norm at about 100 steps."""
    values = growth(table)[1:]
    steps = np.unique(np.linspace(1, len(values), min(100, len(values))).round().astype(int))
    with jax.enable_x64(True):
        return winner(compare(jnp.asarray(steps, jnp.float64), jnp.asarray(values[steps - 1], jnp.float64)))


if __name__ == "__main__":
    main(tyro.cli(Norms, description=__doc__))
