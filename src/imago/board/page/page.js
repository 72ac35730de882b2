"use strict";
// Nothing here builds markup from text: names of runs reach the page through textContent and attributes alone.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(4)}`;
}

/* What is shown: the filter and the data choose rows; ticked rows, where there are any, are seen alone below the table. */
const state = { words: [], group: "", ticked: new Set(), unlit: new Set() };
const rows = new Map(all("#board tr[data-run]").map((row) => [Number(row.dataset.run), row]));

const passes = (run) =>
  (state.group === "" || run.group === Number(state.group)) &&
  state.words.every((word) => (word.includes("=") ? has(run, word) : rows.get(run.id).dataset.words.includes(word)));

/* lr=0.001: a setting by the end of its name, with this value; with any as long as none is typed. */
function has(run, word) {
  const [key, value] = [word.slice(0, word.indexOf("=")), word.slice(word.indexOf("=") + 1)];
  return Object.entries(run.settings).some(([name, own]) => {
    const full = name.toLowerCase();
    return (full === key || full.endsWith(`.${key}`) || full.endsWith(`/${key}`)) && (!value || own.toLowerCase() === value);
  });
}

function shown() {
  const visible = data.runs.filter(passes);
  const ticked = visible.filter((run) => state.ticked.has(run.id));
  return ticked.length ? ticked : visible;
}

function update() {
  const visible = new Set(data.runs.filter(passes).map((run) => run.id));
  for (const [id, row] of rows) {
    row.hidden = !visible.has(id);
    row.classList.toggle("ticked", state.ticked.has(id));
  }
  for (const body of all("#board tbody")) body.hidden = !all("tr[data-run]", body).some((row) => !row.hidden);
  for (const block of all(".means")) block.hidden = state.group !== "" && block.dataset.group !== state.group;
  for (const about of all(".about")) about.hidden = !visible.has(Number(about.dataset.run));
  const below = new Set(shown().map((run) => run.id));
  for (const card of all(".card")) card.hidden = !below.has(Number(card.dataset.run));
  for (const gallery of all(".gallery")) gallery.hidden = !all(".card", gallery).some((card) => !card.hidden);
  const ticked = [...visible].filter((id) => state.ticked.has(id)).length;
  byId("count").textContent = `${visible.size} of ${data.runs.length} runs${ticked ? `, ${ticked} selected` : ""}`;
  byId("clear").hidden = !state.ticked.size;
  place();
  curves.offer();
  cost.offer();
  differences();
}

/* Pinned columns stand behind the model and stay there when the table is scrolled. */
const columnsOf = new Map(all("#board tr:not(.group)").map((row) => [row, [...row.children]]));
const heads = columnsOf.get(byId("board").tHead.rows[0]);
const pinned = [];

function place() {
  const order = [0, 1, ...pinned, ...heads.keys()].filter((column, k, every) => every.indexOf(column) === k);
  for (const [row, cells] of columnsOf) row.append(...order.map((column) => cells[column]));
  let left = heads[0].offsetWidth + heads[1].offsetWidth;
  for (const column of order.slice(2)) {
    const kept = pinned.includes(column);
    for (const cells of columnsOf.values()) {
      cells[column].classList.toggle("pinned", kept);
      cells[column].style.left = kept ? `${left}px` : "";
    }
    if (kept) left += heads[column].offsetWidth;
  }
}

for (const [column, header] of heads.entries()) {
  const button = header.querySelector(".pin");
  if (!button) continue;
  button.addEventListener("click", () => {
    if (pinned.includes(column)) pinned.splice(pinned.indexOf(column), 1);
    else pinned.push(column);
    button.setAttribute("aria-pressed", String(pinned.includes(column)));
    place();
  });
}

/* The table. */
function sortBy(header) {
  const table = byId("board");
  const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of all("[aria-sort]", table)) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
  const column = [...header.parentNode.children].indexOf(header);
  const sign = direction === "ascending" ? 1 : -1;
  const numeric = header.classList.contains("num");
  const order = (a, b) => {
    const [one, two] = [a.children[column].dataset, b.children[column].dataset];
    if ((one.value === undefined) !== (two.value === undefined)) return one.value === undefined ? 1 : -1; // missing last
    if (one.value === undefined) return 0;
    if (!numeric) return sign * one.value.localeCompare(two.value, "en", { numeric: true });
    return one.block - two.block || sign * (one.value - two.value); // other protocols apart
  };
  for (const body of table.tBodies) body.append(...all("tr[data-run]", body).sort(order));
}

for (const header of all("#board thead th")) header.querySelector("button").addEventListener("click", () => sortBy(header));
for (const [id, row] of rows) {
  const box = row.querySelector("input");
  box.checked = false;
  box.addEventListener("change", () => {
    if (box.checked) state.ticked.add(id);
    else state.ticked.delete(id);
    update();
  });
}
byId("clear").addEventListener("click", () => {
  state.ticked.clear();
  for (const box of all("#board .pick input")) box.checked = false;
  update();
});
function filter(text) {
  state.words = text.toLowerCase().split(/\s+/).filter(Boolean);
  update();
}
byId("filter").addEventListener("input", (event) => filter(event.target.value));
for (const button of all(".by")) {
  button.addEventListener("click", () => {
    const words = byId("filter").value.split(/\s+/).filter(Boolean), own = button.dataset.word;
    byId("filter").value = (words.includes(own) ? words.filter((word) => word !== own) : [...words, own]).join(" ");
    filter(byId("filter").value);
  });
}
for (const chip of all(".chip input")) {
  chip.addEventListener("change", () => {
    state.group = chip.value;
    update();
  });
}

/* Notes: on hover, and on a tap. */
const tip = byId("tip");

function showTip(x, y, lines) {
  const [first, ...rest] = lines;
  tip.replaceChildren(element("b", {}, first), rest.join("\n"));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(12, Math.min(x + 14, innerWidth - width - 12));
  const top = y + 18 + height > innerHeight ? Math.max(12, y - height - 14) : y + 18;
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

const hideTip = () => {
  tip.hidden = true;
};

function note(event) {
  const target = event.target.closest("[data-note]");
  if (!target || !target.dataset.note) {
    if (!event.target.closest(".plot")) hideTip();
    return;
  }
  showTip(event.clientX, event.clientY, target.dataset.note.split(/\n|; /));
}
document.addEventListener("pointermove", note);
document.addEventListener("click", note);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
document.addEventListener("scroll", hideTip, { passive: true, capture: true });
document.documentElement.addEventListener("pointerleave", hideTip);

for (const link of all('a[href^="#run-"]')) {
  link.addEventListener("click", () => {
    byId(link.hash.slice(1)).open = true;
  });
}

/* Seconds in the unit that suits them. */
function lasting(seconds) {
  const [size, unit] = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]].find(([least]) => seconds >= least) || [1, "s"];
  return `${short(+(seconds / size).toPrecision(3))} ${unit}`;
}

/* Charts. */
function ticksOf(low, high, log, room) {
  if (log) {
    const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
    const steps = to - from > 6 ? [1] : to - from > 2 ? [1, 3] : [1, 2, 5];
    const ticks = [];
    for (let power = from; power <= to; power++) {
      for (const step of steps) ticks.push(+(step * 10 ** power).toPrecision(3));
    }
    const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    if (inside.length > 1) return inside.length > room + 3 ? inside.filter((_, k) => k % 2 === 0) : inside;
  }
  const rough = (high - low) / Math.max(2, room);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(+(k * step).toPrecision(12));
  return ticks;
}

function scaleOf(low, high, from, to, log) {
  const turn = log ? Math.log : (value) => value;
  const [start, end] = [turn(low), turn(high)];
  return (value) => from + ((turn(value) - start) / (end - start || 1)) * (to - from);
}

function plot(host, { series, x, y, titles, explain, points }) {
  host.replaceChildren();
  const kept = series
    .map((one) => ({ ...one, at: one.at.filter(([u, v]) => u !== null && v !== null && (!x.log || u > 0) && (!y.log || v > 0)) }))
    .filter((one) => one.at.length);
  if (!kept.length) {
    host.append(element("p", { class: "empty" }, explain));
    return;
  }
  const width = Math.max(260, host.clientWidth), height = innerWidth < 640 ? 280 : points ? 380 : 330;
  const frame = { left: 58, right: width - 14, top: 28, bottom: height - 42 };
  const horizontal = kept.flatMap((one) => one.at.map(([u]) => u));
  let vertical = kept.flatMap((one) => one.at.slice(points ? 0 : beginning(one.at)).map(([, v]) => v));
  if (vertical.length < 3) vertical = kept.flatMap((one) => one.at.map(([, v]) => v));
  let [low, high] = [Math.min(...vertical), Math.max(...vertical)];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = y.log ? [low / 1.15, high * 1.15] : [low - pad, high + pad];
  let [left, right] = [Math.min(...horizontal), Math.max(...horizontal)];
  if (x.log) [left, right] = points || left === right ? [left / 1.6, right * 1.6] : [left, right];
  else [left, right] = points ? [Math.min(0, left), right * 1.08 || 1] : [0, right || 1];
  const sx = scaleOf(left, right, frame.left, frame.right, x.log), sy = scaleOf(low, high, frame.bottom, frame.top, y.log);

  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: "0" });
  svg.setAttribute("aria-label", `${titles.y} over ${titles.x}, ${kept.length} runs. Arrow keys move between points.`);
  const clip = `clip-${host.id}`;
  const window_ = drawn("clipPath", { id: clip });
  window_.append(drawn("rect", { x: frame.left, y: frame.top - 4, width: frame.right - frame.left + 8, height: frame.bottom - frame.top + 8 }));
  svg.append(window_);
  for (const tick of ticksOf(low, high, y.log, 5)) {
    svg.append(drawn("line", { class: "rule", x1: frame.left, x2: frame.right, y1: sy(tick), y2: sy(tick) }));
    svg.append(drawn("text", { x: frame.left - 8, y: sy(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticksOf(left, right, x.log, width / 110)) {
    svg.append(drawn("line", { class: "axis", x1: sx(tick), x2: sx(tick), y1: frame.bottom, y2: frame.bottom + 5 }));
    svg.append(drawn("text", { x: sx(tick), y: frame.bottom + 19, "text-anchor": "middle" }, (x.text || short)(tick)));
  }
  svg.append(drawn("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }));
  svg.append(drawn("text", { x: frame.right, y: height - 6, "text-anchor": "end" }, titles.x));
  svg.append(drawn("text", { x: 4, y: 10 }, titles.y));

  const marks = drawn("g", { "clip-path": `url(#${clip})` });
  svg.append(marks);
  const spots = [];
  kept.forEach((one, index) => {
    const places = one.at.map(([u, v]) => [sx(u), sy(v)]);
    if (places.length > 1) {
      const path = places.map(([u, v], k) => `${k ? "L" : "M"}${u.toFixed(1)} ${v.toFixed(1)}`).join("");
      const line = drawn("path", { class: `line k${one.run.colour}${points ? " thin" : ""}`, d: path, "data-run": one.run.id });
      if (one.dash) line.setAttribute("stroke-dasharray", one.dash);
      marks.append(line);
    }
    places.forEach(([u, v], k) => {
      if (points || places.length < 25) {
        const kind = one.hollow ? "dot hollow" : "dot";
        marks.append(drawn("circle", { class: `${kind} k${one.run.colour}`, cx: u, cy: v, r: points ? 6 : 2.6, "data-run": one.run.id }));
      }
      if (v > frame.top - 6 && v < frame.bottom + 6) spots.push({ u, v, one, index, k });
    });
  });
  if (points) nameThem(svg, spots.filter((spot) => spot.k === 0), spots, frame);
  const halo = drawn("circle", { class: "halo", r: 5, visibility: "hidden" });
  svg.append(halo);
  host.append(svg);

  const leave = () => {
    halo.setAttribute("visibility", "hidden");
    light(null);
    hideTip();
  };
  const choose = (spot) => {
    const { one, k, u, v } = spot;
    halo.setAttribute("class", `halo k${one.run.colour}`);
    halo.setAttribute("cx", u);
    halo.setAttribute("cy", v);
    halo.setAttribute("visibility", "visible");
    light(one.run.id);
    const box = svg.getBoundingClientRect();
    const scale = box.width / width;
    showTip(box.left + u * scale, box.top + v * scale, [one.run.label, ...one.told(one.at[k])]);
  };
  let current = null;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const u = ((event.clientX - box.left) * width) / box.width, v = ((event.clientY - box.top) * height) / box.height;
    let nearest = null, best = 60 ** 2;
    for (const spot of spots) {
      const distance = (spot.u - u) ** 2 + (spot.v - v) ** 2;
      if (distance < best) [nearest, best] = [spot, distance];
    }
    current = nearest;
    if (nearest) choose(nearest);
    else leave();
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (!current) current = spots[0];
    else if (step[0] && spots.some((s) => s.index === current.index && s.k === current.k + step[0])) current = spots.find((s) => s.index === current.index && s.k === current.k + step[0]);
    else {
      const others = [...new Set(spots.map((s) => s.index))];
      const next = others[(others.indexOf(current.index) + (step[0] || step[1]) + others.length) % others.length];
      const theirs = spots.filter((s) => s.index === next);
      current = theirs.reduce((a, b) => (Math.abs(b.u - current.u) < Math.abs(a.u - current.u) ? b : a));
    }
    choose(current);
  });
}

/* An untrained model is so much worse that nothing else could be seen: without the first twentieth of a run. */
function beginning(at) {
  const start = at[at.length - 1][0] / 20;
  return at.findIndex(([u]) => u >= start);
}

/* Names beside points, where there is room for them. */
function nameThem(svg, named, spots, frame) {
  const taken = spots.map(({ u, v }) => [u - 7, v - 7, u + 7, v + 7]);
  for (const { u, v, one } of named) {
    const wide = one.run.label.length * 6.4;
    for (const [x, y, anchor] of [[u + 11, v + 4, "start"], [u - 11, v + 4, "end"], [u, v - 12, "middle"], [u, v + 21, "middle"]]) {
      const from = anchor === "start" ? x : anchor === "end" ? x - wide : x - wide / 2;
      const box = [from, y - 10, from + wide, y + 3];
      const free = taken.every((other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
      if (!free || box[0] < frame.left || box[2] > frame.right + 8 || box[1] < 0 || box[3] > frame.bottom) continue;
      taken.push(box);
      svg.append(drawn("text", { class: "name", x, y, "text-anchor": anchor, "data-run": one.run.id }, one.run.label));
      break;
    }
  }
}

function light(id) {
  for (const host of all(".plot")) {
    host.classList.toggle("dimmed", id !== null);
    for (const mark of all("[data-run]", host)) mark.classList.toggle("lit", Number(mark.dataset.run) === id);
  }
}

function choices(select, options, preferred) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  const values = options.map(([value]) => value);
  select.value = values.includes(before) && select.dataset.chosen ? before : values.includes(preferred) ? preferred : values[0] ?? "";
}

const DASHES = ["", "7 4", "2 4", "10 4 2 4"];

const curves = {
  group: byId("curve-group"),
  metric: byId("curve-metric"),

  offer() {
    const counts = new Map();
    for (const run of shown()) counts.set(run.group, (counts.get(run.group) || 0) + 1);
    const most = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    choices(this.group, most.map(([k, n]) => [String(k), `${data.groups[k]} (${n})`]));
    this.offerMetrics();
  },

  offerMetrics() {
    const counts = new Map(), votes = new Map();
    for (const run of this.runs()) {
      for (const block of run.curves) for (const [name, values] of Object.entries(block.y)) {
        counts.set(name, (counts.get(name) || 0) + 1);
        votes.set(name, (votes.get(name) || 0) + (values.length > 1 ? 2 : 1)); // a curve tells more than a point
      }
    }
    const rank = (name) => (name.startsWith("val/") ? 0 : 1);
    const names = [...counts.keys()].sort((a, b) => rank(a) - rank(b) || counts.get(b) - counts.get(a) || a.localeCompare(b));
    // Of a board of GANs with one model that has a likelihood, not the likelihood.
    const most = (a, b) => (votes.get(b) > votes.get(a) ? b : a);
    const known = ["val/nats", "val/fid", ...names.filter((name) => name.startsWith("val/fd_"))].filter((name) => counts.has(name));
    const common = names.length ? names.reduce(most) : "";
    const best = known.length ? known.reduce(most) : common;
    const headline = 2 * counts.get(best) < counts.get(common) ? common : best;
    choices(this.metric, names.map((name) => [name, `${name} (${counts.get(name)})`]), headline);
    this.suggest();
    this.draw();
  },

  /* Distances fall by a factor of hundreds, likelihoods by little; runs of equal seconds may differ as much in images.
     A logarithmic axis has no place for the untrained model at 0: not where that would leave most curves a dot. */
  suggest() {
    const after = this.runs().map((run) => run.curves.filter((one) => this.metric.value in one.y).flatMap((one) => one.x).filter((x) => x > 0)).filter((x) => x.length);
    const far = after.map((x) => x.at(-1)), lines = after.filter((x) => x.length > 1).length;
    const wide = byId("curve-logx");
    if (!wide.dataset.chosen) wide.checked = Math.max(...far) > 10 * Math.min(...far) && lines > after.length / 2;
    const box = byId("curve-logy");
    if (!box.dataset.chosen) box.checked = /\/(fid|fd_|kid|kd_)/.test(this.metric.value);
  },

  runs() {
    return shown().filter((run) => run.group === Number(this.group.value));
  },

  draw() {
    const name = this.metric.value, seen = new Map();
    const series = this.runs().map((run) => {
      const block = run.curves.find((one) => Object.hasOwn(one.y, name)) || { x: [], s: [], y: { [name]: [] } };
      const again = seen.get(run.colour) || 0;
      seen.set(run.colour, again + 1);
      return { run, block, dash: DASHES[again % DASHES.length], values: block.y[name] };
    });
    this.list(series.filter((one) => one.values.length));
    const lit = series.filter((one) => !state.unlit.has(one.run.id));
    const told = (one, k) => [
      `${name} ${short(one.values[k])}`,
      `${one.block.x[k].toLocaleString("en")} images${one.block.s[k] === null ? "" : `, ${short(one.block.s[k])} s${one.run.processor ? " of the processor" : ""}`}`,
    ];
    const limited = lit.filter(({ run }) => run.processor).length;
    const seconds = `training seconds${limited ? " of the processor" : ""}${limited && limited < lit.length ? " or by the clock" : ""}`;
    for (const [id, axis, title] of [["over-images", "x", "images seen"], ["over-seconds", "s", seconds]]) {
      plot(byId(id), {
        series: lit.map((one) => ({
          ...one,
          at: one.values.map((value, k) => [one.block[axis][k], value, k]),
          told: ([, , k]) => told(one, k),
        })),
        x: { log: byId("curve-logx").checked },
        y: { log: byId("curve-logy").checked },
        titles: { x: title, y: name },
        explain: name ? "No run shown here has this number." : "These runs have logged nothing yet.",
      });
    }
  },

  list(series) {
    byId("legend").replaceChildren(
      ...series.map(({ run, dash }) => {
        const swatch = drawn("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
        const line = drawn("path", { d: "M0 4H24", class: `line k${run.colour}` });
        if (dash) line.setAttribute("stroke-dasharray", dash);
        swatch.append(line);
        const button = element("button", { type: "button", "aria-pressed": String(!state.unlit.has(run.id)) }, swatch, run.label);
        button.addEventListener("click", () => {
          if (!state.unlit.delete(run.id)) state.unlit.add(run.id);
          this.draw();
          const again = all("#legend button").find((other) => other.textContent === run.label);
          if (again) again.focus();
        });
        button.addEventListener("pointerenter", () => light(run.id));
        button.addEventListener("pointerleave", () => light(null));
        return element("li", {}, button);
      }),
    );
  },
};

const SAMPLING = ["seconds_per_sample", "nfe"];
const COSTS = [...SAMPLING, "training_seconds", "training_cpu_seconds", "images_seen", "parameters", "peak_memory_mib"];

const cost = {
  x: byId("cost-x"),
  y: byId("cost-y"),

  offer() {
    const runs = shown().filter((run) => run.group === Number(curves.group.value));
    const has = (...keys) => runs.filter((run) => keys.every((key) => key in run.points)).length;
    const option = ({ key, title }) => [key, `${title} (${has(key)})`];
    const costs = COSTS.map((key) => data.columns.find((column) => column.key === key)).filter(Boolean);
    const training = has("training_cpu_seconds") > has("training_seconds") ? "training_cpu_seconds" : "training_seconds";
    choices(this.x, costs.map(option), has(COSTS[0]) > 1 ? COSTS[0] : training);
    const quality = data.columns.filter(({ key, better }) => better && !COSTS.includes(key));
    const most = (a, b) => (has(b.key, this.x.value) > has(a.key, this.x.value) ? b : a);
    choices(this.y, quality.map(option), quality.reduce(most).key);
    this.draw();
  },

  draw() {
    const [x, y] = [this.x.value, this.y.value];
    const title = (key) => data.columns.find((column) => column.key === key).title;
    const runs = shown().filter((run) => run.group === Number(curves.group.value));
    // A run whose samples were drawn in several ways has a point for each way, joined by a line.
    const series = runs.map((run) => {
      const ways = SAMPLING.includes(x) ? (run.samplings[y] || []).filter((way) => way[x] !== null) : [];
      const single = x in run.points && y in run.points ? [{ v: run.points[y].v, [x]: run.points[x].v, how: "", text: run.points[y].t }] : [];
      const at = (ways.length ? ways : single).map((way) => [way[x], way.v, way]).sort((a, b) => a[0] - b[0]);
      return {
        run,
        at,
        hollow: y in run.points && run.points[y].b > 0,
        told: ([cost, , way]) => [`${title(y)} ${way.text || short(way.v)}`, `${title(x)} ${run.points[x] && at.length === 1 ? run.points[x].t : short(cost)}`, way.how].filter(Boolean),
      };
    });
    plot(byId("cost"), {
      series,
      x: { log: series.every((one) => one.at.every(([cost]) => cost > 0)), text: /seconds/.test(x) ? lasting : short },
      y: { log: /^(fid|fd_|kid|kd_)/.test(y) },
      titles: { x: title(x), y: title(y) },
      points: true,
      explain: "No run shown here has both numbers. evaluate.py measures samples, and the time they take.",
    });
  },
};

for (const [control, act] of [
  [curves.group, () => { curves.offerMetrics(); cost.offer(); }],
  [curves.metric, () => { curves.suggest(); curves.draw(); }],
  [byId("curve-logx"), () => curves.draw()],
  [byId("curve-logy"), () => curves.draw()],
  [cost.x, () => cost.draw()],
  [cost.y, () => cost.draw()],
]) {
  control.addEventListener("change", () => {
    control.dataset.chosen = "yes";
    act();
  });
}

/* Settings that differ: among the ticked runs, else among those of one model on one data set. */
function differences() {
  const ticked = shown().filter((run) => state.ticked.has(run.id));
  const sets = [];
  if (ticked.length > 1) sets.push(["the selected runs", ticked]);
  else {
    const together = new Map();
    for (const run of shown()) {
      const key = `${run.model} on ${data.groups[run.group]}`;
      together.set(key, [...(together.get(key) || []), run]);
    }
    sets.push(...[...together].filter(([, runs]) => runs.length > 1));
  }
  byId("settings-lead").textContent = sets.length
    ? ticked.length > 1
      ? "Settings in which the selected runs differ."
      : "Settings in which runs of the same model on the same data differ. Tick runs in the table to compare others."
    : "Tick two runs or more in the table to see in which settings they differ.";
  byId("settings").replaceChildren(...sets.map(([title, runs]) => differing(title, runs)));
}

/* What makes the experiment first, what only watches it last. */
const WATCHING = /^(callbacks|every|metrics|logger|trainer)\b/;

function differing(title, runs) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  keys.sort((a, b) => WATCHING.test(a) - WATCHING.test(b) || a.localeCompare(b));
  const differ = keys.filter((key) => new Set(runs.map((run) => run.settings[key])).size > 1);
  const holder = element("div", { class: runs.length > 3 ? "set wide" : "set" }, element("h3", {}, title));
  if (!differ.length) {
    holder.append(element("p", { class: "reading" }, `${runs.length} runs with the same settings.`));
    return holder;
  }
  const head = element("tr", {}, element("th", { scope: "col" }, "setting"), ...runs.map((run) => element("th", { scope: "col" }, run.label)));
  const body = differ.map((key) =>
    element("tr", {}, element("th", { scope: "row" }, key), ...runs.map((run) => element("td", {}, run.settings[key] ?? "–"))),
  );
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  holder.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Settings of ${title}` }, table));
  return holder;
}

/* Samples, enlarged. */
const enlarged = byId("enlarged");
for (const button of all(".zoom")) {
  button.addEventListener("click", () => {
    const picture = button.querySelector("img");
    enlarged.querySelector("img").src = picture.src;
    enlarged.querySelector("img").alt = picture.alt;
    enlarged.querySelector("p").textContent = picture.alt;
    enlarged.showModal();
  });
}
byId("close").addEventListener("click", () => enlarged.close());
enlarged.addEventListener("click", (event) => {
  if (event.target === enlarged) enlarged.close();
});

let drawnAt = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === drawnAt) return;
  drawnAt = innerWidth;
  curves.draw();
  cost.draw();
});
update();
