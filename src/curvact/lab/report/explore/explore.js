(() => {
const { make, draw, button, plain, scale, ticks, padded, MARKS, DASHES, copy, choice, toggle } = drawing;
const place = document.getElementById("explorer");
const data = JSON.parse(document.getElementById("explorer-data").textContent);
const [LEAST, MOST] = [0.1, 200], REACH = 4;
const GREEK = { alpha: "α", beta: "β", gamma: "γ" };
const [BLUE, RED, GREEN] = data.colours;
const exact = value => String(Number(value.toPrecision(12)));

// ---- what is shown: a family, κ where it can be chosen, and its other parameters ----
const state = { family: "rctaf", curvature: 6, own: { beta: 1 }, zoom: false };
const family = () => families[state.family];
const others = name => Object.keys(families[name].parameters).filter(key => key !== families[name].free);
const defaults = name => Object.fromEntries(others(name).map(key => [key, families[name].parameters[key].start]));
const clipped = () => Object.entries(family().parameters).some(([key, p]) => p.optional && state.own[key] !== null);
const unclipped = () => Object.fromEntries(Object.entries(state.own).map(([key, v]) => [key, family().parameters[key].optional ? null : v]));
const hasFree = () => Boolean(family().free);
const within = (value, low, high) => Math.min(Math.max(value, low), high);
const least = () => Math.max(LEAST, family().least ? family().least(state.own) : 0);
function parameters() {
  const free = hasFree() ? { [family().free]: family().inverse(state.curvature, state.own) } : {};
  return { ...free, ...state.own };
}
const shape = () => family().at(parameters());
function choose(name, own = defaults(name)) {
  state.family = name;
  state.own = own;
  state.curvature = within(state.curvature, least(), MOST);
}

// ---- the line to copy ----
function activation() {
  const short = hasFree() && !clipped(), own = short ? {} : { ...parameters() }, parts = [];
  if (short) parts.push(`curvature=${exact(state.curvature)}`);
  for (const [key, value] of Object.entries(short ? state.own : own))
    if (value !== null && (!short || value !== family().parameters[key].start)) parts.push(`${key}=${exact(value)}`);
  return parts.length ? `${state.family}(${parts.join(", ")})` : state.family;
}
const codeLine = () => family().spatial ? `cv.models.build("mini_resnet", activation="${activation()}")`
  : `cv.swap_activations(model, "relu", "${activation()}")`;

// ---- the view in the address: #family=rctaf&curvature=6&beta=1 ----
function address() {
  const parts = [["family", state.family], ...(hasFree() ? [["curvature", exact(state.curvature)]] : []),
    ...Object.entries(state.own).filter(([, value]) => value !== null).map(([key, value]) => [key, exact(value)]),
    ...(state.zoom ? [["zoom", "1"]] : [])];
  return "#" + parts.map(pair => pair.join("=")).join("&");
}
function follow() {
  const given = new URLSearchParams(location.hash.slice(1)), name = given.get("family");
  if (!Object.hasOwn(families, name)) return;
  const own = defaults(name);
  for (const key of others(name)) {
    const p = families[name].parameters[key], value = Number(given.get(key));
    if (given.get(key) && Number.isFinite(value)) own[key] = within(p.kind === "whole" ? Math.round(value) : value, p.low, p.high);
  }
  const curvature = Number(given.get("curvature"));
  if (curvature > 0) state.curvature = curvature;
  choose(name, own);
  state.zoom = given.get("zoom") === "1";
}
let remembering = 0;
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, "", address()), 200);
}

// ---- sliders: every slider steps through a list of values ----
const ROUND = [1, 1.1, 1.2, 1.3, 1.5, 1.6, 1.8, 2, 2.2, 2.4, 2.7, 3, 3.3, 3.6, 3.9, 4.3, 4.7, 5, 5.6, 6, 6.8, 7.5, 8, 9];
function roundBetween(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) found.push(...ROUND.map(m => Number(`${m}e${e}`)));
  return found.filter(v => v >= low * (1 - 1e-9) && v <= high * (1 + 1e-9));
}
function stops(key) {
  const p = family().parameters[key];
  if (p.kind === "linear" || p.kind === "whole") {
    const step = p.step || 1, count = Math.round((p.high - p.low) / step);
    return Array.from({ length: count + 1 }, (_, i) => Number((p.low + i * step).toPrecision(12)));
  }
  const ends = key === family().free ? [least(), MOST].map(kappa => family().inverse(kappa, state.own)) : [p.low, p.high];
  if (p.kind === "near one") return [...new Set([ends[0], ...roundBetween(1 - ends[1], 1 - ends[0]).reverse().map(v => Number((1 - v).toPrecision(12)))])];
  return roundBetween(Math.min(...ends), Math.max(...ends));
}
const kappaStops = () => [...new Set([least(), ...roundBetween(least(), MOST)])];
const nearest = (list, value, by = v => v) => list.reduce((best, v, i) =>
  Math.abs(by(v) - by(value)) < Math.abs(by(list[best]) - by(value)) ? i : best, 0);
// A row with label, slider and value. row.show(list, value, text) shows where the value is now.
function slider(name, title, act, logarithmic) {
  let list = [];
  const input = make("input", { type: "range", min: 0, step: 1, id: `slider-${name}` });
  const shown = make("output", { for: `slider-${name}` });
  input.addEventListener("input", () => act(list[Number(input.value)]));
  const row = make("div", { class: "slider" }, make("label", { for: `slider-${name}` }, title), input, shown);
  row.show = (values, now, text = plain(now, 5)) => {
    list = values;
    input.max = list.length - 1;
    input.value = nearest(list, now, logarithmic ? Math.log : v => v);
    shown.textContent = text;
    input.setAttribute("aria-valuetext", `${title} ${text}`);
  };
  return row;
}

// ---- the parts of the page ----
const about = make("p", { class: "about" });
const chooser = make("div", { class: "line" });
const top = make("div", { class: "kappa" });
const controls = make("div", { class: "sliders" });
const remark = make("p", { class: "note remark", "aria-live": "polite" });
const code = make("code", { id: "code" });
const status = make("output", { class: "status" });
const curves = make("div", { class: "three" });
const chart = (host, name) => { const box = make("div", { class: "plot", id: name }); host.append(box); return box; };
const [valuePlot, slopePlot, curvaturePlot] = ["value", "slope", "curvature"].map(name => chart(curves, `plot-${name}`));
const which = make("p", { class: "which", "aria-live": "polite" });
const boundary = make("div", { class: "plot boundary", id: "boundary" });
const measured = make("div", { class: "measured" });
const [robustPlot, hessianPlot] = ["robust", "hessian"].map(name => chart(measured, `plot-${name}`));
const numbers = make("dl", { class: "run numbers" });
const key = make("p", { class: "note" });

const copied = button("Copy", async () => {
  if (await copy(codeLine())) { status.textContent = "Copied."; return; }
  getSelection().selectAllChildren(code);
  status.textContent = "Selected: press Ctrl+C.";
});
const sections = Object.fromEntries([...place.querySelectorAll("[data-part]")].map(part => [part.dataset.part, part]));
sections.shape.append(chooser, about, controls, remark, make("div", { class: "line code" }, code, copied, status), curves);
sections.shape.before(top);
sections.network.append(which, make("div", { class: "pair" }, make("div", {}, boundary, key), make("div", {}, measured, numbers)));

// ---- controls ----
let rows = {};
function build() {
  chooser.replaceChildren(
    choice("Family", Object.keys(families).map(name => [name, name]), state.family, name => { choose(name); build(); redraw(); }),
    toggle("zoom in on the bend", state.zoom, on => { state.zoom = on; redraw(); }));
  rows = { curvature: slider("curvature", "κ", v => { state.curvature = v; redraw(); }, true) };
  rows.curvature.querySelector("input").disabled = !hasFree() || clipped();
  top.replaceChildren(rows.curvature);
  controls.replaceChildren();
  for (const [name, p] of Object.entries(family().parameters)) {
    const isFree = name === family().free, title = GREEK[name] || name;
    const act = v => {
      if (isFree) state.curvature = within(Number(family().at({ ...unclipped(), [name]: v }).kappa.toPrecision(12)), least(), MOST);
      else { state.own[name] = v; state.curvature = Math.max(state.curvature, least()); }
      redraw();
    };
    if (p.optional) {
      const on = state.own[name] !== null;
      controls.append(toggle(`${title}: a clip`, on, given => { state.own[name] = given ? p.optional : null; build(); redraw(); controls.querySelector(".toggle input").focus(); }));
      if (!on) continue;
    }
    rows[name] = slider(name, title, act, p.kind === "log");
    controls.append(rows[name]);
  }
}
function refresh(kappa) {
  const text = family().spatial ? "none" : kappa === Infinity ? "∞" : plain(kappa, 5);
  rows.curvature.show(kappaStops(), within(kappa, least(), MOST), text);
  for (const name of Object.keys(family().parameters)) if (rows[name]) rows[name].show(stops(name), parameters()[name]);
}
function remarks(kappa) {
  const said = [];
  if (family().spatial) said.push(`The curves show the gate before training, with κ = ${plain(kappa, 5)}.`);
  else if (clipped()) said.push("The clip makes the slope jump, so κ is infinite. α still sets the bend at 0.");
  else if (!hasFree()) said.push(kappa === Infinity ? "The slope jumps, so κ is infinite: no κ can be chosen." : "κ follows from its parameters. It cannot be chosen.");
  if (family().learned && !family().spatial) said.push("Training moves its parameter by default: this is where it starts.");
  return said.join(" ");
}

// ---- a frame with ticks ----
function framed(host, title, label, [left, right], [low, high], { logX = false, logY = false, xTitle = "x", height = 0 } = {}) {
  const width = Math.max(220, Math.floor(host.clientWidth)), tall = height || Math.round(within(width * 0.72, 200, 280));
  const box = { left: 46, right: width - 10, top: 30, bottom: tall - 38 };
  host.replaceChildren();
  const svg = draw(host, "svg", { width, height: tall, viewBox: `0 0 ${width} ${tall}`, role: "img", "aria-label": label });
  const toX = scale(left, right, box.left, box.right, logX), toY = scale(low, high, box.bottom, box.top, logY);
  draw(svg, "text", { class: "title", x: box.left, y: 16 }, title);
  for (const at of ticks(low, high, logY, 5)) {
    draw(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: toY(at), y2: toY(at) });
    draw(svg, "text", { x: box.left - 6, y: toY(at) + 4, "text-anchor": "end" }, plain(at));
  }
  for (const at of ticks(left, right, logX, 5)) {
    draw(svg, "line", { class: "frame", x1: toX(at), x2: toX(at), y1: box.bottom, y2: box.bottom + 4 });
    draw(svg, "text", { x: toX(at), y: box.bottom + 17, "text-anchor": "middle" }, plain(at));
  }
  draw(svg, "path", { class: "frame", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` });
  draw(svg, "text", { x: (box.left + box.right) / 2, y: tall - 4, "text-anchor": "middle" }, xTitle);
  const clip = draw(draw(svg, "defs"), "clipPath", { id: `${host.id}-frame` });
  draw(clip, "rect", { x: box.left, y: box.top - 1, width: box.right - box.left, height: box.bottom - box.top + 2 });
  return { svg, box, toX, toY, inside: draw(svg, "g", { "clip-path": `url(#${host.id}-frame)` }) };
}
const path = pieces => pieces.filter(piece => piece.length).map(piece => "M" + piece.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join("L")).join("");

// ---- σ, σ′, σ″ ----
function sampled(reach, { place, jumps }) {
  const xs = Array.from({ length: 401 }, (_, i) => reach * (i / 200 - 1));
  for (const centre of new Set([0, place])) for (let k = 0; k < 120; k++) {
    const off = reach * 10 ** (-k / 24);
    xs.push(centre - off, centre + off);
  }
  xs.push(place, ...jumps.flatMap(at => [at - 1e-9, at + 1e-9]));
  return [...new Set(xs)].filter(x => Math.abs(x) <= reach).sort((a, b) => a - b);
}
function parted(xs, f, jumps) {
  const found = [[]];
  xs.filter(x => !jumps.includes(x)).forEach((x, i, kept) => {
    if (i && jumps.some(at => kept[i - 1] < at && x > at)) found.push([]);
    found[found.length - 1].push([x, f(x)]);
  });
  return found;
}
function drawShape() {
  const now = shape(), { kappa, place: at } = now, finite = kappa < Infinity && kappa > 0;
  const bend = finite ? kappa : 4 / Math.max(1, Math.abs(at)), reach = state.zoom ? within(4 / bend, 0.01, 60) : REACH;
  const xs = sampled(reach, now), relu = [[-reach, 0], [0, 0], [0, 0], [reach, reach]];
  const name = activation();
  const curve = (host, title, f, least, extra) => {
    const points = parted(xs, f, now.jumps), ys = points.flat().map(pair => pair[1]);
    const frame = framed(host, title, `${title} of ${name} from ${plain(-reach)} to ${plain(reach)}`, [-reach, reach], padded([...ys, ...least], false, 0.08));
    const { inside, toX, toY } = frame, screen = list => list.map(([x, y]) => [toX(x), toY(y)]);
    draw(inside, "line", { class: "zero", x1: toX(-reach), x2: toX(reach), y1: toY(0), y2: toY(0) });
    if (extra) {
      draw(inside, "path", { class: "still", d: path(extra.map(screen)) });
      draw(frame.svg, "text", { class: "small", x: frame.box.right, y: 16, "text-anchor": "end" }, "dotted: ReLU");
    }
    draw(inside, "path", { class: "curve", d: path(points.map(screen)), stroke: BLUE });
    return frame;
  };
  curve(valuePlot, "σ", now.value, relu.map(pair => pair[1]), [relu]);
  curve(slopePlot, "σ′", now.slope, [0, 1], [[[-reach, 0], [0, 0]], [[0, 1], [reach, 1]]]);
  const peak = now.curvature(at), { svg, box, inside, toX, toY } = curve(curvaturePlot, "σ″", now.curvature, finite ? [0, peak * 1.12] : [0, 1]);
  curvaturePlot.dataset.kappa = family().spatial ? "" : String(kappa);
  curvaturePlot.dataset.place = String(at);
  if (family().spatial) return;
  const words = kappa === Infinity ? `κ = ∞ at x = ${now.jumps.map(x => plain(x, 3)).join(" and ")}` : `κ = ${plain(kappa, 5)} at x = ${plain(at, 3)}`;
  if (kappa === Infinity) for (const jump of now.jumps) draw(inside, "line", { class: "mark", x1: toX(jump), x2: toX(jump), y1: box.top, y2: box.bottom, stroke: RED, "stroke-dasharray": DASHES["--"] });
  else {
    draw(inside, "line", { class: "mark", x1: toX(at), x2: toX(at), y1: toY(0), y2: toY(peak), stroke: RED, "stroke-dasharray": DASHES[":"] });
    draw(svg, "path", { class: "kappa-mark", transform: `translate(${toX(at)},${toY(peak)})`, d: MARKS.o, fill: RED });
  }
  draw(svg, "text", { class: "kappa-text", x: box.right, y: 16, "text-anchor": "end" }, words);
}

// ---- the networks ----
const trained = data.networks.filter(n => n.curvature !== null), relu = data.networks.find(n => n.curvature === null);
function shownNetwork() {
  const { kappa } = shape();
  if (kappa === Infinity) return relu;
  return trained[nearest(trained.map(n => n.curvature), within(kappa, LEAST, MOST), Math.log)];
}
function sayWhich(network) {
  const kappa = shape().kappa, mine = state.family === "rctaf" && state.own.beta === 0, said = [];
  if (network === relu) said.push("Shown are networks trained with ReLU, κ = ∞.");
  else {
    const near = network.curvature === kappa ? "" : `, the nearest to ${plain(kappa, 5)} of those that were trained`;
    said.push(`Shown are networks trained at κ = ${network.curvature}${near}.`);
  }
  if (network !== relu && !mine) said.push(`They have rctaf with β = 0, not ${state.family === "rctaf" ? `β = ${state.own.beta}` : state.family}.`);
  else if (network === relu && state.family !== "relu") said.push(`They have relu, not ${state.family}.`);
  which.replaceChildren(make("strong", {}, said[0]), said[1] ? ` ${said[1]}` : "");
}
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const grids = new Map();
const gridOf = network => grids.get(network) || grids.set(network, bytes(network.probability)).get(network);

// Segments of the line at probability 1/2 through the centres of the cells, in the unit square.
function contour(grid, n) {
  const level = 127.5, at = (i, j) => grid[j * n + i], segments = [], middle = i => (i + 0.5) / n;
  for (let j = 0; j < n - 1; j++) for (let i = 0; i < n - 1; i++) {
    const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]], cuts = [];
    corners.forEach(([a, b], k) => {
      const [c, d] = corners[(k + 1) % 4], v = at(a, b) - level, w = at(c, d) - level;
      if (v * w >= 0) return;
      const t = v / (v - w);
      cuts.push([middle(a) + t * (c - a) / n, middle(b) + t * (d - b) / n]);
    });
    for (let k = 0; k + 1 < cuts.length; k += 2) segments.push([cuts[k], cuts[k + 1]]);
  }
  return segments;
}
function rgb(hex) { return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)); }
function drawBoundary(network) {
  const n = data.grid, grid = gridOf(network), size = Math.floor(within(boundary.clientWidth, 240, 520));
  const canvas = make("canvas", { width: n, height: n, "aria-hidden": "true" }), context = canvas.getContext("2d"), image = context.createImageData(n, n);
  const [zero, one] = [rgb(BLUE), rgb(RED)];
  for (let j = 0; j < n; j++) for (let i = 0; i < n; i++) {
    const p = grid[j * n + i] / 255, k = 4 * ((n - 1 - j) * n + i);
    image.data.set([...(p > 0.5 ? one : zero), Math.round(150 * Math.abs(2 * p - 1))], k);
  }
  context.putImageData(image, 0, 0);
  canvas.style.width = canvas.style.height = `${size}px`;
  boundary.replaceChildren(canvas);
  const name = network === relu ? "ReLU" : `κ = ${network.curvature}`;
  const fooled = network.clean_right.filter((right, i) => right && !network.robust_right[i]).length;
  const svg = draw(boundary, "svg", { width: size, height: size, viewBox: `0 0 ${size} ${size}`, role: "img",
    "aria-label": `Decision boundary of the network with ${name}. The attack makes it wrong at ${fooled} of ${data.points.length} test points.` });
  const x = v => v * size, y = v => (1 - v) * size;
  const lines = source => contour(gridOf(source), n).map(([[a, b], [c, d]]) => `M${x(a).toFixed(1)},${y(b).toFixed(1)}L${x(c).toFixed(1)},${y(d).toFixed(1)}`).join("");
  if (network !== relu) draw(svg, "path", { class: "other", d: lines(relu) });
  draw(svg, "path", { class: "own", d: lines(network) });
  data.points.forEach(([px, py, label], i) => {
    const [ax, ay] = network.attacked[i], wrong = !network.robust_right[i];
    draw(svg, "line", { class: wrong ? "moved wrong" : "moved", x1: x(px), y1: y(py), x2: x(ax), y2: y(ay) });
    draw(svg, "path", { class: wrong ? "point wrong" : "point", d: label ? MARKS.s : MARKS.o, fill: label ? RED : BLUE, transform: `translate(${x(px).toFixed(1)},${y(py).toFixed(1)})` });
  });
  key.textContent = `One network (seed 0). Circles and squares are test points of the two classes, and the colour behind is what the network says. `
    + `A line leads from a point to where the attack moves it; it is thick where the network is then wrong: ${network.robust_right.filter(r => !r).length} of ${data.points.length}. `
    + `The solid curve is the decision boundary${network === relu ? "" : ", the dashed one that of the network with ReLU"}.`;
}
function drawMeasured(network, host, name, title, factor, logY) {
  const values = [...trained, relu].map(m => m[name].map(v => v * factor));
  const range = padded(values.flat(), logY, 0.06);
  const frame = framed(host, title, `${title} against κ`, [LEAST * 0.85, MOST * 1.2], range, { logX: true, logY, xTitle: "κ of the trained networks", height: 220 });
  const { svg, inside, box, toX, toY } = frame, at = n => [toX(n.curvature), toY(n[name][0] * factor)];
  const edge = k => trained.map(m => `${toX(m.curvature)},${toY(m[name][k] * factor)}`);
  draw(inside, "polygon", { class: "interval", points: [...edge(1), ...edge(2).reverse()].join(" "), fill: BLUE });
  const level = toY(relu[name][0] * factor);
  draw(inside, "line", { class: "reference", x1: box.left, x2: box.right, y1: level, y2: level, stroke: GREEN, "stroke-dasharray": DASHES["-."] });
  draw(svg, "text", { class: "small halo", x: box.left + 6, y: level - 6 }, "ReLU");
  if (network !== relu) draw(inside, "line", { class: "mark", x1: at(network)[0], x2: at(network)[0], y1: box.top, y2: box.bottom, stroke: RED, "stroke-dasharray": DASHES[":"] });
  draw(inside, "polyline", { class: "mean", points: trained.map(m => at(m).join(",")).join(" "), stroke: BLUE });
  for (const m of trained) {
    const [px, py] = at(m), dot = draw(svg, "path", { class: m === network ? "dot now" : "dot", d: MARKS.o, fill: m === network ? RED : BLUE, transform: `translate(${px},${py})` });
    dot.addEventListener("click", () => { if (hasFree() && !clipped()) { state.curvature = Math.max(m.curvature, least()); build(); redraw(); } });
  }
}
const percent = v => (100 * v).toFixed(1);
const ranged = ([mean, low, high], text, unit = "") => `${text(mean)}${unit}${low === null ? "" : ` [${text(low)}, ${text(high)}]`}`;
function sayNumbers(network) {
  const column = m => [ranged(m.robust, percent, " %"), ranged(m.clean, percent, " %"), ranged(m.hessian, v => plain(v, 3))];
  const line = (name, values) => [make("dt", {}, name), make("dd", {}, values)];
  const [robust, clean, hessian] = column(network), other = column(relu), name = network === relu ? "ReLU" : `κ = ${network.curvature}`;
  numbers.replaceChildren(...line(`robust accuracy, ${name}`, robust), ...line(`clean accuracy, ${name}`, clean), ...line(`Hessian norm, ${name}`, hessian),
    ...(network === relu ? [] : [...line("robust accuracy, ReLU", other[0]), ...line("Hessian norm, ReLU", other[2])]));
}

let drawn = null;
function redraw() {
  const now = shape();
  refresh(now.kappa);
  about.textContent = `σ(x): ${family().about}`.replace("σ(x): σ′", "σ′");
  remark.textContent = remarks(now.kappa);
  remark.hidden = !remark.textContent;
  code.textContent = codeLine();
  status.textContent = "";
  drawShape();
  const network = shownNetwork();
  sayWhich(network);
  if (network !== drawn) {
    drawBoundary(network);
    drawMeasured(network, robustPlot, "robust", "robust accuracy, %", 100, false);
    drawMeasured(network, hessianPlot, "hessian", "Hessian norm, adversarial loss", 1, true);
    sayNumbers(network);
    drawn = network;
  }
  remember();
}

follow();
place.hidden = false;
build();
redraw();
addEventListener("hashchange", () => { if (location.hash !== address()) { follow(); build(); redraw(); } });
let known = place.clientWidth;
new ResizeObserver(() => {
  if (place.clientWidth === known) return;
  known = place.clientWidth;
  drawn = null;
  redraw();
}).observe(place);
})();
