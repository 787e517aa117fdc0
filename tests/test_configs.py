"""Configuration from plain data: what is refused, and how it is said."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from jaxedit.configs import build, read_toml
from jaxedit.editors import Settings, method
from jaxedit.errors import ConfigError
from jaxedit.models.config import DecoderConfig
from jaxedit.pipeline import RunConfig, check, config_from
from jaxedit.trajectory.files import json_bytes
from tests.cases import Case


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    kind: Literal["a", "b"] = "a"
    flag: bool = True
    inner: Inner = field(default_factory=Inner)


def test_plain_data_becomes_nested_dataclasses() -> None:
    built = build(Outer, {"kind": "b", "inner": {"rate": 2, "layers": [3, 4]}})
    assert built == Outer(kind="b", inner=Inner(rate=2.0, layers=(3, 4)))
    assert isinstance(built.inner.rate, float)


def test_paths_are_read_from_text_and_written_as_text() -> None:
    asked = {"text": "wiki.txt", "tasks": ["sst2.json", "mmlu.json"]}
    built = config_from({"watch": {"measures": {"text": "other.txt"}, "questions": asked}})
    questions = built.watch.questions
    assert (questions.text, questions.tasks) == (Path("wiki.txt"), (Path("sst2.json"), Path("mmlu.json")))
    assert built.watch.measures.text == Path("other.txt")
    assert config_from(json.loads(json_bytes(asdict(built)))) == built


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nmae": "y"}, r"here: unknown setting 'nmae'. Did you mean 'name'"),
        ({"inner": {"raet": 1.0}}, r"setting 'inner': unknown setting 'raet'. Did you mean 'rate'"),
        ({"kind": "c"}, r"setting 'kind': 'c' is not one of 'a', 'b'"),
        ({"flag": 1}, r"setting 'flag': 1 is not of type bool"),
        ({"inner": {"layers": [1, "2"]}}, r"setting 'layers': \[1, '2'\] is not of type"),
        ({"name": None}, r"setting 'name': None is not of type str"),
    ],
)
def test_what_does_not_fit_is_named(content: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, content, "here")


def test_toml_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("count = \n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 1"):
        read_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"editor": "mmeit"}, "unknown editor 'mmeit'. Did you mean 'memit'"),
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"chunk": 0}, "chunk is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1; it must be at least 0"),
    ],
)
def test_a_run_is_refused_before_anything_is_loaded(changed: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(RunConfig(**changed))


@pytest.mark.parametrize(
    ("editor", "settings", "message"),
    [
        ("memit", Settings(layers=(0, 9)), r"layer 9 is out of range: the model has layers 0 to \d"),
        ("memit", Settings(layers=(2, 1)), "layers are .*ascending"),
        ("memit", Settings(layers=()), "layers are .*give one or more"),
        ("memit", Settings(lam=0.0), "editor 'memit': lam is 0.0; it must be above 0"),
        ("lyaplock", Settings(allowance=0.0), "editor 'lyaplock': allowance is 0.0; it must be above 0"),
        ("r-rome", Settings(steps=0), "editor 'r-rome': steps is 0; it must be above 0"),
        ("ft", Settings(learning_rate=-1.0), "editor 'ft': learning_rate is -1.0"),
        ("ft-l", Settings(bound=0.0), "editor 'ft-l': bound is 0.0; it must be above 0"),
        ("ft", Settings(lam=1.0), "editor 'ft': unknown setting 'lam'"),
        ("ft", Settings(clip_norm=0.0), "editor 'ft': clip_norm is 0.0; it must be above 0"),
        ("ft", Settings(weight_decay=-0.1), "editor 'ft': weight_decay is -0.1; it must not be negative"),
        ("ft", Settings(warmup_steps=25), "editor 'ft': warmup_steps is 25; it must be below"),
        ("lora", Settings(rank=0), "editor 'lora': rank is 0; it must be above 0"),
        ("lora", Settings(targets=("mlp.dwon",)), "unknown projection 'mlp.dwon'. Did you mean 'mlp.down'"),
        (
            "lora-sequence",
            Settings(schedule="linear"),
            "editor 'lora-sequence': schedule is 'linear' .* schedule_steps",
        ),
        ("full-ft", Settings(layers=(9,)), r"layer 9 is out of range: the model has layers 0 to \d"),
        ("pretrain", Settings(layers=()), "layers are .*give one or more"),
        ("pretrain", Settings(objective="prompt_last"), "editor 'pretrain': unknown setting 'objective'"),
        ("emmet", Settings(ridge=float("nan")), "editor 'emmet': ridge is nan; it must not be negative"),
    ],
)
def test_settings_that_cannot_work_are_named(
    gpt2: Case, editor: str, settings: Settings, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        method(editor).configure(gpt2.model.config, settings)


def test_depth_rule_gives_the_stated_layers(gpt2: Case) -> None:
    smol = DecoderConfig(**{**vars(gpt2.model.config), "n_layers": 30})
    assert method("r-rome").configure(smol).layers == (8,)
    assert method("memit").configure(smol).layers == (6, 7, 8, 9, 10)
