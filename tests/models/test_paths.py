"""Which parameters a choice of layers and projections names."""

import pytest

from jaxedit.errors import ConfigError
from tests.cases import Case


def test_everything_is_every_parameter(case: Case) -> None:
    assert set(case.model.parameter_paths()) == case.checkpoint.params.keys()


def test_layers_and_targets_choose_apart_and_together(gpt2: Case) -> None:
    of_layer = gpt2.model.parameter_paths([1])
    assert of_layer
    assert set(of_layer) == {path for path in gpt2.checkpoint.params if path.startswith("layers.1.")}
    assert gpt2.model.parameter_paths((0, 2), ["mlp.down"]) == tuple(gpt2.model.edited_paths((0, 2)).values())
    assert gpt2.model.parameter_paths((1,), ("mlp", "attention.query")) == (
        "layers.1.attention.query.kernel",
        "layers.1.mlp.up.kernel",
        "layers.1.mlp.down.kernel",
    )
    every = {path for path in gpt2.checkpoint.params if path.endswith(".kernel")}
    assert set(gpt2.model.parameter_paths(None, ("mlp", "attention"))) == every


def test_a_gated_mlp_has_a_gate_and_another_has_none(cases: dict[str, Case]) -> None:
    assert cases["llama"].model.parameter_paths((0,), ("mlp.gate",)) == ("layers.0.mlp.gate.kernel",)
    with pytest.raises(ConfigError, match=r"unknown projection 'mlp.gate'.*attention.key"):
        cases["gpt2"].model.parameter_paths((0,), ("mlp.gate",))


def test_what_the_model_does_not_have_is_refused(gpt2: Case) -> None:
    with pytest.raises(ConfigError, match=r"layer 3 is out of range: the model has layers 0 to 2"):
        gpt2.model.parameter_paths((3,), ("mlp",))
    with pytest.raises(
        ConfigError, match=r"unknown projection 'attention.qeury'. Did you mean 'attention.query'"
    ):
        gpt2.model.parameter_paths((0,), ("attention.qeury",))
    with pytest.raises(ConfigError, match=r"no projection is named: give one or more of attention.query"):
        gpt2.model.parameter_paths((0,), ())
