"""Every editor of the table on the tiny GPT-2, with settings and requests that compile fast."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.data import Fact
from jaxedit.editors import METHODS, Settings
from jaxedit.editors.config import LocateConfig
from jaxedit.editors.objective import FactConfig
from jaxedit.editors.registry import Method
from jaxedit.parallel import ONE_DEVICE, Devices, placed_parameters, replicated
from jaxedit.types import EditInfo, Editor, Params, TextBatch
from tests.cases import Case

CLOSED = Settings(steps=3, learning_rate=0.1, weight_decay=0.01, lam=0.5, stop_loss=0.0)
GRADIENT = Settings(steps=3, learning_rate=1e-3, stop_loss=0.0)
WHOLE = replace(GRADIENT, layers=(0, 1), targets=("attention", "mlp"))
BY_KIND = {"closed form": CLOSED, "gradient": GRADIENT}
SETTINGS = {
    **{name: replace(CLOSED, lam=None) for name in ("rome", "r-rome")},  # whose update has not its scale
    "full-ft": WHOLE,  # these two write every layer if not told otherwise
    "pretrain": WHOLE,
    "mend": Settings(layers=(0, 1), rank=8, learning_rate=0.1),
    "malmen": Settings(layers=(0, 1), rank=8, learning_rate=0.1),
    "ultraedit": Settings(layers=(0, 1), learning_rate=1e-3),
    "stableedit": Settings(layers=(0, 1), learning_rate=1e-3, tokens="all"),
}
SPARE = 2  # a layer whose matrix is a float32 master too, but no editor's here
CONTEXTS = ("", "Because of it", "I")
BATCHES = ((0, 1), (2, 3), (4, 0))
# The shortest requests there are: every row compiles several programs, and longer ones only make them larger.
SHORT = tuple(
    Fact(id=f"short-{i}", subject=subject, prompt=prompt, target_new=target, target_true="town")
    for i, (prompt, subject, target) in enumerate(
        (
            ("The city of Lyon", "Lyon", "Rome"),
            ("The capital is Paris", "Paris", "Italy"),
            ("The mother tongue of Danielle Darrieux", "Danielle Darrieux", "English"),
            ("What is the Eiffel Tower", "Eiffel Tower", "fine"),
            ("What plays the famous pianist Étienne Brûlé", "Étienne Brûlé", "jazz"),
        )
    )
)
Updated = tuple[Params, Any, EditInfo]


@dataclass
class Row:
    """One editor on the tiny GPT-2, its update and how often it was traced."""

    method: Method
    case: Case
    config: Any
    editor: Editor
    params: Params
    state: Any
    given: Any  # second moments, or an untrained network
    batches: list[Any]
    update: Callable[[Params, Any, Any], Updated]
    traces: list[int]

    @property
    def paths(self) -> list[str]:
        return list(self.method.paths(self.case.model, self.config))

    def first(self) -> Updated:
        return self.update(self.params, self.state, self.batches[0])


def make_row(name: str, gpt2: Case, devices: Devices = ONE_DEVICE, remat: bool = False) -> Row:
    """The editor of that name, its work on facts spread over these devices."""
    method = METHODS[name]
    settings = SETTINGS.get(method.name) or BY_KIND[method.kind]
    if getattr(method.configure(gpt2.model.config), "lam", None) == 0:
        settings = replace(settings, lam=None)  # of the method's own kind: nothing weighs but the null space
    config = method.configure(gpt2.model.config, settings)
    if isinstance(config, LocateConfig):  # one size of loop compiles faster than three
        config = replace(config, values=replace(config.values, shares=()))
    elif isinstance(config, FactConfig):
        config = replace(config, shares=())
    given = gpt2.moments if method.fresh is None else method.fresh(gpt2.model, config, jax.random.key(0))
    given = replicated(given, devices)
    editor = method.build(replace(gpt2.model, placement=devices, remat=remat), given, config)
    paths = {*method.paths(gpt2.model, config), gpt2.model.config.edited_path(SPARE)}
    split, traces = gpt2.model.split(gpt2.checkpoint.params, paths), []
    params = Params(*(placed_parameters(part, devices) for part in split))

    def update(params: Params, state: Any, requests: Any) -> Updated:
        traces.append(1)
        return editor.update(params, state, requests)

    whole = gpt2.encode(SHORT, CONTEXTS) if method.request == "facts" else text_of(gpt2)
    batches = [jax.tree.map(lambda x: x[jnp.array(batch)], whole) for batch in BATCHES]  # noqa: B023
    state = editor.init(params)
    return Row(method, gpt2, config, editor, params, state, given, batches, jax.jit(update), traces)


def text_of(case: Case) -> TextBatch:
    """Rows of text, the last one padded on the right."""
    tokens = jnp.asarray(case.blocks[: len(SHORT), :12])
    return TextBatch(tokens, jnp.ones(tokens.shape, bool).at[-1, 8:].set(False))
