"""No setting is accepted and then ignored: what an editor takes, its computation reads."""

import copy
import dataclasses
from dataclasses import replace
from typing import Any

import jax
import pytest

from jaxedit.editors import METHODS, Settings
from jaxedit.editors.config import LocateConfig
from jaxedit.editors.registry import Method
from jaxedit.errors import ConfigError
from jaxedit.types import Params
from tests.cases import Case
from tests.editors.rows import CONTEXTS, SETTINGS, SHORT, text_of

# Given with all that they need: memory for beta, patience for its quirks, a bound for its centre.
CONDITIONS = {
    "memory": True,
    "patience": 1,
    "bound": 0.1,
    "steps": 2,
    "schedule": "linear",
    "schedule_steps": 9,
}


def settings_of(method: Method, config: Any) -> set[str]:
    """Those that `configure` takes for this editor."""
    held = {field.name for field in dataclasses.fields(config)}
    held |= {field.name for field in dataclasses.fields(getattr(config, "values", config))}
    return (held & {field.name for field in dataclasses.fields(Settings)}) - method.without - method.fixed


def recorded(config: Any, read: set[str]) -> Any:
    """A copy that adds the name of every field to `read` when it is looked up."""

    def look_up(self: Any, name: str) -> Any:
        read.add(name)
        return super(kind, self).__getattribute__(name)

    kind: Any = type(type(config).__name__, (type(config),), {"__getattribute__": look_up})
    found = copy.copy(config)
    object.__setattr__(found, "__class__", kind)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_an_editor_reads_every_setting_that_it_takes(gpt2: Case, name: str) -> None:
    """While its state and an update are traced; `layers` and `targets` are proved by the paths it writes."""
    method = METHODS[name]
    start = SETTINGS.get(name, Settings())
    taken = settings_of(method, method.configure(gpt2.model.config, start))
    given = {field: value for field, value in CONDITIONS.items() if field in taken}
    config, read = method.configure(gpt2.model.config, replace(start, **given)), set[str]()
    if isinstance(config, LocateConfig):
        values = recorded(replace(config.values, shares=()), read)
        config = replace(config, values=values)
    elif hasattr(config, "shares"):
        config = replace(config, shares=())
    trained = None if method.fresh is None else method.fresh(gpt2.model, config, jax.random.key(0))
    paths = method.paths(gpt2.model, config)
    params = gpt2.model.split(gpt2.checkpoint.params, paths)
    requests = gpt2.encode(SHORT[:2], CONTEXTS) if method.request == "facts" else text_of(gpt2)
    editor = method.build(gpt2.model, gpt2.moments if trained is None else trained, recorded(config, read))

    def sequence(params: Params, requests: Any) -> Any:
        return editor.update(params, editor.init(params), requests)

    jax.eval_shape(sequence, params, requests)
    assert taken - read == set()
    assert not method.without & read, "refused, though it is read"


@pytest.mark.parametrize(
    ("editor", "given", "said"),
    [
        ("lyaplock", {"beta": 2.0}, "'lyaplock': beta has no effect"),
        ("lyaplock", {"lam_n": 1.0}, "'lyaplock': lam_n has no effect"),
        ("lyaplock", {"ridge": 0.5}, "'lyaplock': ridge has no effect"),
        ("lyaplock", {"null_threshold": 0.02}, "'lyaplock': null_threshold has no effect"),
        ("lyaplock", {"null_fraction": 0.5}, "'lyaplock': null_fraction has no effect"),
        ("lyaplock", {"lam": 0.0}, "lam is 0.0; it must be above 0"),
        ("betaedit", {"lam": 0.0}, "lam is 0.0; it must be above 0"),
        ("betaedit", {"beta": 2.0}, "'betaedit': beta has no effect"),
        ("langedit", {"beta": 2.0}, "'langedit': beta has no effect"),
        ("d4s", {"null_threshold": 0.02}, "'d4s': null_threshold has no effect"),
        ("d4s", {"null_fraction": 0.5}, "'d4s': null_fraction has no effect"),
        ("d4s", {"memory": False}, "'d4s': memory cannot be set"),
        ("d4s", {"memory_keys": "recomputed"}, "'d4s': memory_keys cannot be set"),
        ("d4s", {"beta": 2.0}, "'d4s': beta cannot be set"),
        ("d4s", {"ridge": 0.5}, "'d4s': ridge cannot be set"),
        ("lyaplock", {"memory": False}, "'lyaplock': memory cannot be set"),
        ("betaedit", {"memory": False}, "'betaedit': memory cannot be set"),
        ("langedit", {"memory": False}, "'langedit': memory cannot be set"),
        ("evoedit", {"memory": True}, "'evoedit': memory cannot be set"),
        ("rome", {"lam": 2.0}, "'rome': lam has no effect while its constraints hold exactly"),
        ("r-rome", {"lam": 2.0}, "'r-rome': lam has no effect while its constraints hold exactly"),
        ("emmet", {"lam": 2.0, "ridge": 0.0}, "'emmet': lam has no effect"),
        ("alphaedit", {"null_threshold": 0.02, "null_fraction": 0.5}, "give one"),
        ("encore", {"lam": 0.0, "lam_n": 0.0}, "lam is 0.0; it must be above 0"),
        ("memit", {"reference_quirks": True}, "reference_quirks has no effect without patience"),
        ("ft", {"centre": "original"}, "centre has no effect without bound"),
        ("memit", {"beta": 2.0}, "beta has no effect without memory"),
        ("memit-history", {"beta": 2.0, "memory": False}, "beta has no effect without memory"),
        ("memit", {"memory_keys": "recomputed"}, "memory_keys has no effect without memory"),
    ],
)
def test_a_setting_without_effect_or_against_the_method_is_refused(
    gpt2: Case, editor: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        METHODS[editor].configure(gpt2.model.config, Settings(**given))


def test_settings_are_taken_where_they_have_an_effect(gpt2: Case) -> None:
    configured = METHODS["memit"].configure(
        gpt2.model.config,
        Settings(memory=True, beta=2.0, memory_keys="recomputed", patience=2, reference_quirks=True),
    )
    assert (configured.beta, configured.values.reference_quirks) == (2.0, True)
    assert METHODS["ft"].configure(gpt2.model.config, Settings(bound=0.1, centre="original")).bound == 0.1
    for other in ({"lam_n": 1.0}, {"ridge": 0.1}, {"memory": True}):
        rome = METHODS["r-rome"].configure(gpt2.model.config, Settings(lam=2.0, **other))
        assert rome.lam == 2.0
    for editor in METHODS:  # what presets hold is never refused
        METHODS[editor].configure(gpt2.model.config)
