"""Figures of the page as plain data for plotly.js, and their looks."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito's palette, safe for colour-blind readers; yellow darkened to show on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#9A8500")
DASHES = ("solid", "dash", "dot")
INK, FAINT, GRID = "#333333", "#8C8C8C", "#ECECEC"
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (190, 210, 40))
DIVERGING = [[0, "#2166AC"], [0.25, "#92C5DE"], [0.5, "#F7F7F7"], [0.75, "#F4A582"], [1, "#B2182B"]]
POINTS = 1000  # of a line or a row of a map, at most; of more, so many evenly spread
FEW = 12  # points of a line that are marked one by one
DIGITS = 7  # significant ones that are kept: those of float32


class View(NamedTuple):
    """What a figure shows at one choice in its menus."""

    key: tuple[str, ...]  # the choice in each menu
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    note: str = ""  # a line of text above the figure


class Figure(NamedTuple):
    """One figure; `menus` name what is chosen, `columns` its numbers when they are downloaded."""

    name: str
    title: str
    caption: str
    views: list[View]
    columns: tuple[str, str, str, str]  # panel, line, x, y; of a map: panel, x, y, colour
    menus: tuple[str, ...] = ()
    selects: bool = False  # whether dragging selects points


class Line(NamedTuple):
    """One line of a panel."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    dash: str = "solid"
    markers: bool | None = None  # by default where points are few


def line_view(
    key: tuple[str, ...],
    panels: Sequence[tuple[str, Sequence[Line]]],
    x_title: str,
    y_title: str,
    y_axis: dict[str, Any] | None = None,
    x_axis: dict[str, Any] | None = None,
    hover: str = ".4~g",
    note: str = "",
) -> View:
    """Panels of lines side by side; lines of one name share a colour and an entry in the legend."""
    traces, named = [], set[str]()
    layout = panel_layout([title for title, _ in panels], x_title, y_title, y_axis or {}, x_axis or {})
    longest = 0
    for index, (_, lines) in enumerate(panels, start=1):
        longest = max(longest, len(lines))
        for line in lines:
            keep = thinned(len(line.x))
            marked = len(line.x) <= FEW if line.markers is None else line.markers
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if marked else "lines",
                    "name": line.name,
                    "legendgroup": line.name,
                    "showlegend": line.name not in named,
                    "x": numbers(np.asarray(line.x)[keep]),
                    "y": numbers(np.asarray(line.y)[keep]),
                    "xaxis": _axis("x", index),
                    "yaxis": _axis("y", index),
                    "line": {"color": line.colour, "dash": line.dash, "width": 1.8},
                    "marker": {"color": line.colour, "size": 6},
                    "hovertemplate": f"%{{y:{hover}}}" if longest <= FEW else f"%{{x}}: %{{y:{hover}}}",
                }
            )
            named.add(line.name)
    layout["hovermode"] = "x unified" if longest <= FEW else "closest"
    layout["showlegend"] = len(named) > 1
    return View(key, traces, layout, note)


def map_view(
    key: tuple[str, ...],
    panels: Sequence[tuple[str, np.ndarray]],
    x: Sequence[Any],
    y: Sequence[str],
    x_title: str,
    colour_title: str,
    middle: float | None = None,
    note: str = "",
) -> View:
    """Heat maps side by side with one scale; around `middle`, where given, the scale has two colours."""
    keep = thinned(len(x))
    scale: dict[str, Any] = {
        "colorscale": "Viridis" if middle is None else DIVERGING,
        "colorbar": {"title": {"text": colour_title, "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }
    values = np.concatenate([z.ravel() for _, z in panels])
    values = values[np.isfinite(values)]
    if middle is not None and len(values):
        reach = float(np.abs(values - middle).max()) or 1.0
        scale |= {"cmin": middle - reach, "cmax": middle + reach}
    traces = [
        {
            "type": "heatmap",
            "name": title,
            "x": [x[i] for i in keep],
            "y": list(y),
            "z": [numbers(row[keep]) for row in z],
            "xaxis": _axis("x", index),
            "yaxis": _axis("y", index),
            "coloraxis": "coloraxis",
            "hoverongaps": False,
            "hovertemplate": f"{x_title} %{{x}}<br>layer %{{y}}<br><b>%{{z:.5~g}}</b><extra></extra>",
        }
        for index, (title, z) in enumerate(panels, start=1)
    ]
    category = {"type": "category"} if x and isinstance(x[0], str) else {}
    rows = {"type": "category", "showgrid": False, "nticks": 16, "ticks": ""}
    titles = [title if len(panels) > 1 else "" for title, _ in panels]
    layout = panel_layout(titles, x_title, "layer", rows, {"showgrid": False, "zeroline": False} | category)
    height = 150 + min(26 * max(len(y), 4), 460)
    return View(key, traces, layout | {"coloraxis": scale, "height": height, "hovermode": "closest"}, note)


def panel_layout(
    titles: Sequence[str], x_title: str, y_title: str, y_axis: dict[str, Any], x_axis: dict[str, Any]
) -> dict[str, Any]:
    """Axes side by side that share the vertical scale."""
    count, gap = len(titles), 0.045
    width = (1 - gap * (count - 1)) / count
    layout: dict[str, Any] = {"annotations": []}
    for index, title in enumerate(titles, start=1):
        suffix = "" if index == 1 else str(index)
        left = (index - 1) * (width + gap)
        domain = [left, min(left + width, 1.0)]
        layout[f"xaxis{suffix}"] = {
            "title": {"text": x_title, "standoff": 6},
            "domain": domain,
            "anchor": _axis("y", index),
        } | x_axis
        layout[f"yaxis{suffix}"] = {"anchor": _axis("x", index)} | y_axis
        if index == 1:
            layout["yaxis"]["title"] = {"text": y_title, "standoff": 8}
        else:
            layout[f"yaxis{suffix}"] |= {"matches": "y", "showticklabels": False}
        if title:
            place = {
                "x": left,
                "xref": "paper",
                "y": 1.0,
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
            }
            layout["annotations"].append({"text": title, "showarrow": False, "font": {"size": 13}} | place)
    return layout


def layer_axis(layers: Iterable[np.ndarray]) -> dict[str, Any]:
    """Ticks at whole layers only."""
    return {"dtick": 1 if np.ptp(np.concatenate(list(layers))) < FEW else 5}


def thinned(count: int) -> np.ndarray:
    """Indices of at most `POINTS` evenly spread points, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))


def numbers(values: Iterable[Any]) -> list[float | int | None]:
    """For JSON, which knows neither NaN nor infinity."""
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 10**DIGITS else float(f"{value:.{DIGITS}g}")


def colour_of(index: int) -> str:
    """Of the run with this number."""
    return COLOURS[index % len(COLOURS)]


def dash_of(index: int) -> str:
    """Tells runs apart that share a colour."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def ramp(count: int) -> list[str]:
    """Colours of layers, from the lowest to the highest."""
    stops = np.linspace(0, 1, len(VIRIDIS))
    places = np.linspace(0, 1, count) if count > 1 else np.array([0.25])
    channels = [np.interp(places, stops, channel) for channel in zip(*VIRIDIS, strict=True)]
    return [f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in zip(*channels, strict=True)]


def _axis(letter: str, index: int) -> str:
    return letter if index == 1 else f"{letter}{index}"
