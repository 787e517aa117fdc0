"""An editor with transforms of its updates is an editor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxedit.editors.transforms.spectrum import update_norm
from jaxedit.editors.transforms.transform import Transform, compose, leave
from jaxedit.errors import ConfigError
from jaxedit.linalg import all_finite, applied, dense
from jaxedit.types import (
    Delta,
    EditInfo,
    Editor,
    LowRank,
    Params,
    Requests,
    Rewrite,
    Site,
    State,
    as_they_are,
)


class Chained(NamedTuple):
    """State of a chain: the editor's, and the transforms' by path of the matrix."""

    editor: State
    transforms: dict[str, State]


def chain(editor: Editor, *transforms: Transform) -> Editor:
    """`editor` with every matrix's update passed through the transforms, from left to right.

    Where the editor writes layer after layer (`Editor.layerwise`), each update is transformed before the next
    layer is solved, so that later layers make up for what was taken away. Where it changes all matrices at
    once, its finished update is transformed. `EditInfo.delta` holds the update that was written; the metric
    `proposed_norm/<path>` is ||Delta||_F as the editor proposed it. An update of padding alone changes neither
    matrices nor states.

    Raises ConfigError for a transform that needs keys with an editor that has none.
    """
    whole = compose(*transforms)
    if whole.needs_keys and editor.layerwise is None:
        raise ConfigError(
            "a transform of this chain is computed from keys and residuals, which this editor does not have: "
            "use it with a closed form such as memit, or leave it out"
        )

    def init(params: Params) -> Chained:
        states = {path: whole.init(path, weight) for path, weight in params.edited.items()}
        return Chained(editor.init(params), states)

    def layerwise(
        params: Params, state: Chained, requests: Requests, rewrite: Rewrite, carry: Any
    ) -> tuple[Params, Chained, EditInfo, Any]:
        active = (requests.weight > 0 if isinstance(requests, Requests) else requests.valid).any()

        def transformed(site: Site, delta: Delta, carry: Any) -> tuple[Delta, Any]:
            states, norms, outer = carry
            norms = norms | {f"proposed_norm/{site.path}": update_norm(delta)}
            delta, own = _apply(whole, delta, states[site.path], site, active)
            delta, outer = rewrite(site, delta, outer)
            return delta, (states | {site.path: own}, norms, outer)

        start: tuple[dict[str, State], dict[str, Array], Any] = (state.transforms, {}, carry)
        written = editor.layerwise or finished(editor)
        params, inner, info, (states, norms, carry) = written(
            params, state.editor, requests, transformed, start
        )
        # A broken proposal is told even where a transform dropped what was broken.
        finite = info.finite & jnp.isfinite(jnp.stack(list(norms.values()))).all()
        # Of nested chains the innermost norm stays: it is the editor's.
        info = EditInfo(info.delta, norms | info.metrics, finite)
        return params, Chained(inner, states), info, carry

    def update(params: Params, state: Chained, requests: Requests) -> tuple[Params, Chained, EditInfo]:
        return layerwise(params, state, requests, lambda site, delta, carry: (delta, carry), None)[:3]

    def finalize(params: Params, state: Chained) -> Params:
        params = editor.finalize(params, state.editor)
        final = {path: whole.finalize(w, state.transforms[path]) for path, w in params.edited.items()}
        return Params(final, params.frozen)

    def observe(params: Params, state: Chained, requests: Requests) -> Chained:
        assert editor.observe is not None
        return state._replace(editor=editor.observe(params, state.editor, requests))

    untouched = editor.finalize is as_they_are and whole.finalize is leave
    return Editor(
        init,
        update,
        layerwise=layerwise if editor.layerwise else None,
        finalize=as_they_are if untouched else finalize,
        observe=observe if editor.observe else None,
    )


def finished(editor: Editor):
    """`Editor.layerwise` for an editor that changes all matrices at once: rewrites its finished update."""

    def layerwise(
        params: Params, state: State, requests: Requests, rewrite: Rewrite, carry: Any
    ) -> tuple[Params, State, EditInfo, Any]:
        after, state, info = editor.update(params, state, requests)
        edited = dict(after.edited)
        deltas: dict[str, Delta] = {}
        for path, proposed in info.delta.items():
            start = params.edited[path]
            delta, carry = rewrite(Site(path, start, None), proposed, carry)
            if isinstance(delta, LowRank):
                edited[path], deltas[path] = applied(start, delta)
            else:  # entries that were left alone stay as the editor wrote them, to the bit
                deltas[path] = delta
                edited[path] = jnp.where(delta == dense(proposed), edited[path], start + delta)
        finite = all_finite(edited[path] for path in deltas)
        info = EditInfo(deltas, info.metrics, info.finite & finite)
        return Params(edited, after.frozen), state, info, carry

    return layerwise


def _apply(
    transform: Transform, delta: Delta, state: State, site: Site, active: Bool[Array, ""]
) -> tuple[Delta, State]:
    """The transform where there is a fact to write; else no change, and the state as it was.

    What the transform hands back as it came needs no choice, which leaves the compiled update as it was too.
    """
    changed, after = transform.apply(delta, state, site)
    with jax.enable_x64(True):  # states may be float64
        if changed is not delta:
            changed = jax.tree.map(lambda x: jnp.where(active, x, jnp.zeros_like(x)), changed)
        return changed, jax.tree.map(
            lambda new, old: new if new is old else jnp.where(active, new, old), after, state
        )
