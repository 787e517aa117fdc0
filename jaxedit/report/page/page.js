"use strict";
// Draws every figure from the JSON beside it; menus choose among its views; links hand out what is shown.

const CONFIG = {
  displaylogo: false,
  responsive: true,
  showSendToCloud: false,
  modeBarButtonsToRemove: ["lasso2d", "autoScale2d"],
};
const LAYOUT = {
  margin: { l: 64, r: 16, t: 30, b: 56 },
  paper_bgcolor: "#fff",
  plot_bgcolor: "#fff",
  font: { family: 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', size: 13, color: "#333" },
  hoverlabel: { namelength: -1, font: { size: 12 } },
};
const HEIGHT = 270; // of the axes, where a figure says nothing else
const ROW = 25; // of a legend
const LETTER = 7.4; // width of one in a legend, about; a name has its line before it
const AXIS = { gridcolor: "#ECECEC", linecolor: "#8C8C8C", showline: true, zerolinecolor: "#C8C8C8", automargin: true };
const LISTED = 12; // facts named of a selection

/** plotly reads tags in texts; texts of runs are none. */
function escaped(value, key = "") {
  if (typeof value === "string" && key !== "hovertemplate") {
    return value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  }
  if (Array.isArray(value)) return value.map((inner) => escaped(inner));
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, escaped(inner, name)]));
  }
  return value;
}

/** A legend below the axes takes room of its own, however many names it has. */
function withLegend(traces, layout, width) {
  if (layout.height) return layout;
  const names = traces.filter((trace) => trace.showlegend !== false).map((trace) => trace.name);
  const longest = Math.max(...names.map((name) => name.length));
  const columns = Math.max(1, Math.floor((width - 90) / (longest * LETTER + 50)));
  const room = LAYOUT.margin.b + (layout.showlegend === false ? 0 : ROW * Math.ceil(names.length / columns));
  const place = { orientation: "h", x: 0, xanchor: "left", y: -LAYOUT.margin.b / HEIGHT, yanchor: "top", maxheight: 1 };
  const height = LAYOUT.margin.t + HEIGHT + room;
  return { ...layout, height, margin: { ...LAYOUT.margin, b: room }, legend: place };
}

function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

function hand(link, text, type) {
  if (link.href.startsWith("blob:")) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([text], { type }));
}

/** The numbers of a view, one a row. */
function numbers(data, view) {
  const rows = [[...data.menus, ...data.columns]];
  const panels = Object.fromEntries(view.layout.annotations.map((note, i) => [i, note.text]));
  for (const trace of view.traces) {
    const panel = panels[Number((trace.xaxis ?? "x").slice(1) || 1) - 1] ?? "";
    if (trace.type === "heatmap") {
      trace.z.forEach((row, i) => row.forEach((z, j) => rows.push([...view.key, trace.name, trace.x[j], trace.y[i], z])));
    } else {
      trace.x.forEach((x, i) => rows.push([...view.key, trace.customdata?.[i] ?? panel, trace.name, x, trace.y[i]]));
    }
  }
  return csv(rows);
}

function start(figure) {
  const name = figure.dataset.figure;
  const data = JSON.parse(document.getElementById(`data-${name}`).textContent);
  const [plot, note, selected] = [".plot", ".note", ".selected"].map((part) => figure.querySelector(part));
  const key = [...data.views[0].key];
  const menus = data.menus.map((title, place) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.addEventListener("change", () => {
      key[place] = select.value;
      show();
    });
    label.append(title, select);
    figure.querySelector(".menus").append(label);
    return select;
  });

  function show() {
    let views = data.views;
    menus.forEach((menu, place) => {
      const choices = [...new Set(views.map((view) => view.key[place]))];
      if (!choices.includes(key[place])) key[place] = choices[0];
      menu.replaceChildren(...choices.map((choice) => new Option(choice || "–", choice)));
      menu.value = key[place];
      const known = data.menus[place] === "run" && document.body.dataset.runs > 1;
      menu.parentElement.hidden = !known && new Set(data.views.map((view) => view.key[place])).size < 2;
      views = views.filter((view) => view.key[place] === key[place]);
    });
    draw(views[0]);
  }

  function draw(view) {
    const layout = { ...LAYOUT, dragmode: data.selects ? "select" : "zoom", ...escaped(withLegend(view.traces, view.layout, plot.clientWidth)) };
    for (const axis of Object.keys(layout).filter((part) => /^[xy]axis/.test(part))) {
      layout[axis] = { ...AXIS, ...layout[axis] };
    }
    const file = { format: "svg", filename: name };
    Plotly.react(plot, escaped(view.traces), layout, { ...CONFIG, toImageButtonOptions: file });
    note.textContent = view.note;
    selected.textContent = "";
    hand(figure.querySelector("a.numbers"), numbers(data, view), "text/csv");
  }

  function tell(event) {
    if (!event?.points.length) {
      selected.textContent = "";
      return;
    }
    const values = event.points.map((point) => point.y);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const facts = event.points.toSorted((a, b) => a.x - b.x).map(raw);
    const more = facts.length > LISTED ? `, and ${facts.length - LISTED} more` : "";
    const what = values.length === 1 ? "1 edit" : `${values.length} edits`;
    selected.textContent = `${what} selected, mean ${mean.toFixed(3)}: ${facts.slice(0, LISTED).join(", ")}${more}`;
  }

  /** The fact as it is, not as it was escaped for plotly. */
  function raw(point) {
    const view = data.views.find((one) => one.key.every((choice, place) => choice === key[place]));
    return view.traces[point.curveNumber].customdata[point.pointIndex] || `edit ${point.x}`;
  }

  show();
  if (data.selects) {
    plot.on("plotly_selected", tell);
    plot.on("plotly_deselect", () => tell(null));
  }
  figure.querySelector("a.picture").addEventListener("click", (event) => {
    event.preventDefault();
    Plotly.downloadImage(plot, { format: "svg", filename: name, width: plot.clientWidth, height: plot.clientHeight });
  });
}

for (const figure of document.querySelectorAll("figure[data-figure]")) start(figure);
for (const link of document.querySelectorAll("a[data-table]")) {
  const rows = document.querySelectorAll(`#${link.dataset.table} tr`);
  hand(link, csv([...rows].map((row) => [...row.cells].map((cell) => cell.textContent.replaceAll("\u00a0", " ")))), "text/csv");
}
