"""The state that an editor begins with, moments of facts that are not edited included."""

import dataclasses

import jax

from jaxedit.data.facts import Fact
from jaxedit.data.sources import load_facts
from jaxedit.errors import FactError
from jaxedit.parallel import replicated
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.placing import placed_chunk
from jaxedit.pipeline.plan import plan_of
from jaxedit.pipeline.prepare import Prepared, Report
from jaxedit.types import Params, Requests, State


def first_state(config: RunConfig, prepared: Prepared, report: Report) -> State:
    """The editor's state before the first update: with `warm_up`, after it observed that many other facts.

    Raises FactError where the set has too few.
    """
    editor, params = prepared.editor, prepared.params
    state = editor.init(params)
    if not config.warm_up or (observe := editor.observe) is None:
        return state

    @jax.jit
    def look(params: Params, state: State, requests: Requests) -> State:
        return jax.lax.scan(lambda state, one: (observe(params, state, one), None), state, requests)[0]

    plan = plan_of(
        dataclasses.replace(config, score=False), prepared._replace(facts=other_facts(config, prepared.facts))
    )
    for planned in plan.chunks(0):
        chunk = placed_chunk(planned.chunk, prepared.devices)
        state = look(params, replicated(state, prepared.devices), chunk.requests)
        report("warming up", planned.first + len(planned.batches), plan.updates)
    return state


def other_facts(config: RunConfig, edited: list[Fact]) -> list[Fact]:
    """The first `warm_up` facts of the set that the run does not edit, whether the model knows them or not."""
    taken = {fact.id for fact in edited}
    others = [
        fact for fact in load_facts(config.facts, skip_invalid=config.skip_invalid) if fact.id not in taken
    ]
    if len(others) < config.warm_up:
        raise FactError(
            f"{config.facts!r} has {len(others)} facts beside those to edit but warm_up asks for {config.warm_up}: "
            "lower it, or edit fewer"
        )
    return others[: config.warm_up]
