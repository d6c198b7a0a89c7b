// The page of runs: takes a snapshot, then what is new, and shows it. It never sends anything but requests to read.
"use strict";

const SILENT_S = 25; // without a word of the server
const PHASE_ORDER = Object.keys(PHASES); // of charts.js, as all that is not declared here
const STATE_LOOKS = {
  running: "good", connected: "good", finished: "calm", waiting: "warn", away: "warn",
  interrupted: "bad", damaged: "bad", refused: "bad",
};

let model = null; // the last snapshot with all updates since
let waiting = []; // updates that came while a snapshot was on its way
let asking = false;
let clockOffset = 0; // seconds: the server's clock less this one
let heard = Date.now();
let dirty = false; // something that is shown has changed
let aged = false; // only the ages of lines have
const views = [];

// ---- texts ----

function known(value) { return value !== null && value !== undefined && value !== ""; }
function count(value) { return known(value) ? Math.round(value).toLocaleString("en") : "–"; }
function digits(value, most = 3) { return known(value) ? Number(value.toPrecision(most)).toString() : "–"; }
function percent(value) { return known(value) ? `${(100 * value).toFixed(1)} %` : "–"; }
function scaled(value, units) {
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${place ? digits(value) : Math.round(value)} ${units[place]}`;
}
function size(value) { return known(value) ? scaled(value, ["B", "kB", "MB", "GB", "TB"]) : "–"; }
function seconds(value) {
  if (!known(value)) return "–";
  if (!value) return "0 s";
  if (value < 1) return `${digits(1000 * value)} ms`;
  if (value < 100) return `${digits(value)} s`;
  if (value < 6000) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${digits(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}
function age(time) { return Math.max(0, Date.now() / 1000 + clockOffset - time); }
function ago(time) {
  if (!time) return "–";
  return age(time) < 2 ? "now" : `${seconds(Math.round(age(time)))} ago`;
}
function sum(values) { return values.reduce((all, value) => all + value, 0); }

// ---- elements ----

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
function write(element, text) { if (element.textContent !== text) element.textContent = text; }
function pill(element, text, looks) {
  write(element, text);
  const name = `pill state ${looks || "calm"}`;
  if (element.className !== name) element.className = name;
}
function legend(list, entries) { // [name, text, colour]
  const parts = entries.map(([name, text, shade]) => {
    const item = make("li");
    const swatch = make("span", "", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = shade;
    item.append(swatch, `${name}: ${text}`);
    return item;
  });
  list.replaceChildren(...parts);
}

// ---- charts: those of charts.js ----

function place(mark, curves, origin) { // where a mark stands on each axis; charts.js leaves out what is not known
  const { step, elapsed, bytes: spent } = curves;
  const found = { step: mark.step, elapsed: known(mark.time) && known(origin) ? Math.max(0, mark.time - origin) : null };
  if (!step) return found;
  if (!known(found.step) && known(found.elapsed) && elapsed) [found.step] = between(elapsed, step, [found.elapsed]);
  if (!known(found.elapsed) && known(found.step) && elapsed) [found.elapsed] = between(step, elapsed, [found.step]);
  if (known(found.step) && spent) [found.bytes] = between(step, spent, [found.step]);
  return found;
}
function pick(columns, names) {
  return Object.fromEntries(names.filter((name) => columns[name]).map((name) => [name, columns[name]]));
}
function drawn(run, label, columns, marks, more) {
  const { origin } = run.about;
  return {
    label, curves: pick(columns, ["step", "elapsed", "bytes", "loss", "accuracy"]),
    link: columns.up_mbit_s || columns.rtt_ms ? pick(columns, ["step", "elapsed", "up_mbit_s", "down_mbit_s", "rtt_ms"]) : {},
    marks: marks.map((mark) => ({ ...mark, ...place(mark, columns, origin) })), ...more,
  };
}
function drawnRuns(run) { // what charts.js draws: a device's run, or the sessions of a trainer's
  const { about, curves, sessions } = run;
  if (about.role !== "trainer") {
    const columns = curves.steps?.columns || {};
    return [drawn(run, about.name || "run", columns, about.marks || [], {
      tests: curves.tests?.columns || {}, phases: pick(columns, ["step", ...Object.keys(PHASES)]),
      bytes: bothWays(about.bytes), uncompressed: about.uncompressed,
    })];
  }
  const keys = Object.keys(curves).map((curve) => curve.slice("session ".length)).filter((key) => sessions[key]);
  const names = keys.map((key) => sessions[key].device || key);
  return keys.map((key, number) => {
    const twice = names.filter((name) => name === names[number]).length > 1;
    const label = twice ? `${names[number]} (${key.slice(-4)})` : names[number];
    return drawn(run, label, curves[`session ${key}`].columns, (about.marks || []).filter((mark) => !mark.session || mark.session === key), {});
  });
}
function bothWays(spent) {
  const { up = {}, down = {} } = spent || {};
  return Object.fromEntries(Object.keys(up).map((kind) => [kind, up[kind] + (down[kind] || 0)]));
}

// ---- a run ----

class RunView {
  constructor(place, number) {
    this.number = number;
    const part = document.getElementById("run").content.cloneNode(true);
    this.root = part.querySelector(".run");
    this.find = (selector) => this.root.querySelector(selector);
    this.find("h2").id = `run-${number}`;
    this.root.setAttribute("aria-labelledby", `run-${number}`);
    this.charts = null;
    this.rows = new Map();
    this.tiles = new Map();
    place.append(this.root);
  }
  draw(run, withCharts) {
    const about = run.about;
    this.head(about);
    this.progress(run);
    this.numbers(run);
    this.shares(about);
    this.devices(run);
    this.classes(about.classes || []);
    this.warnings(about.warnings || []);
    if (!withCharts || !Object.keys(run.curves).length) return;
    if (this.charts) this.charts.update(drawnRuns(run));
    else this.charts = drawCharts(this.find(".charts"), drawnRuns(run));
  }
  head(about) {
    write(this.find("h2"), about.name || "run");
    let text = about.state || "";
    if (about.state === "waiting" && about.waiting?.since) {
      text += ` for the trainer, try ${count(about.waiting.tries)}`;
    }
    pill(this.find(".state"), text, STATE_LOOKS[about.state]);
    const facts = [about.role, about.model, about.split ? `split after block ${about.split}` : "",
      `last line ${ago(about.last_time)}`];
    write(this.find(".facts"), facts.filter(Boolean).join(" · "));
  }
  progress(run) {
    const about = run.about;
    const planned = about.steps_planned;
    const bar = this.find("progress");
    bar.hidden = !planned;
    if (planned) bar.value = Math.min(1, about.steps_done / planned);
    let text = planned ? `step ${count(about.steps_done)} of ${count(planned)}` : `${count(about.steps_done)} steps`;
    const rate = sum(Object.values(run.sessions).map((one) => speed(one) || 0));
    if (about.state === "running" && planned && rate > 0 && about.role === "device") {
      text += `, ${seconds((planned - about.steps_done) / rate)} left`;
    }
    if (about.elapsed) text += `, ${seconds(about.elapsed)} so far`;
    write(this.find(".left"), text);
  }
  tile(name, text) {
    if (!this.tiles.has(name)) {
      const box = make("div");
      const value = make("dd");
      box.append(make("dt", name), value);
      this.find(".tiles").append(box);
      this.tiles.set(name, value);
    }
    write(this.tiles.get(name), text);
  }
  numbers(run) {
    const about = run.about;
    const sessions = Object.values(run.sessions);
    const going = sessions.filter((one) => one.state === "connected");
    const speeds = going.map(speed).filter(known);
    const mean = (name) => {
      const found = (going.length ? going : sessions).map((one) => one[name]).filter(known);
      return found.length ? sum(found) / found.length : null;
    };
    this.tile("Loss", digits(mean("loss")));
    this.tile("Batch accuracy", percent(mean("accuracy")));
    this.tile("Test accuracy", percent(about.role === "trainer" ? mean("test_accuracy") : about.accuracy));
    const central = about.central || {};
    if (known(central.accuracy)) {
      const round = central.round ? `, round ${count(central.round)}` : "";
      this.tile("Central test accuracy", `${percent(central.accuracy)} at step ${count(central.step)}${round}`);
    }
    this.tile("Steps a second", digits(speeds.length ? sum(speeds) : null));
    const spent = about.bytes || { up: {}, down: {} };
    this.tile("Bytes up", size(sum(Object.values(spent.up))));
    this.tile("Bytes down", size(sum(Object.values(spent.down))));
    if (about.role === "trainer") {
      const use = about.use || {};
      this.tile("Memory", known(use.memory_mb) ? size(1e6 * use.memory_mb) : "–");
      this.tile("Held in the queue", size(use.held_bytes));
      this.tile("Connections", count(use.connections));
      this.tile("Refused", count(sum(Object.values(about.refusals || {}))));
    } else {
      const own = sessions[0] || {};
      this.tile("ξ", digits(own.xi));
      this.tile("Precision", precisions(own) || "–");
      this.tile("Outages", count(about.outages));
      this.tile("Steps repeated", count(about.repeated));
    }
  }
  shares(about) {
    let parts = Object.entries(about.seconds || {}).filter(([name]) => name !== "step");
    const use = about.use || {};
    if (about.role === "trainer" && use.seconds) {
      const busy = [["head", use.seconds_head], ["codec", use.seconds_codec], ["update, log, checkpoints", use.seconds_update]];
      parts = [...busy, ["waits and receives", Math.max(0, use.seconds - sum(busy.map(([, value]) => value || 0)))]];
    }
    parts = parts.filter(([, value]) => value > 0);
    const all = sum(parts.map(([, value]) => value));
    this.find(".shares").hidden = !all;
    if (!all) return;
    const shade = (name, number) => colour(`--phase-${PHASES[name] ? PHASE_ORDER.indexOf(name) : 2 * number}`);
    const entries = parts.map(([name, value], number) => [PHASES[name] || name, percent(value / all), shade(name, number)]);
    const bar = this.find(".bar");
    while (bar.children.length > parts.length) bar.lastChild.remove();
    parts.forEach(([, value], number) => {
      const piece = bar.children[number] || bar.appendChild(make("span"));
      piece.style.width = `${(100 * value) / all}%`;
      piece.style.background = entries[number][2];
    });
    bar.setAttribute("aria-label", entries.map(([name, text]) => `${name} ${text}`).join(", "));
    legend(this.find(".shares .legend"), entries);
  }
  devices(run) {
    this.find(".devices").hidden = run.about.role !== "trainer";
    if (run.about.role !== "trainer") return;
    const sessions = Object.values(run.sessions);
    const counts = run.about.devices || {};
    const found = ["connected", "away", "finished", "refused"].map((state) => `${counts[state] || 0} ${state}`);
    write(this.find(".counts"), sessions.length ? found.join(", ") : "no device has joined yet");
    this.find(".wide").hidden = !sessions.length;
    const more = sum(Object.values(counts)) - sessions.length;
    this.find(".more").hidden = !more;
    write(this.find(".more"), `and ${more} more`);
    for (const [key, row] of this.rows) if (!run.sessions[key]) { row.remove(); this.rows.delete(key); }
    for (const one of sessions) {
      if (!this.rows.has(one.key)) this.rows.set(one.key, this.find("tbody").appendChild(newRow()));
      fillRow(this.rows.get(one.key), one);
    }
  }
  classes(entries) {
    const box = this.find(".classes");
    box.hidden = !entries.length;
    const told = JSON.stringify(entries);
    if (told === this.toldClasses) return;
    this.toldClasses = told;
    box.querySelector("tbody").replaceChildren(...entries.map((one) => {
      const row = make("tr");
      const images = one.images.map(([name, number]) => `${name} ${count(number)}`).join(", ");
      const cells = [one.of ? `${count(one.classes)} of ${count(one.of)}` : count(one.classes), digits(one.ratio),
        one.others ? `${images} and ${count(one.others)} more` : images];
      row.append(make("th", one.device, { scope: "row" }), ...cells.map((text) => make("td", text)));
      return row;
    }));
  }
  warnings(entries) {
    const box = this.find(".warnings");
    box.hidden = !entries.length;
    const told = JSON.stringify(entries);
    if (told === this.told) return;
    this.told = told;
    write(this.find("summary"), `Warnings (${entries.length})`);
    box.querySelector("ul").replaceChildren(...[...entries].reverse().map(([time, level, text]) => {
      const item = make("li");
      item.append(make("time", new Date(1000 * time).toLocaleTimeString("en-GB")), make("span", level), make("span", text));
      return item;
    }));
  }
}

function speed(one) { return one.state === "connected" && age(one.last_time) < 30 ? one.steps_per_s : null; }
function precisions(one) { return [one.precision, one.gradient_precision].filter(Boolean).join(" / "); }

const CELLS = [
  ["Step", (one) => (one.steps ? `${count(one.step)} of ${count(one.steps)}` : count(one.step))],
  ["Steps/s", (one) => digits(speed(one))],
  ["Loss", (one) => digits(one.loss)],
  ["Accuracy", (one) => percent(one.test_accuracy ?? one.accuracy) + (known(one.test_accuracy) ? " (test)" : "")],
  ["Up / down", (one) => (known(one.up_mbit_s) ? `${digits(one.up_mbit_s)} / ${digits(one.down_mbit_s)} Mbit/s` : "–")],
  ["RTT", (one) => (known(one.rtt_ms) ? `${digits(one.rtt_ms)} ms` : "–")],
  ["ξ", (one) => digits(one.xi)],
  ["Precision", (one) => precisions(one) || "–"],
  ["Last line", (one) => ago(one.last_time)],
  ["Last error", (one) => one.last_error],
];

function newRow() {
  const row = make("tr", "", { role: "row" });
  row.append(make("th", "", { scope: "row", role: "rowheader" }));
  const state = make("td", "", { role: "cell", "data-label": "State" });
  state.append(make("span"));
  row.append(state, ...CELLS.map(([name]) => make("td", "", { role: "cell", "data-label": name })));
  row.lastChild.className = "error";
  return row;
}
function fillRow(row, one) {
  const [name, state, ...cells] = row.children;
  write(name, one.device || one.key);
  name.title = `session ${one.key}`;
  pill(state.firstChild, one.state, STATE_LOOKS[one.state]);
  CELLS.forEach(([, tell], place) => write(cells[place], tell(one)));
}

// ---- what comes ----

function takeCurves(curves, news) {
  for (const [name, part] of Object.entries(news)) {
    if (!part) { delete curves[name]; continue; }
    const old = part.start ? curves[name] : null;
    const size = old ? Math.max(0, ...Object.values(old.columns).map((values) => values.length)) : 0;
    const columns = {};
    for (const [title, values] of Object.entries(part.columns)) {
      const before = old?.columns[title] || new Array(Math.min(part.start, size)).fill(null);
      columns[title] = before.slice(0, part.start).concat(values);
    }
    curves[name] = { columns };
  }
}

function takeUpdate(update) {
  for (const [number, news] of Object.entries(update.runs)) {
    const run = model.runs[number];
    if (!run) continue;
    Object.assign(run.about, news.about);
    for (const key of news.gone || []) delete run.sessions[key];
    Object.assign(run.sessions, news.sessions);
    takeCurves(run.curves, news.curves || {});
  }
  model.number = update.number;
}

function heardNow(message) {
  heard = Date.now();
  clockOffset = message.now - heard / 1000;
  const pillBox = document.getElementById("link");
  pill(pillBox, "live", "good");
}

async function ask() {
  if (asking) return;
  asking = true;
  waiting = [];
  try {
    const answer = await fetch("/api/state", { cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status}`);
    model = await answer.json();
    heardNow(model);
    for (const update of waiting) if (update.number > model.number) takeUpdate(update);
    waiting = [];
    dirty = true;
  } catch (error) {
    lost();
    setTimeout(ask, 3000);
  }
  asking = false;
}

function lost() { pill(document.getElementById("link"), "no connection: trying again", "bad"); }

function take(kind, text) {
  if (kind === "lost") { lost(); return; }
  const message = JSON.parse(text);
  heardNow(message);
  if (kind === "hello" && (!model || message.server !== model.server || message.number !== model.number)) ask();
  if (kind !== "update") return;
  if (asking) waiting.push(message);
  else if (model && message.number === model.number + 1) { takeUpdate(message); dirty = true; }
  else if (!model || message.number > model.number) ask();
}

function listen() {
  let direct = null;
  const open = () => {
    direct = new EventSource("/events");
    for (const kind of ["hello", "update", "beat"]) direct.addEventListener(kind, (event) => take(kind, event.data));
    direct.onerror = () => { lost(); if (direct.readyState === EventSource.CLOSED) setTimeout(open, 5000); };
  };
  if (!window.SharedWorker) {
    open();
    document.addEventListener("visibilitychange", () => { // a hidden page needs no connection
      direct.close();
      if (!document.hidden) open();
    });
    return;
  }
  const worker = new SharedWorker("/static/feed.js");
  worker.port.onmessage = (event) => take(event.data.kind, event.data.text);
  worker.onerror = open;
  window.addEventListener("pagehide", () => worker.port.postMessage("bye"));
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

function draw() {
  if ((dirty || aged) && !document.hidden && model) {
    const place = document.getElementById("runs");
    model.runs.forEach((run, number) => {
      if (!views[number]) views[number] = new RunView(place, number);
      views[number].draw(run, dirty);
    });
    dirty = aged = false;
    document.title = `adc-edge: ${model.runs.map((run) => run.about.name).filter(Boolean).join(", ") || "runs"}`;
  }
  requestAnimationFrame(draw);
}

function start() {
  if (location.search) history.replaceState(null, "", location.pathname); // the token is in the cookie now
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { dirty = true; });
  document.addEventListener("visibilitychange", () => { dirty = true; });
  setInterval(() => {
    if (Date.now() - heard > 1000 * SILENT_S) lost();
    aged = true;
  }, 1000);
  listen();
  ask();
  requestAnimationFrame(draw);
}

start();
