"""What fuzzing found: each of these once came out as another error, or as none."""

import json
from pathlib import Path

import pytest

from jaxedit.configs import build, read_toml
from jaxedit.data import load_facts
from jaxedit.errors import ConfigError, FactError, ModelError, RunError
from jaxedit.models.families import decoder_config
from jaxedit.pipeline import RunConfig, check, config_from
from jaxedit.report.record import read_run
from jaxedit.report.steps import history_table
from jaxedit.trajectory.store import RunFolder
from tests.fuzz.folders import chained, fresh, good_lines, run_content
from tests.fuzz.inputs import HF_CONFIG, OWN

DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.mark.parametrize("content", [DEEP, LONG, '{"a":' * 100_000])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_endless_json_is_no_set_of_facts(tmp_path: Path, content: str, suffix: str) -> None:
    file = tmp_path / f"facts{suffix}"
    file.write_text(content)
    with pytest.raises(FactError, match=f"facts{suffix}.* not readable as JSON"):
        load_facts(file)


@pytest.mark.parametrize("field", ["id", "subject", "target_new", "paraphrases"])
def test_half_a_character_is_refused_before_a_tokenizer_meets_it(tmp_path: Path, field: str) -> None:
    wrong = ["\ud800"] if field == "paraphrases" else OWN[field] + "\ud800"
    (tmp_path / "facts.jsonl").write_text(json.dumps(OWN | {field: wrong}))
    with pytest.raises(FactError, match=f"{field}.*half a character"):
        load_facts(tmp_path / "facts.jsonl")


@pytest.mark.parametrize("content", [f"a = {DEEP}", f"count = {LONG}", "\udc80"])
def test_endless_toml_is_no_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.toml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML"):
        read_toml(tmp_path / "run.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


def test_settings_out_of_all_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a table of settings"):
        build(RunConfig, [])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lam"):
        config_from({"settings": {"lam": 10**400}})
    with pytest.raises(ConfigError, match=r"seed is .* 64 bits"):
        check(RunConfig(seed=2**63))


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_model_beyond_all_size_is_refused_before_it_is_laid_out(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} is 1000000000, expected a positive integer"):
        decoder_config(HF_CONFIG | {name: 10**9})


@pytest.mark.parametrize("change", [{"updates": 2**40}, {"metrics_end": 2**70}])
def test_a_journal_of_impossible_sizes_is_refused_before_anything_is_made_that_large(
    tmp_path: Path, change: dict[str, int]
) -> None:
    run = fresh(tmp_path)
    start, first, *_ = [line.entry for line in good_lines()]
    (run / "journal.jsonl").write_bytes(chained([start, first | change]))
    with pytest.raises(RunError, match="sizes that cannot be"):
        RunFolder.open(run)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "null"),
        ("environment.json", "{}"),
        ("config.json", DEEP),
        ("metrics.jsonl", "null\n"),
    ],
)
def test_documents_of_another_kind_are_named(tmp_path: Path, name: str, content: str) -> None:
    """The journal vouches for them, so that no checksum tells."""
    with pytest.raises(RunError, match=f"{name} does not hold what a run writes there"):
        run_content(tmp_path, (name, content.encode()))


def test_lines_without_their_figures_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not hold what a run writes there"):
        run_content(tmp_path, ("metrics.jsonl", b"{}\n{}\n{}\n{}\n"))
    run = tmp_path / "run"
    with pytest.raises(RunError, match="does not hold what a run writes there"):
        read_run(run)
    with pytest.raises(RunError, match=r"metrics\.jsonl does not hold"):
        history_table(RunFolder.open(run))
