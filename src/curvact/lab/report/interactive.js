(() => {
const { make, draw, button, plain, scale, ticks, padded, MARKS, DASHES, copy, choice, toggle } = drawing;
const place = document.getElementById("explorer"), source = document.getElementById("explorer-data");
if (!place || !source) return;
const data = JSON.parse(source.textContent);
if (!data.rows.length || !data.y) return;

// ---- the table ----
const column = new Map(data.heads.map((head, i) => [head, i]));
const cell = (row, head) => column.has(head) ? row[column.get(head)] : "";
const number = text => text === "" ? NaN : Number(text);
const REFERENCE = "reference", SEED = "seed", RUN = column.get("run");
const axes = Object.keys(data.axes);
const isReference = row => cell(row, REFERENCE) !== "";
const valuesOf = axis => [...new Set(data.rows.filter(row => !isReference(row)).map(row => cell(row, axis)))];
const values = new Map(axes.map(axis => [axis, valuesOf(axis)]));
const numeric = axis => values.get(axis).filter(v => v !== "" && v !== "inf").every(v => Number.isFinite(number(v)))
  && values.get(axis).some(v => Number.isFinite(number(v)));
const references = [...new Set(data.rows.map(row => cell(row, REFERENCE)).filter(name => name))];
const csvCell = text => /[,"\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
const csv = () => [data.heads, ...data.rows].map(line => line.map(csvCell).join(",") + "\n").join("");

// ---- what is shown ----
const state = { x: data.x, y: data.y, log: new Set(data.logarithmic), off: new Set(), run: "" };
const others = () => axes.filter(axis => axis !== state.x && axis !== SEED && values.get(axis).length > 1
  && (data.connected || values.get(axis).length <= 12));
const offKey = (axis, value) => axis + "\u0001" + value;
const isOff = (axis, value) => state.off.has(offKey(axis, value));
const metric = () => data.metrics[state.y];
const scaled = (row, name = state.y) => number(cell(row, name)) * (data.metrics[name].percent ? 100 : 1);
const logX = () => numeric(state.x) && state.log.has(state.x);

// ---- numbers and scales ----
const shown = (row, name) => data.metrics[name].percent
  ? scaled(row, name).toFixed(1) + " %" : plain(scaled(row, name), 3);
const mean = list => metric().log
  ? Math.exp(list.reduce((sum, v) => sum + Math.log(v), 0) / list.length)
  : list.reduce((sum, v) => sum + v, 0) / list.length;

// ---- how a group looks: one axis has colours and marks; of more, the second has the marks ----
const nth = (list, i) => list[i % list.length];
const colour = i => nth(data.colours, i).toLowerCase() === "#000000" ? "currentColor" : nth(data.colours, i);
function look(group) {
  const at = others().map((axis, k) => values.get(axis).indexOf(group[k]));
  const first = at[0] || 0, second = at.length > 1 ? at[1] : first;
  const dash = at.length > 2 ? at[2] : Math.floor(first / data.colours.length);
  return { colour: colour(first), mark: MARKS[nth(data.markers, second)], dash: DASHES[nth(data.dashes, dash)] };
}
const referenceLook = name => {
  const i = references.indexOf(name);
  return { colour: colour(2 + i % (data.colours.length - 2)), mark: MARKS.D, dash: DASHES[i % 2 ? ":" : "-."] };
};
const label = value => value === "" ? "none" : Number.isFinite(number(value)) ? String(number(value)) : value;
const nameOf = axis => axis === "curvature" ? "κ" : data.axes[axis];
const inWords = (axis, value) => value === "" ? `no ${nameOf(axis)}`
  : numeric(axis) || /^(true|false)$/.test(value) ? `${nameOf(axis)} ${label(value)}` : value;
function words(row) {
  const labels = axes.filter(axis => axis !== SEED && cell(row, axis) !== "").map(axis => inWords(axis, cell(row, axis)));
  const seed = column.has(SEED) ? [`seed ${label(cell(row, SEED))}`] : [];
  return (isReference(row) ? [`${cell(row, REFERENCE)} (reference)`] : []).concat(labels, seed);
}

// ---- the parts of the explorer ----
const status = make("output", { class: "status" });
const plot = make("div", { class: "plot" });
const tip = make("div", { class: "tip", hidden: "", "aria-hidden": "true" });
const controls = make("div", { class: "controls" });
const panel = make("section", { class: "chosen", hidden: "", tabindex: "-1", "aria-label": "The chosen run" });
place.append(make("h3", { class: "above" }, "Explore the runs"), controls, plot,
  make("p", { class: "note keys" }, "Point at a run, or reach the figure with the Tab key and move with the arrow keys. "
    + "A click or Enter opens the run: its settings, its training curve and the command that repeats it."), panel);
let points = [], current = 0;

function download() {
  const link = make("a", { download: data.file, href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function tell(text) {
  status.textContent = `${await copy(text) ? "Copied" : "Copy this yourself"}: ${text}`;
}

// ---- controls ----
const group = (title, toggles) => make("fieldset", {}, make("legend", {}, title), ...toggles);
function build() {
  const names = Object.entries(data.metrics).map(([key, m]) => [key, m.title]);
  const candidates = axes.filter(axis => axis !== SEED && (values.get(axis).length > 1 || axis === data.x));
  const line = make("div", { class: "line" }, choice("Outcome", names, state.y, y => { state.y = y; redraw(); }));
  if (candidates.length > 1) line.append(choice("Against", candidates.map(axis => [axis, data.axes[axis]]), state.x,
    x => { state.x = x; build(); redraw(); controls.querySelectorAll("select")[1].focus(); }));
  if (numeric(state.x) && values.get(state.x).some(v => number(v) > 0)) line.append(toggle(
    `logarithmic ${nameOf(state.x)} axis`, state.log.has(state.x), on => {
      state.log[on ? "add" : "delete"](state.x);
      redraw();
    }));
  const set = (axis, value) => on => { state.off[on ? "delete" : "add"](offKey(axis, value)); redraw(); };
  const groups = others().map((axis, k, all) => group(data.axes[axis], values.get(axis).map((value, i) => {
    const dash = DASHES[nth(data.dashes, k === 2 ? i : all.length > 1 ? 0 : Math.floor(i / data.colours.length))];
    const swatch = { colour: k ? "currentColor" : colour(i), dash, mark: k < 2 && (k || all.length === 1) ? MARKS[nth(data.markers, i)] : "" };
    return toggle(label(value), !isOff(axis, value), set(axis, value), swatch);
  })));
  if (references.length) groups.push(group("references", references.map(
    name => toggle(name, !isOff(REFERENCE, name), set(REFERENCE, name), referenceLook(name)))));
  const acts = make("div", { class: "line" }, button(`Download ${data.file}`, download));
  if (data.addSeeds) acts.append(button("Copy the command that adds seeds", () => tell(data.addSeeds)));
  acts.append(status);
  controls.replaceChildren(line, ...groups, acts);
}

// ---- the figure ----
function visible() {
  const axesShown = others();
  return data.rows.filter(row => {
    const value = scaled(row);
    if (!Number.isFinite(value) || (metric().log && value <= 0)) return false;
    if (isReference(row) && isOff(REFERENCE, cell(row, REFERENCE))) return false;
    return axesShown.every(axis => (isReference(row) && cell(row, axis) === "") || !isOff(axis, cell(row, axis)));
  });
}
function redraw() {
  const focused = plot.contains(document.activeElement) && points[current] ? points[current].row : null;
  const width = Math.max(260, Math.floor(plot.clientWidth)), narrow = width < 560, log = logX(), byNumber = numeric(state.x);
  const rows = visible(), axesShown = others(), percent = metric().percent, columns = byNumber ? [] : values.get(state.x);
  const hasPlace = row => !isReference(row) && (!byNumber || (Number.isFinite(number(cell(row, state.x))) && (!log || number(cell(row, state.x)) > 0)));
  const groups = new Map();
  for (const row of rows) {
    const labels = axesShown.map(axis => cell(row, axis)), apart = !hasPlace(row);
    const name = isReference(row) ? cell(row, REFERENCE) : apart ? inWords(state.x, cell(row, state.x)) : "";
    const key = JSON.stringify([name, labels]);
    if (!groups.has(key)) groups.set(key, { name, labels, apart, rows: [], look: isReference(row) ? referenceLook(name) : look(labels) });
    groups.get(key).rows.push(row);
  }
  const inside = [...groups.values()].filter(g => !g.apart), outside = [...groups.values()].filter(g => g.apart);
  const shadings = state.x !== data.x || !byNumber ? [] : data.shadings.filter(s => s.metric === state.y
    && inside.some(g => axesShown.every((axis, k) => s.labels[axis] === g.labels[k])));
  // sizes: long names of columns are turned
  const longest = Math.max(0, ...columns.map(name => Math.min(name.length, 24)));
  const turned = columns.length && longest * 7 > (width - 70) / columns.length;
  const gutter = outside.length ? (narrow ? 30 : 44) : 14, height = narrow ? 310 : 400;
  const box = { left: narrow ? 46 : 58, right: width - gutter, top: 16, bottom: height - (turned ? 34 + longest * 4.4 : 46) };
  plot.replaceChildren();
  const svg = draw(plot, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${metric().title} against ${data.axes[state.x]}, ${rows.length} runs. Arrow keys move between runs, Enter opens one.` });
  if (!rows.length) {
    draw(svg, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "No run to show: switch something on.");
    points = [];
    plot.append(tip);
    return;
  }
  const ys = rows.map(row => scaled(row));
  let [low, high] = padded(ys, metric().log, 0.07);
  for (const s of shadings) for (const v of [...s.low, ...s.high]) if (v !== null && (v > 0 || !metric().log)) {
    const room = metric().log ? 1.6 : (Math.max(...ys) - Math.min(...ys) || 1) * 0.2;
    low = Math.min(low, Math.max(v, metric().log ? low / room : low - room));
    high = Math.max(high, Math.min(v, metric().log ? high * room : high + room));
  }
  if (percent) { low = Math.max(low, Math.min(0, ...ys)); high = Math.min(high, Math.max(100.5, ...ys)); }
  const xs = inside.flatMap(g => g.rows).map(row => number(cell(row, state.x)));
  const [left, right] = byNumber ? (xs.length ? padded(xs, log, 0.05) : [1, 10]) : [-0.5, columns.length - 0.5];
  const toX = scale(left, right, box.left, box.right, log), toY = scale(low, high, box.bottom, box.top, metric().log);
  // frame, band, ticks
  const clip = draw(draw(svg, "defs"), "clipPath", { id: "frame" });
  draw(clip, "rect", { x: box.left, y: box.top, width: Math.max(1, box.right - box.left), height: box.bottom - box.top });
  if (data.band && state.x === data.x && byNumber) {
    const from = toX(Math.max(data.band[0], left)), to = toX(Math.min(data.band[1], right));
    if (to > from) {
      draw(svg, "rect", { class: "band", x: from, y: box.top, width: to - from, height: box.bottom - box.top });
      draw(svg, "text", { class: "small", x: (from + to) / 2, y: box.top + 13, "text-anchor": "middle" }, narrow ? "published" : "published optimum");
    }
  }
  for (const at of ticks(low, high, metric().log, narrow ? 4 : 6)) {
    draw(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: toY(at), y2: toY(at) });
    if (!percent || toY(at) > box.top + 14) draw(svg, "text", { x: box.left - 7, y: toY(at) + 4, "text-anchor": "end" }, plain(at));
  }
  if (byNumber) for (const at of ticks(left, right, log, narrow ? 4 : 8)) {
    draw(svg, "line", { class: "frame", x1: toX(at), x2: toX(at), y1: box.bottom, y2: box.bottom + 5 });
    draw(svg, "text", { x: toX(at), y: box.bottom + 19, "text-anchor": "middle" }, plain(at));
  }
  columns.forEach((name, i) => {
    const text = label(name).length > 24 ? name.slice(0, 23) + "…" : label(name), x = toX(i), y = box.bottom + 17;
    draw(svg, "text", turned ? { transform: `translate(${x + 4},${y - 4}) rotate(-32)`, "text-anchor": "end" }
      : { x, y, "text-anchor": "middle" }, text);
    if (i) draw(svg, "line", { class: "grid", x1: toX(i - 0.5), x2: toX(i - 0.5), y1: box.top, y2: box.bottom });
  });
  draw(svg, "path", { class: "frame", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` });
  draw(svg, "text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, data.axes[state.x]);
  if (percent) draw(svg, "text", { x: box.left - 7, y: box.top + 2, "text-anchor": "end" }, "%");
  // intervals, references, means
  const layer = draw(svg, "g", { "clip-path": "url(#frame)" });
  for (const s of shadings) {
    const keep = s.at.map((_, i) => i).filter(i => s.low[i] !== null && s.high[i] !== null && (!log || s.at[i] > 0));
    const own = inside.find(g => axesShown.every((axis, k) => s.labels[axis] === g.labels[k]));
    const ends = keep.map(i => `${toX(s.at[i])},${toY(s.high[i])}`).concat(keep.map(i => `${toX(s.at[i])},${toY(s.low[i])}`).reverse());
    draw(layer, "polygon", { class: "interval", points: ends.join(" "), fill: own.look.colour });
  }
  outside.forEach(g => {
    const y = toY(mean(g.rows.map(row => scaled(row))));
    const name = outside.filter(o => o.name === g.name).length > 1 ? [g.name, ...g.labels.filter(l => l)].join(", ") : g.name;
    draw(layer, "line", { class: "reference", x1: box.left, x2: box.right, y1: y, y2: y, stroke: g.look.colour, "stroke-dasharray": g.look.dash });
    draw(svg, "text", { class: "small halo", x: box.right - 4, y: y - 5, "text-anchor": "end" }, name);
  });
  const wide = byNumber ? 0 : 0.7 / Math.max(1, inside.length);
  inside.forEach((g, i) => {
    const offset = byNumber ? 0 : (i - (inside.length - 1) / 2) * wide;
    g.shift = offset;
    if (!data.connected) return;
    const by = new Map();
    for (const row of g.rows) {
      const at = byNumber ? number(cell(row, state.x)) : columns.indexOf(cell(row, state.x)) + offset;
      by.set(at, [...(by.get(at) || []), scaled(row)]);
    }
    const means = [...by].sort((a, b) => a[0] - b[0]).map(([at, list]) => [toX(at), toY(mean(list))]);
    if (byNumber) draw(layer, "polyline", { class: "mean", points: means.join(" "), stroke: g.look.colour, "stroke-dasharray": g.look.dash });
    const half = Math.max(5, (toX(wide) - toX(0)) * 0.32);
    for (const [x, y] of means) byNumber ? draw(layer, "path", { transform: `translate(${x},${y})`, d: g.look.mark, fill: g.look.colour })
      : draw(layer, "line", { class: "mean", x1: x - half, x2: x + half, y1: y, y2: y, stroke: g.look.colour });
  });
  // runs
  points = [...groups.values()].flatMap((g, order) => g.rows.map((row, i) => {
    const spread = byNumber || !data.connected ? 0 : ((i % 5) - 2) / 5 * wide * 0.35;
    const x = g.apart ? box.right + gutter / 2 : toX(byNumber ? number(cell(row, state.x)) : columns.indexOf(cell(row, state.x)) + g.shift + spread);
    return { row, x, y: toY(scaled(row)), order, look: g.look };
  }));
  points.sort((a, b) => a.order - b.order || a.x - b.x || number(cell(a.row, SEED)) - number(cell(b.row, SEED)));
  current = Math.max(0, points.findIndex(p => p.row === focused || (!focused && p.row[RUN] === state.run)));
  const dots = draw(svg, "g");
  points.forEach((p, i) => {
    p.element = draw(dots, "path", { class: "run" + (p.row[RUN] === state.run ? " picked" : ""), d: p.look.mark, fill: p.look.colour,
      transform: `translate(${p.x.toFixed(1)},${p.y.toFixed(1)})`, tabindex: i === current ? 0 : -1, role: "button",
      "aria-label": `${words(p.row).join(", ")}: ${shown(p.row, state.y)}` });
  });
  plot.append(tip);
  if (focused && points[current]) points[current].element.focus();
}

// ---- pointing, keys ----
function nearest(event) {
  const frame = plot.getBoundingClientRect(), x = event.clientX - frame.left, y = event.clientY - frame.top;
  let best = -1, least = 26 ** 2;
  points.forEach((p, i) => {
    const distance = (p.x - x) ** 2 + (p.y - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}
let lit = null;
function show(i) {
  if (lit) lit.classList.remove("near");
  lit = null;
  tip.hidden = i < 0;
  if (i < 0) return;
  const p = points[i];
  lit = p.element;
  lit.classList.add("near");
  tip.replaceChildren(make("strong", {}, shown(p.row, state.y)), ` ${metric().title}`,
    ...words(p.row).map(text => make("div", {}, text)));
  const room = plot.clientWidth - tip.offsetWidth - 4;
  tip.style.left = Math.max(0, Math.min(room, p.x + 14 > room ? p.x - tip.offsetWidth - 14 : p.x + 14)) + "px";
  tip.style.top = (p.y > tip.offsetHeight + 12 ? p.y - tip.offsetHeight - 12 : p.y + 14) + "px";
}
function move(to) {
  points[current].element.setAttribute("tabindex", "-1");
  current = to;
  points[current].element.setAttribute("tabindex", "0");
  points[current].element.focus();
}
plot.addEventListener("pointermove", event => show(nearest(event)));
plot.addEventListener("pointerleave", () => show(-1));
plot.addEventListener("click", event => { const i = nearest(event); if (i >= 0) open(points[i].row); });
plot.addEventListener("focusin", event => show(points.findIndex(p => p.element === event.target)));
plot.addEventListener("focusout", () => show(-1));
plot.addEventListener("keydown", event => {
  if (!points.length) return;
  const here = points[current], near = step => {
    const order = points.map(p => p.order).filter(o => (o - here.order) * step > 0);
    const next = step > 0 ? Math.min(...order) : Math.max(...order), list = points.filter(p => p.order === next);
    return list.length ? points.indexOf(list.reduce((a, b) => Math.abs(b.x - here.x) < Math.abs(a.x - here.x) ? b : a)) : current;
  };
  const to = { ArrowRight: () => Math.min(points.length - 1, current + 1), ArrowLeft: () => Math.max(0, current - 1),
    ArrowDown: () => near(1), ArrowUp: () => near(-1), Home: () => 0, End: () => points.length - 1 }[event.key];
  if (to) move(to());
  else if (event.key === "Enter" || event.key === " ") open(here.row, true);
  else if (event.key === "Escape") { show(-1); close(); }
  else return;
  event.preventDefault();
});

// ---- the chosen run ----
function small(title, epochs, list, percent) {
  const kept = list.map((v, i) => [epochs[i], v === null ? null : v * (percent ? 100 : 1)]).filter(pair => pair[1] !== null);
  const figure = make("figure", {}, make("figcaption", {}, title));
  if (!kept.length) return figure;
  const width = 340, height = 150, box = { left: 44, right: width - 12, top: 8, bottom: height - 24 };
  const [low, high] = padded(kept.map(pair => pair[1]), false, 0.08), last = kept[kept.length - 1];
  const toX = scale(epochs[0], epochs[epochs.length - 1], box.left, box.right), toY = scale(low, high, box.bottom, box.top);
  const svg = draw(figure, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${title} by epoch: ${plain(kept[0][1], 3)} at epoch ${kept[0][0]}, ${plain(last[1], 3)} at epoch ${last[0]}` });
  for (const at of ticks(low, high, false, 4)) {
    draw(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: toY(at), y2: toY(at) });
    draw(svg, "text", { x: box.left - 6, y: toY(at) + 4, "text-anchor": "end" }, plain(at));
  }
  for (const at of ticks(epochs[0], epochs[epochs.length - 1], false, 6).filter(Number.isInteger))
    draw(svg, "text", { x: toX(at), y: height - 6, "text-anchor": "middle" }, String(at));
  draw(svg, "polyline", { class: "mean", points: kept.map(([e, v]) => `${toX(e)},${toY(v)}`).join(" "), stroke: colour(0) });
  for (const [e, v] of kept.length > 20 ? [last] : kept) draw(svg, "circle", { cx: toX(e), cy: toY(v), r: 2.6, fill: colour(0) });
  return figure;
}
const facts = pairs => make("dl", { class: "run" },
  ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
function open(row, fromKeys = false) {
  state.run = row[RUN];
  for (const p of points) p.element.classList.toggle("picked", p.row === row);
  const about = data.runs[row[RUN]], left = make("div"), right = make("div");
  const names = Object.keys(data.metrics).filter(name => Number.isFinite(scaled(row, name)) && !name.endsWith("_se"));
  const accuracies = names.filter(name => data.metrics[name].percent), rest = names.filter(name => !data.metrics[name].percent);
  left.append(facts(accuracies.map(name => [data.metrics[name].title, shown(row, name)])));
  if (rest.length) left.append(make("details", {}, make("summary", {}, "Other metrics"), facts(rest.map(name => [data.metrics[name].title, shown(row, name)]))));
  if (about) {
    if (Object.keys(about.settings).length) left.append(make("h4", {}, "Settings in which the runs differ"), facts(Object.entries(about.settings)));
    for (const [name, list] of Object.entries(about.curves)) if (list.some(v => v !== null))
      right.append(small(name === "loss" ? "training loss by epoch" : `${name.replaceAll("_", " ")} by epoch${name.endsWith("accuracy") ? ", %" : ""}`, data.epochs[about.epochs], list, name.endsWith("accuracy")));
  }
  const shut = button("Close", () => close());
  panel.replaceChildren(make("div", { class: "head" }, make("h4", {}, `Run ${row[RUN]}`), shut), make("p", {}, words(row).join(", ")), make("div", { class: "two" }, left, right));
  if (about) for (const [title, text] of [["Folder", about.folder], ["The command that repeats it", about.command]]
    .map(([title, i]) => [title, data.texts[i].replaceAll("\0", row[RUN])])) {
    const copied = button("Copy", async () => { await tell(text); copied.textContent = "Copied"; });
    panel.append(make("div", { class: "line copied" }, make("span", {}, title), make("code", {}, text), copied));
  }
  panel.hidden = false;
  if (fromKeys) panel.focus({ preventScroll: true });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  panel.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
}
function close() {
  if (panel.hidden) return;
  const inPanel = panel.contains(document.activeElement);
  panel.hidden = true;
  const i = points.findIndex(p => p.row[RUN] === state.run);
  state.run = "";
  for (const p of points) p.element.classList.remove("picked");
  if (inPanel && i >= 0) move(i);
}
panel.addEventListener("keydown", event => { if (event.key === "Escape") close(); });

place.hidden = false;
build();
redraw();
const stills = [...document.querySelectorAll("details.still")], unfold = open => stills.forEach(still => { still.open = open; });
unfold(false);
addEventListener("beforeprint", () => unfold(true));
addEventListener("afterprint", () => unfold(false));
let known = plot.clientWidth;
new ResizeObserver(() => {
  if (plot.clientWidth === known) return;
  known = plot.clientWidth;
  redraw();
}).observe(plot);
})();
