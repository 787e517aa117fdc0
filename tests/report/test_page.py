"""The page: the records' numbers, in a browser without network, whatever texts the runs hold."""

import csv
import html.parser
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxedit.errors import ConfigError
from jaxedit.report.page import Source, measure_folders, read_source, write_page
from jaxedit.report.page.figure import POINTS, thinned
from jaxedit.trajectory.store import RunFolder
from tests.trajectory.synthetic import write_run

from .records import record
from .test_report import RUNS

HOSTILE = '</script><script>window.broken = 1</script><img src=x onerror="window.broken = 1">&amp;'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def source(run: Any) -> Source:
    norm = {path: np.linspace(1.0, 2.0, len(run.edits)) for path in run.norm}
    facts = [f"fact {i} {HOSTILE}" for i in range(run.edits[-1])]
    return Source(run, {"model": HOSTILE, "batch_size": 1}, {"versions": {"jax": HOSTILE}}, facts, norm)


def measured(run: Any) -> Source:
    """With a matrix and a vector of two layers measured at three steps, beside a random change and its floor."""
    rows = [
        {"step": step, "model": model, "where": f"layers.{layer}.{what}", "measure": measure} | place
        | {"value": step + layer / 10 + (model == "random") / 100}
        for what, measures, place in (
            ("mlp.down.kernel", ("growth", "frobenius"), {"prompts": "", "position": ""}),
            ("residual", ("angle", "half_angle", "half_angle_floor"), {"prompts": HOSTILE, "position": "last"}),
        )
        for measure in measures
        for step in (0, 10, 30)
        for model in ("edited", "random")
        for layer in (1, 2)
        if step or model == "edited"
    ]  # fmt: skip
    law = {"params": {"a": {"value": 1.0, "error": 0.1, "low": 0.9, "high": 1.1}}, "weight": 1.0, "r2": 0.99}
    laws = {"layers.1.mlp.down.kernel": {"alignment_share": 0.25}}
    laws["layers.1.mlp.down.kernel"] |= {"path_norm": {"winner": None, "laws": {"linear": law}}}  # type: ignore[dict-item]
    return source(run)._replace(measures=tuple(rows), laws=laws)


class Reader(html.parser.HTMLParser):
    """Elements of a page as a browser would tell them apart."""

    def __init__(self, text: str):
        super().__init__()
        self.scripts: list[dict[str, Any]] = []
        self.payloads: dict[str, Any] = {}
        self.images = 0
        self.addresses: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.images += tag == "img"
        self.addresses |= {str(found[name])[:1] for name in ("src", "href") if name in found}
        if tag == "script":
            self.scripts.append(found)

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts[-1].get("type") == "application/json" and data.strip():
            self.payloads[str(self.scripts[-1]["id"])] = json.loads(data)


@pytest.mark.parametrize("case", RUNS)
def test_any_runs_make_a_page_the_same_twice(case: str, tmp_path: Path) -> None:
    first, second = (write_page([source(run) for run in RUNS[case]], tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    reader = Reader(first.read_text())
    assert {"data-norms", "data-norm-map"} <= reader.payloads.keys()
    assert ("data-scores" in reader.payloads) == (case != "not scored")
    assert ("data-growth-compared" in reader.payloads) == (case == "two runs")


def test_texts_of_runs_make_no_elements_and_the_page_fetches_nothing(tmp_path: Path) -> None:
    file = write_page([measured(record(HOSTILE)), measured(record("b"))], tmp_path / "page.html")
    reader = Reader(file.read_text())
    assert len(reader.scripts) == len(reader.payloads) + 2
    assert reader.images == 0
    assert reader.addresses == {"#"}


def test_the_maps_hold_the_measured_numbers(tmp_path: Path) -> None:
    reader = Reader(write_page([measured(record())], tmp_path / "page.html").read_text())
    views = {tuple(view["key"][1:]): view for view in reader.payloads["data-vectors-map"]["views"]}
    assert views.keys() == {("residual", HOSTILE, "last", name) for name in ("angle", "half_angle")}
    edited, random = views["residual", HOSTILE, "last", "angle"]["traces"]
    assert edited["x"] == ["0", "10", "30"]
    assert edited["z"] == [[0.1, 10.1, 30.1], [0.2, 10.2, 30.2]]
    assert random["z"] == [[None, 10.11, 30.11], [None, 10.21, 30.21]]
    profiles = {view["key"][-1]: view for view in reader.payloads["data-vectors-layers"]["views"]}
    floor = profiles["half_angle"]["traces"][-1]
    assert floor["name"] == "sampling alone (floor)"
    assert floor["y"] == [30.1, 30.2]


def test_runs_that_were_measured_lie_over_each_other(tmp_path: Path) -> None:
    runs = [measured(record("a")), measured(record("b")), source(record("not measured"))]
    page = Reader(write_page(runs, tmp_path / "page.html").read_text())
    views = {tuple(view["key"]): view for view in page.payloads["data-vectors-compared"]["views"]}
    lines = {line["name"]: line for line in views["residual", HOSTILE, "last", "angle", "edits"]["traces"]}
    assert lines.keys() == {
        f"{run}{model}" for run in "ab" for model in ("", ", random change of the same size")
    }
    assert (lines["b"]["x"], lines["b"]["y"]) == ([0, 10, 30], [0.15, 10.15, 30.15])
    by_layer = views["residual", HOSTILE, "last", "angle", "layers"]["traces"]
    assert (by_layer[1]["x"], by_layer[1]["y"]) == ([1, 2], [30.11, 30.21])
    alone = Reader(write_page([runs[0], runs[2]], tmp_path / "alone.html").read_text())
    assert not [name for name in alone.payloads if name.endswith(("matrices-compared", "vectors-compared"))]


def test_each_edit_is_shown_right_after_it_and_on_the_final_model(tmp_path: Path) -> None:
    made = record("a")
    left = {name: values[::-1] for name, values in made.scores.items()}
    runs = [source(made._replace(final_scores=left)), source(record("kept means alone"))]
    page = Reader(write_page(runs, tmp_path / "page.html").read_text())
    views = {tuple(view["key"]): view for view in page.payloads["data-edits"]["views"]}
    words = ("edited prompt", "paraphrases", "neighbourhood")
    assert views.keys() == {
        *(("a", word, when) for word in words for when in ("right after", "final")),
        *(("kept means alone", word, "right after") for word in words),
    }
    for when, scores in (("right after", made.scores), ("final", left)):
        good, bad = views["a", "paraphrases", when]["traces"]
        succeeded = scores["paraphrase_success"] == 1
        for trace, chosen in ((good, succeeded), (bad, ~succeeded)):
            assert trace["x"] == [int(i) + 1 for i in np.flatnonzero(chosen)]
            assert trace["y"] == list(scores["paraphrase_magnitude"][chosen])


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    np.testing.assert_array_equal(thinned(5), np.arange(5))
    kept = thinned(12_345)
    assert len(kept) == POINTS
    assert (kept[0], kept[-1]) == (0, 12_344)


def test_a_run_and_its_measures_are_read_from_their_folders(tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, updates in zip(runs, (4, 3), strict=True):
        write_run(run, updates=updates)
    beside, given = tmp_path / "one-measures", tmp_path / "elsewhere"
    line = {"step": 4, "model": "edited", "where": "layers.1.mlp.down.kernel", "prompts": "", "position": ""}
    for folder, run in ((beside, "one"), (given, "two")):
        folder.mkdir()
        (folder / "measures.jsonl").write_text(
            json.dumps(line | {"measure": "condition", "value": None}) + "\n"
        )
        identity = RunFolder.open(tmp_path / run).identity
        (folder / "config.json").write_text(json.dumps({"run": f"moved/{run}", "identity": identity}))
    assert measure_folders(runs) == [beside, None]
    assert measure_folders(runs, [given]) == [beside, given]
    with pytest.raises(ConfigError, match="none of the runs"):
        measure_folders(runs[:1], [given])
    with pytest.raises(ConfigError, match="no folder that"):
        measure_folders(runs, [runs[0]])
    given.rename(tmp_path / "two-measures")
    shutil.rmtree(runs[1])
    write_run(runs[1], updates=5)
    with pytest.raises(ConfigError, match="measures of another run that had this name"):
        measure_folders(runs)
    found = read_source(runs[0], beside)
    assert found.facts == [f"fact-{i}" for i in range(4)]
    assert np.isnan(found.measures[0]["value"])
    lines = [json.loads(text) for text in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    for path, norms in found.update_norm.items():
        np.testing.assert_array_equal(norms, [line["delta_norm"][path] for line in lines])


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of two runs in headless Chromium, with what it logged and asked for."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    folder = tmp_path_factory.mktemp("page")
    file = write_page([measured(record(HOSTILE)), measured(record("b", layers=(3,)))], folder / "report.html")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.logged, page.asked = [], []
        page.on("console", lambda message: page.logged.append(message.text))
        page.on("pageerror", lambda error: page.logged.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        yield page
        browser.close()


def downloaded(page: Any, figure: str) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click(f"#{figure} a.numbers")
    assert download.value.suggested_filename == f"{figure}.csv"
    return list(csv.DictReader(io.StringIO(download.value.path().read_bytes().decode())))


def test_every_figure_is_drawn_without_errors_or_requests(opened: Any) -> None:
    figures = opened.locator("figure[data-figure]")
    drawn = opened.locator(".plot .xy .trace, .plot .xy .hm image, .plot .barlayer .bars")
    assert figures.count() == 13
    for i in range(figures.count()):
        assert figures.nth(i).locator(drawn).count() > 0, figures.nth(i).get_attribute("data-figure")
    assert opened.logged == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.evaluate("window.broken") is None
    assert opened.inner_text("h1").startswith(HOSTILE)
    assert opened.locator("[data-title*=Share]").count() == 0, (
        "a button of plotly's that would upload the figure"
    )


def test_pointing_at_a_line_shows_its_number(opened: Any) -> None:
    plot = opened.locator("#growth-compared .plot")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = plot.locator(".hoverlayer text")
    text.first.wait_for()
    shown = " ".join(text.all_text_contents())
    assert "0.5" in shown
    assert HOSTILE in shown


def test_menus_choose_what_is_drawn_and_downloaded(opened: Any) -> None:
    first = downloaded(opened, "vectors-map")
    assert {row["measure"] for row in first} == {"angle"}
    menu = opened.locator("#vectors-map select")
    menu.nth(0).select_option("b")
    menu.nth(4).select_option("half_angle")
    assert "median over halvings" in opened.inner_text("#vectors-map .note")
    rows = downloaded(opened, "vectors-map")
    assert {(row["run"], row["prompts"], row["measure"]) for row in rows} == {("b", HOSTILE, "half_angle")}
    found = {(row["model"], row["updates"], row["layer"]): row["value"] for row in rows}
    assert found["edited", "30", "2"] == "30.2"
    assert opened.evaluate("document.querySelector('#vectors-map .plot').data[0].z[1][2]") == 30.2


@pytest.mark.parametrize("figure", ["scores", "norm-map"])
def test_a_figure_is_downloaded_as_svg(figure: str, opened: Any) -> None:
    with opened.expect_download() as download:
        opened.click(f"#{figure} a.picture")
    assert download.value.suggested_filename == f"{figure}.svg"
    root = ElementTree.parse(download.value.path()).getroot()
    assert root.tag.endswith("}svg")
    assert len(list(root.iter())) > 50


def test_the_downloaded_scores_are_those_of_the_record(opened: Any) -> None:
    rows = [
        row for row in downloaded(opened, "scores") if row["line"] == "b" and row["score"] == "paraphrase PS"
    ]
    np.testing.assert_allclose(
        [float(row["percent"]) for row in rows], 100 * record().running("PS"), rtol=1e-6
    )


def test_dragging_over_edits_lists_their_facts(opened: Any) -> None:
    plot = opened.locator("#edits .plot")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    opened.mouse.move(box["x"] + 4, box["y"] + 4)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 4, steps=4)
    opened.mouse.up()
    selected = opened.locator("#edits .selected")
    selected.wait_for()
    text = selected.inner_text()
    count = int(text.split()[0])
    assert 10 <= count <= 20
    assert f"fact 0 {HOSTILE}" in text
    values = record().scores["rewrite_magnitude"][:count]
    assert f"mean {values.mean():.3f}" in text
