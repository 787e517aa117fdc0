"""Puts figures, tables and plotly.js together into one file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from jaxedit.report.page.compared_figures import compared_figures
from jaxedit.report.page.figure import POINTS, Figure
from jaxedit.report.page.measure_figures import measure_figures
from jaxedit.report.page.run_figures import run_figures
from jaxedit.report.page.source import Source, labels_of
from jaxedit.report.page.tables import documents, tables

PACKAGE = "jaxedit.report.page"
NAMED = 4  # runs in the title, at most


def write_page(sources: Sequence[Source], file: str | Path) -> Path:
    """Writes the page of one or several runs; the same runs give the same bytes. Returns the file.

    The page's content security policy lets only its own two scripts run and nothing be fetched, whatever the
    runs contain.
    """
    file = Path(file)
    labels = labels_of(sources)
    figures = [
        *run_figures(sources, labels),
        *compared_figures(sources, labels),
        *measure_figures(sources, labels),
    ]
    looks, script = (files(PACKAGE).joinpath(name).read_text() for name in ("page.css", "page.js"))
    scripts = [get_plotlyjs(), script]
    environment = Environment(
        loader=PackageLoader(PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        title=", ".join(labels) if len(labels) <= NAMED else f"{len(labels)} runs",
        tables=tables(sources, labels),
        figures=figures,
        payload=payload,
        points=POINTS,
        documents=list(zip(labels, map(documents, sources), strict=True)),
        looks=Markup(looks),
        scripts=[Markup(text) for text in scripts],
        hashes=" ".join(f"'sha256-{_digest(text)}'" for text in scripts),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(page.encode())
    return file


def payload(figure: Figure) -> Markup:
    """A figure as JSON that is safe inside a script element."""
    content = {
        "name": figure.name,
        "menus": figure.menus,
        "columns": figure.columns,
        "selects": figure.selects,
        "views": [view._asdict() for view in figure.views],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
