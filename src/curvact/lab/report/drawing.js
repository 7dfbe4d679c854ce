"use strict";
// What the live figures of all pages draw with: elements, numbers, scales, marks, controls.
const drawing = (() => {
// ---- making elements ----
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function draw(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}
const button = (text, act) => {
  const element = make("button", { type: "button" }, text);
  element.addEventListener("click", act);
  return element;
};

// ---- numbers and scales ----
const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
function plain(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0 || (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e6)) return String(Number(value.toPrecision(digits)));
  const [mantissa, exponent] = value.toExponential(Math.min(2, digits - 1)).split("e");
  const power = "10" + [...String(Number(exponent))].map(c => RAISED[c]).join("");
  return Number(mantissa) === 1 ? power : Number(mantissa) + "·" + power;
}
function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : v => v, a = f(low), b = f(high);
  return v => from + (f(v) - a) / (b - a || 1) * (to - from);
}
function ticks(low, high, log, count) {
  if (log && high / low > 4) {
    const decades = Math.log10(high / low);
    const parts = decades > 2.2 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 5], found = [];
    const every = parts.length > 1 ? 1 : Math.ceil(decades / 8);
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      if (e % every === 0) found.push(...parts.map(part => part * 10 ** e));
    return found.filter(v => v >= low * 0.999 && v <= high * 1.001).map(v => Number(v.toPrecision(12)));
  }
  const rough = (high - low) / count, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * ten).find(s => s >= rough) || 10 * ten, found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function padded(list, log, share) {
  let low = Math.min(...list), high = Math.max(...list);
  if (log) {
    const room = Math.max((high / low) ** share, 1.05);
    return [low / room, high * room];
  }
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

// ---- marks, as matplotlib names them ----
const MARKS = {
  o: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z", s: "M-3.6,-3.6h7.2v7.2h-7.2Z", "^": "M0,-4.8L4.6,3.4H-4.6Z",
  D: "M0,-5L5,0L0,5L-5,0Z", v: "M0,4.8L4.6,-3.4H-4.6Z", P: "M-1.7,-4.6h3.4v2.9h2.9v3.4h-2.9v2.9h-3.4v-2.9h-2.9v-3.4h2.9Z",
  X: "M-4.4,-2.2L-2.2,-4.4L0,-2.2L2.2,-4.4L4.4,-2.2L2.2,0L4.4,2.2L2.2,4.4L0,2.2L-2.2,4.4L-4.4,2.2L-2.2,0Z",
};
const DASHES = { "-": "none", "--": "7 4", "-.": "8 3 2 3", ":": "2 3" };

// ---- controls ----
// Whether the text is on the clipboard. On file:// some browsers have no clipboard for scripts.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { class: "away", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
function choice(title, options, value, act) {
  const select = make("select", {}, ...options.map(([key, text]) => make("option", { value: key }, text)));
  select.value = value;
  select.addEventListener("change", () => act(select.value));
  return make("label", {}, make("span", {}, title), select);
}
function toggle(text, on, act, swatch) {
  const box = make("input", { type: "checkbox" });
  box.checked = on;
  box.addEventListener("change", () => act(box.checked));
  const whole = make("label", { class: "toggle" }, box);
  if (swatch) {
    const picture = draw(whole, "svg", { width: 26, height: 14, viewBox: "-13 -7 26 14", "aria-hidden": "true" });
    draw(picture, "line", { x1: -12, x2: 12, stroke: swatch.colour, "stroke-width": 1.8, "stroke-dasharray": swatch.dash });
    if (swatch.mark) draw(picture, "path", { d: swatch.mark, fill: swatch.colour });
  }
  whole.append(text);
  return whole;
}

return { make, draw, button, plain, scale, ticks, padded, MARKS, DASHES, copy, choice, toggle };
})();
