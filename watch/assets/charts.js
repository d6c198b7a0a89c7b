// Charts of runs with uPlot. Plain functions: drawCharts(container, runs, options) draws, and returns
// {update(runs), destroy()}. A run is what `run_values` of watch/report/curves.py returns. All text reaches the page
// as textContent. No style attribute and no handler stands in HTML, so that a strict Content-Security-Policy holds.
"use strict";

const PLACE_NAMES = { step: "steps", bytes: "bytes", elapsed: "wall time" };
const PHASES = {
  data: "reading images", forward: "forward", encode: "encoding", send: "sending", recompute: "recomputing",
  decode: "decoding", backward: "backward", link: "link", cloud: "trainer", cloud_codec: "trainer's codec",
  cloud_wait: "waiting at the trainer",
};
const KINDS = {
  training: "training", evaluation: "evaluation", trunk: "changes of the trunk", repeated: "repeated", probes: "probes of the link",
};
const MARKS = { outage: "outage", plan: "settings changed", resume: "resumed" };
const LETTERS = { outage: "O", plan: "S", resume: "R" };
const HEIGHT = 260;
// Distances of marks on an axis of seconds.
const TIME_STEPS = [0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800,
  432000, 864000, 8640000];

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "#888";
}

function runColour(index) {
  return colour(`--run-${index % 10}`);
}

function dashes(index) {  // runs beyond ten colours
  return index < 10 ? undefined : [8, 4];
}

function sizeText(bytes) {
  if (bytes == null) return "";
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (Math.abs(bytes) >= size) return `${+(bytes / size).toPrecision(3)} ${unit}`;
  return `${Math.round(bytes)} B`;
}

function timeText(seconds) {
  if (seconds == null) return "";
  const s = Math.abs(seconds);
  if (s < 120) return `${+seconds.toPrecision(3)} s`;
  if (s < 7200) return `${+(seconds / 60).toPrecision(3)} min`;
  return `${+(seconds / 3600).toPrecision(3)} h`;
}

function numberText(value) {
  return value == null ? "" : `${+value.toPrecision(4)}`;
}

// Width of an axis in pixels: its longest text, with the ticks beside it.
function axisSize(plot, texts) {
  return Math.max(62, 20 + 7 * Math.max(0, ...(texts || []).map((text) => text.length)));
}

function shareText(value) {
  return value == null ? "" : `${+(100 * value).toPrecision(3)} %`;
}

const TEXTS = { step: (v) => (v == null ? "" : `${Math.round(v)}`), bytes: sizeText, elapsed: timeText };

// Values of a column at the places of another, linear between its own; null outside.
function between(xs, ys, places) {
  const known = [];
  for (let i = 0; i < xs.length; i++) if (xs[i] != null && ys[i] != null) known.push(i);
  let next = 0;
  return places.map((x) => {
    if (!known.length || x < xs[known[0]] || x > xs[known[known.length - 1]]) return null;
    while (next < known.length - 1 && xs[known[next]] < x) next++;
    const after = known[next], before = known[Math.max(next - 1, 0)];
    if (xs[after] === x || after === before) return ys[after];
    const share = (x - xs[before]) / (xs[after] - xs[before]);
    return ys[before] + share * (ys[after] - ys[before]);
  });
}

function stepsOf(axis) {
  return axis === "elapsed" ? TIME_STEPS : undefined;
}

function sortedPlaces(columns) {
  const all = new Set();
  for (const column of columns) for (const x of column || []) if (x != null) all.add(x);
  return [...all].sort((a, b) => a - b);
}

// Outages as bands, resumes and changes of settings as lines; above the plot their first letter.
function markPlugin(marksOf) {
  return {
    hooks: {
      drawClear: (u) => {
        const { ctx } = u, { left, top, width, height } = u.bbox, scale = devicePixelRatio || 1;
        ctx.save();
        const letters = [];  // places of those drawn, so that none lies upon another
        for (const mark of marksOf()) {
          if (mark.from == null) continue;
          const from = u.valToPos(mark.from, "x", true), until = u.valToPos(mark.until ?? mark.from, "x", true);
          if (until < left - 1 || from > left + width + 1) continue;
          const x = Math.max(from, left), wide = Math.max(Math.min(until, left + width) - x, scale);
          ctx.fillStyle = ctx.strokeStyle = colour(`--mark-${mark.kind}`);
          if (mark.kind === "outage") {
            ctx.globalAlpha = 0.25;
            ctx.fillRect(x, top, Math.max(wide, 3 * scale), height);
            ctx.globalAlpha = 1;
          } else {
            ctx.lineWidth = 1.5 * scale;
            ctx.setLineDash(mark.kind === "plan" ? [5 * scale, 3 * scale] : []);
            ctx.beginPath();
            ctx.moveTo(x, top);
            ctx.lineTo(x, top + height);
            ctx.stroke();
          }
          ctx.font = `${11 * scale}px system-ui, sans-serif`;
          ctx.textAlign = "center";
          ctx.textBaseline = "bottom";
          const place = x + (mark.kind === "outage" ? wide / 2 : 0);
          if (letters.some((other) => Math.abs(other - place) < 11 * scale)) continue;
          letters.push(place);
          ctx.fillText(LETTERS[mark.kind], place, top - scale);
        }
        ctx.restore();
      },
    },
  };
}

// One chart: a heading, a picture that the keyboard can walk through, a line that reads values out, a table behind it.
// `spec()` returns {x, xText, series: [{label, values, text, colour, dash, points, scale, low, high, stack, hidden}],
// marks, yText, y2Text, unit}.
function makeChart(container, title, spec, options) {
  const heading = element("h3", {}, title), plotArea = element("div", { class: "plot", tabindex: "0", role: "img" });
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const table = element("div", { class: "wide tall", tabindex: "0", role: "region", "aria-label": `Table of ${title}` }), details = element("details", {}, element("summary", {}, "Table"), table);
  const legend = element("ul", { class: "legend" });
  const figure = element("figure", { class: "chart" }, heading, legend, plotArea, readout, details);
  container.append(figure);
  let plot = null, now = null;

  function structure(s) {
    return JSON.stringify([s.series.map((one) => [one.label, one.scale, !!one.low, one.hidden, one.colour]), s.x.length > 0]);
  }

  function data(s) {
    const rows = [s.x];
    for (const one of s.series) {
      if (one.low) rows.push(one.low, one.high);
      rows.push(one.values);
    }
    return rows;
  }

  function readAt(index) {
    if (index == null || !now || now.x[index] == null) {
      readout.textContent = "";
      return;
    }
    const parts = now.series.filter((one) => !one.hidden && one.told(index) != null)
      .map((one) => `${one.label} ${one.text(one.told(index))}`);
    readout.textContent = `${now.xText(now.x[index])}: ${parts.join(", ")}`;
  }

  function build() {
    if (plot) plot.destroy();
    plot = null;
    plotArea.textContent = "";
    if (!now.x.length || !now.series.length) {
      plotArea.append(element("p", { class: "none" }, options.none || "Nothing is known of this yet."));
      return;
    }
    const series = [{}], bands = [];
    for (const [number, one] of now.series.entries()) {
      const own = () => now.x.flatMap((_, at) => (now.series[number].told(at) == null ? [] : [at]));  // not those between
      const shown = !one.hidden, scale = one.scale || "y";
      if (one.low) {
        series.push({ scale, show: shown, stroke: "transparent", width: 0, points: { show: false } });
        series.push({ scale, show: shown, stroke: "transparent", width: 0, points: { show: false } });
        bands.push({ series: [series.length - 1, series.length - 2], fill: one.colour + "2e" });
      }
      series.push({
        scale, show: shown, stroke: one.colour, width: one.stack ? 0.75 : 1.75, dash: one.dash, fill: one.stack ? one.colour : undefined,
        points: { show: !!one.points, size: 6, fill: one.colour, filter: one.points && own }, spanGaps: true,
      });
    }
    const line = { stroke: colour("--quiet"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid"), width: 1 } };
    const axes = [
      { ...line, values: (u, all) => all.map(now.xText), space: 64, size: 30, ...(now.xSteps ? { incrs: now.xSteps } : {}) },
      { ...line, scale: "y", values: (u, all) => all.map(now.yText), size: axisSize },
    ];
    if (now.series.some((one) => one.scale === "y2"))
      axes.push({ ...line, scale: "y2", side: 1, grid: { show: false }, values: (u, all) => all.map(now.y2Text), size: axisSize });
    plot = new uPlot({
      width: Math.max(plotArea.clientWidth, 200), height: options.height || HEIGHT, padding: [18, 26, 0, 0],
      legend: { show: false }, cursor: { points: { show: false }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range: (u, low, high) => (low == null ? [0, 1] : rangeOf(low, high, now.fromZero)) },
        y2: { range: (u, low, high) => (low == null ? [0, 1] : rangeOf(low, high, true)) } },
      axes, series, bands, plugins: [markPlugin(() => now.marks)],
      hooks: { setCursor: [(u) => readAt(u.cursor.idx)] },
    }, data(now), plotArea);
  }

  function fillLegend() {
    legend.textContent = "";
    if (options.ownLegend) for (const one of now.series) {
      const swatch = element("span", { class: "swatch" });
      swatch.style.background = one.colour;
      legend.append(element("li", {}, swatch, one.label));
    }
  }

  function fillTable() {
    table.textContent = "";
    if (!details.open) return;
    const head = element("tr", {}, element("th", { scope: "col" }, now.xName));
    for (const one of now.series) head.append(element("th", { scope: "col" }, one.label));
    const body = element("tbody");
    const every = Math.max(1, Math.ceil(now.x.length / 100));
    for (let i = 0; i < now.x.length; i += every) {
      const row = element("tr", {}, element("th", { scope: "row" }, now.xText(now.x[i])));
      for (const one of now.series) row.append(element("td", {}, one.text(one.told(i))));
      body.append(row);
    }
    table.append(element("table", {}, element("caption", {}, title), element("thead", {}, head), body));
  }

  function update() {
    const before = now && structure(now);
    now = spec();
    for (const one of now.series) one.told = one.told || ((i) => one.values[i]);
    plotArea.setAttribute("aria-label", summaryOf(title, now));
    if (plot && before === structure(now)) plot.setData(data(now));
    else build();
    fillLegend();
    fillTable();
  }

  function walk(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
    if (!(event.key in moves) || !plot) return;
    event.preventDefault();
    const at = Math.min(Math.max((plot.cursor.idx ?? -1) + moves[event.key], 0), now.x.length - 1);
    plot.setCursor({ left: plot.valToPos(now.x[at], "x"), top: 10 });
    readAt(at);
  }

  details.addEventListener("toggle", fillTable);
  plotArea.addEventListener("keydown", walk);
  const watcher = new ResizeObserver(() => {
    const width = plotArea.clientWidth;
    if (plot && width && width !== plot.width) plot.setSize({ width, height: options.height || HEIGHT });
  });
  watcher.observe(plotArea);
  update();
  return { update, rebuild: () => { now = spec(); for (const one of now.series) one.told = one.told || ((i) => one.values[i]); build(); fillLegend(); },
    destroy: () => { watcher.disconnect(); if (plot) plot.destroy(); figure.remove(); } };
}

function rangeOf(low, high, fromZero) {
  if (fromZero) low = Math.min(low, 0);
  const pad = (high - low || Math.abs(high) || 1) * 0.05;
  return [fromZero && low >= 0 ? 0 : low - pad, high + pad];
}

function summaryOf(title, s) {
  const parts = s.series.slice(0, 12).map((one) => {
    const known = s.x.map((_, i) => one.told(i)).filter((value) => value != null);
    return known.length ? `${one.label} from ${one.text(known[0])} to ${one.text(known[known.length - 1])}` : `${one.label} not known`;
  });
  const marks = s.marks.length ? `; ${s.marks.length} marks` : "";
  return `${title} against ${s.xName}: ${parts.join("; ")}${marks}. Arrow keys read values out; the table has them too.`;
}

// Marks of runs at the places of one axis.
function marksAt(runs, axis) {
  return runs.flatMap((run) => (run.marks || []).map((mark) => {
    const long = axis === "elapsed" && mark.kind === "outage" && mark.elapsed != null;
    const until = !long ? undefined : mark.seconds == null ? Infinity : mark.elapsed + mark.seconds;
    return { kind: mark.kind, from: mark[axis], until: until === Infinity ? 1e15 : until };
  }));
}

function curveSpec(runs, view, name, tests) {
  const axis = view.axis, shown = runs.map((run, index) => ({ run, index }));
  const withCurve = shown.filter(({ run }) => run.curves && run.curves[name] && run.curves[axis]);
  const withTests = tests ? shown.filter(({ run }) => run.tests && run.tests[name] && run.tests[axis]) : [];
  const x = sortedPlaces([...withCurve.map(({ run }) => run.curves[axis]), ...withTests.map(({ run }) => run.tests[axis])]);
  const text = name === "accuracy" ? shareText : numberText, series = [];
  for (const { run, index } of withCurve) {
    const at = (column) => (run.curves[column] ? between(run.curves[axis], run.curves[column], x) : undefined);
    series.push({ label: tests ? `${run.label} (training)` : run.label, values: at(name), low: at(`${name}_low`), high: at(`${name}_high`), text,
      colour: runColour(index), dash: tests ? [2, 3] : dashes(index), hidden: view.hidden.has(run.label) });
  }
  for (const { run, index } of withTests) {
    const own = new Map(run.tests[axis].map((place, i) => [place, run.tests[name][i]]));
    series.push({ label: `${run.label} (test)`, values: between(run.tests[axis], run.tests[name], x), told: (i) => own.get(x[i]), text,
      colour: runColour(index), dash: dashes(index), points: run.tests[axis].length < 60, hidden: view.hidden.has(run.label) });
  }
  const visible = runs.filter((run) => !view.hidden.has(run.label));
  return { x, xName: PLACE_NAMES[axis], xText: TEXTS[axis], xSteps: stepsOf(axis), series, marks: marksAt(visible, axis), yText: text, fromZero: name === "accuracy" };
}

function phaseSpec(run) {
  const x = (run.phases.step || []).slice(), series = [];
  let sum = x.map(() => 0);
  Object.keys(PHASES).forEach((phase, index) => {
    const own = run.phases[phase];
    if (!own) return;
    sum = sum.map((total, i) => total + (own[i] || 0));
    series.push({ label: PHASES[phase], values: sum, told: (i) => own[i], text: timeText, colour: colour(`--phase-${index}`), stack: true });
  });
  series.reverse();  // the highest sum first, so that the lower ones are drawn over it
  return { x, xName: "steps", xText: TEXTS.step, series, marks: marksAt([run], "step"), yText: timeText, fromZero: true };
}

function linkSpec(run) {
  const axis = run.link.elapsed ? "elapsed" : "step", x = run.link[axis] || [], series = [];
  const add = (name, label, tint, scale, text, dash) => run.link[name]
    && series.push({ label, values: run.link[name], text, colour: runColour(tint), scale, dash });
  add("up_mbit_s", "up", 0, "y", (v) => (v == null ? "" : `${numberText(v)} Mbit/s`));
  add("down_mbit_s", "down", 1, "y", (v) => (v == null ? "" : `${numberText(v)} Mbit/s`));
  add("rtt_ms", "round trip", 2, "y2", (v) => (v == null ? "" : `${numberText(v)} ms`), [4, 3]);
  return { x, xName: PLACE_NAMES[axis], xText: TEXTS[axis], xSteps: stepsOf(axis), series, marks: marksAt([run], axis), fromZero: true,
    yText: (v) => (v == null ? "" : `${numberText(v)} Mb/s`), y2Text: (v) => (v == null ? "" : `${numberText(v)} ms`) };
}

// Bars of bytes by kind. Their numbers stand beside them, so the bars themselves are hidden from screen readers.
function drawBytes(container, runs) {
  const spent = (run) => Object.values(run.bytes || {}).reduce((a, b) => a + b, 0);
  const most = Math.max(1, ...runs.map(spent));
  container.textContent = "";
  for (const run of runs.filter((one) => one.bytes && spent(one) > 0)) {
    const bar = element("div", { class: "bar", "aria-hidden": "true" });
    const parts = [];
    Object.keys(KINDS).forEach((kind, index) => {
      if (!run.bytes[kind]) return;
      const piece = element("span", { class: "piece" });
      piece.style.width = `${(100 * run.bytes[kind]) / most}%`;
      piece.style.background = colour(`--phase-${index * 2}`);
      bar.append(piece);
      const swatch = element("span", { class: "swatch" });
      swatch.style.background = colour(`--phase-${index * 2}`);
      parts.push(element("span", { class: "part" }, swatch, `${KINDS[kind]} ${sizeText(run.bytes[kind])}`));
    });
    const rivals = [];
    if (run.uncompressed) rivals.push(`${shareText(spent(run) / run.uncompressed)} of ${sizeText(run.uncompressed)} as uncompressed fp32`);
    if (run.files) rivals.push(run.files);
    const row = element("div", { class: "bytes" }, element("h3", {}, `${run.label}: ${sizeText(spent(run))}`), bar, element("p", {}, ...parts));
    if (rivals.length) row.append(element("p", { class: "note" }, rivals.join("; ")));
    container.append(row);
  }
}

function axisSwitch(view, axes, redraw) {
  const set = element("fieldset", { class: "axis" }, element("legend", {}, "Against"));
  const name = `axis-${Math.random().toString(36).slice(2)}`;
  for (const axis of axes) {
    const input = element("input", { type: "radio", name, value: axis });
    input.checked = axis === view.axis;
    input.addEventListener("change", () => { view.axis = axis; redraw(); });
    set.append(element("label", {}, input, PLACE_NAMES[axis]));
  }
  return set;
}

function runSwitches(runs, view, redraw) {
  const list = element("ul", { class: "legend", "aria-label": "Runs" });
  runs.forEach((run, index) => {
    const swatch = element("span", { class: "swatch" }), button = element("button", { type: "button", "aria-pressed": "true" }, swatch, run.label);
    swatch.style.background = runColour(index);
    button.setAttribute("aria-pressed", `${!view.hidden.has(run.label)}`);
    button.addEventListener("click", () => {
      if (!view.hidden.delete(run.label)) view.hidden.add(run.label);
      button.setAttribute("aria-pressed", `${!view.hidden.has(run.label)}`);
      redraw();
    });
    list.append(element("li", {}, button));
  });
  return list;
}

function markLegend(runs) {
  const kinds = Object.keys(MARKS).filter((kind) => runs.some((run) => (run.marks || []).some((mark) => mark.kind === kind)));
  if (!kinds.length) return "";
  const list = element("ul", { class: "legend", "aria-label": "Marks" });
  for (const kind of kinds) {
    const swatch = element("span", { class: `swatch mark-${kind}` });
    list.append(element("li", {}, swatch, `${LETTERS[kind]}: ${MARKS[kind]}`));
  }
  return list;
}

// Draw the charts of runs. Options: axis ("step", "bytes" or "elapsed"), only (list of "curves", "phases", "link", "bytes").
function drawCharts(container, runs, options = {}) {
  const view = { axis: options.axis || "step", hidden: new Set() }, wanted = options.only || ["curves", "phases", "link", "bytes"];
  let charts = [], current = runs, shape = "";

  function section(title, note) {
    const made = element("section", {}, element("h2", {}, title));
    if (note) made.append(element("p", { class: "note" }, note));
    container.append(made);
    return made;
  }

  function redraw() {
    for (const chart of charts) chart.update();
  }

  function curves() {
    const part = section("Loss and accuracy", "A band is the range of the steps that one point stands for.");
    const axes = ["step", "bytes", "elapsed"].filter((axis) => current.some((run) => run.curves && run.curves[axis]));
    part.append(axisSwitch(view, axes, redraw), runSwitches(current, view, redraw), markLegend(current));
    const grid = element("div", { class: "grid" });
    part.append(grid);
    charts.push(makeChart(grid, "Training loss", () => curveSpec(current, view, "loss", false), {}));
    charts.push(makeChart(grid, "Accuracy", () => curveSpec(current, view, "accuracy", true), {}));
  }

  function each(title, note, known, spec, options) {
    if (!current.some(known)) return;
    const part = section(title, note), grid = element("div", { class: "grid" });
    part.append(markLegend(current.filter(known)), grid);
    current.forEach((run, index) => {
      if (known(run)) charts.push(makeChart(grid, run.label, () => spec(current[index] || run), { ownLegend: true, height: 220, ...options }));
    });
  }

  function build() {
    for (const chart of charts) chart.destroy();
    charts = [];
    container.textContent = "";
    if (wanted.includes("curves")) curves();
    if (wanted.includes("phases"))
      each("Time of a step by phase", "Where several messages are in flight, phases overlap and their sum is more than the step.",
        (run) => run.phases && Object.keys(run.phases).length > 1, phaseSpec);
    if (wanted.includes("link")) each("Link", "Rates as the run's own messages measure them, and the shortest round trip.",
      (run) => run.link && Object.keys(run.link).length > 1, linkSpec);
    if (wanted.includes("bytes") && current.some((run) => run.bytes)) drawBytes(element1(section("Bytes by kind")), current);
  }

  function element1(part) {
    const box = element("div", { class: "all-bytes" });
    part.append(box);
    return box;
  }

  function shapeOf(all) {
    return JSON.stringify(all.map((run) => [run.label, Object.keys(run.curves || {}), Object.keys(run.phases || {}).length > 1,
      Object.keys(run.link || {}).length > 1, [...new Set((run.marks || []).map((mark) => mark.kind))]]));
  }

  function update(newRuns) {
    current = newRuns;
    const found = shapeOf(newRuns);
    if (found !== shape) {
      shape = found;
      build();
      return;
    }
    redraw();
    const bars = container.querySelector(".all-bytes");
    if (bars) drawBytes(bars, current);
  }

  function recolour() {
    for (const chart of charts) chart.rebuild();
    for (const [index, swatch] of container.querySelectorAll("[aria-label=Runs] .swatch").entries()) swatch.style.background = runColour(index);
    const bars = container.querySelector(".all-bytes");
    if (bars) drawBytes(bars, current);
  }

  function print(on) {
    document.documentElement.classList.toggle("printing", on);
    recolour();
  }

  const dark = matchMedia("(prefers-color-scheme: dark)"), begin = () => print(true), end = () => print(false);
  dark.addEventListener("change", recolour);
  addEventListener("beforeprint", begin);
  addEventListener("afterprint", end);
  update(runs);
  return { update, destroy: () => {
    for (const chart of charts) chart.destroy();
    dark.removeEventListener("change", recolour);
    removeEventListener("beforeprint", begin);
    removeEventListener("afterprint", end);
    container.textContent = "";
  } };
}
