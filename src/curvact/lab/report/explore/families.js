// σ, σ′, σ″ and κ of the scalar families of curvact, in double precision: what curvact.activations.families computes.
// A family has `parameters`, as its constructor names them, with the default and the range of each. Where κ can be
// chosen, `inverse(κ, p)` is the value of its parameter `free` that has this κ, and `least(p)` the least κ there is.
// `at(p)` has value, slope and curvature as functions of one number, κ as `kappa`, the place where it is attained, and
// the places where a derivative jumps.
const families = (() => {
// ---- functions of one number, without overflow ----
const decay = u => Math.exp(-Math.abs(u));
const sigmoid = u => u < 0 ? decay(u) / (1 + decay(u)) : 1 / (1 + decay(u));
const softplus = (x, a) => Math.max(x, 0) + Math.log1p(decay(a * x)) / a;
const product = u => decay(u) / (1 + decay(u)) ** 2;  // sigmoid(u)·sigmoid(−u)
function normal(u) {  // Φ(u): a series of positive terms
  if (Math.abs(u) > 9) return u < 0 ? 0 : 1;
  let term = u, sum = u;
  for (let k = 1; Math.abs(term) > 1e-17 * Math.abs(sum); k++) sum += term *= u * u / (2 * k + 1);
  return 0.5 + sum * density(u);
}
const density = u => Math.exp(-0.5 * u * u) / Math.sqrt(2 * Math.PI);

// ---- at unit scale: φ(αx)/α from x and α, φ′ and φ″ from u = αx ----
const REMAINDERS = [[], [1 / 4], [1 / 4, 3 / 32, 5 / 96, 1 / 128], [1 / 4, 3 / 32, 5 / 96, 35 / 1024, 63 / 2560,
  77 / 4096, 429 / 28672, 531 / 65536, 517 / 147456, 59 / 40960, 39 / 90112, 7 / 98304, 1 / 212992]];
const rct = beta => ({
  value: (x, a) => softplus(x, a) - REMAINDERS[beta].reduceRight((sum, c) => (sum + c) * 4 * product(a * x), 0) / a,
  slope: u => { let g = sigmoid(u); for (let k = 0; k < beta; k++) g = g * g * (3 - 2 * g); return g; },
  curvature: u => {
    let g = sigmoid(u), rest = sigmoid(-u), out = product(u);
    for (let k = 0; k < beta; k++) {
      out *= 6 * g * rest;
      [g, rest] = [g * g * (3 - 2 * g), rest * rest * (3 - 2 * rest)];
    }
    return out;
  },
  peak: 0.25 * 1.5 ** beta, place: 0,
});
const swish = {
  value: (x, a) => x * sigmoid(a * x),
  slope: u => sigmoid(u) * (1 + u * sigmoid(-u)),
  curvature: u => product(u) * (2 + u * (sigmoid(-u) - sigmoid(u))),
  peak: 0.5, place: 0,
};
const squareplus = {
  value: (x, a) => Math.max(x, 0) + 0.5 / ((Math.sqrt(1 + (a * x) ** 2) + Math.abs(a * x)) * a),
  slope: u => 0.5 + 0.5 * u / Math.sqrt(1 + u * u),
  curvature: u => 0.5 * (1 + u * u) ** -1.5,
  peak: 0.5, place: 0,
};
const power = n => ({
  value: (x, a) => {
    const s = sigmoid(a * x);
    let sum = 0;
    for (let k = n - 1; k > 0; k--) sum = (sum + 1 / k) * s;
    return softplus(x, a) - sum / a;
  },
  slope: u => sigmoid(u) ** n,
  curvature: u => n * sigmoid(u) ** n * sigmoid(-u),
  peak: (n / (n + 1)) ** (n + 1), place: Math.log(n),
});
const gelu = {
  value: (x, a) => x * normal(a * x),
  slope: u => normal(u) + u * density(u),
  curvature: u => (2 - u * u) * density(u),
  peak: 2 / Math.sqrt(2 * Math.PI), place: 0,
};
function mishParts(u) {  // sigmoid(u), t = tanh(softplus(u)) and 1 − t²
  const s = sigmoid(u), c = sigmoid(-u), d = 1 / (1 + c * c);
  return [s, c, s * (1 + c) * d, (2 * c * d) ** 2];
}
const mish = {
  value: (x, a) => x * mishParts(a * x)[2],
  slope: u => { const [s, , t, q] = mishParts(u); return t + u * s * q; },
  curvature: u => { const [s, c, t, q] = mishParts(u); return q * s * (2 + u * c - 2 * u * s * t); },
  peak: 0.644204637236972429517659047057, place: -0.0879344313149142113266859044556,
};
const tanh = {
  value: (x, a) => Math.tanh(a * x) / a,
  slope: u => 4 * Math.exp(-2 * Math.abs(u)) / (1 + Math.exp(-2 * Math.abs(u))) ** 2,
  curvature: u => -2 * Math.tanh(u) * tanh.slope(u),
  peak: 4 / (3 * Math.sqrt(3)), place: Math.atanh(1 / Math.sqrt(3)),
};
const scaled = (f, a) => ({
  value: x => f.value(x, a), slope: x => f.slope(a * x), curvature: x => a * f.curvature(a * x),
  kappa: a * f.peak, place: f.place / a, jumps: [],
});
const shifted = (a, beta) => {  // S(x) + c·S(−x), S = x·sigmoid(ax)
  const c = beta / (1 - beta), s = scaled(swish, a);
  return { ...s, value: x => s.value(x) + c * s.value(-x), slope: x => (1 + c) * s.slope(x) - c,
    curvature: x => (1 + c) * s.curvature(x), kappa: a / (2 * (1 - beta)) };
};

// ---- in two pieces: right and left of 0 are [value, slope, curvature]; 0 belongs to the left ----
const pieces = (right, left, kappa) => {
  const of = order => x => (x > 0 ? right : left)[order](x);
  return { value: of(0), slope: of(1), curvature: of(2), kappa, place: 0, jumps: [0] };
};
const line = a => [x => a * x, () => a, () => 0];
const exponential = (a, width = 1) =>
  [x => a * Math.expm1(x / width), x => a / width * Math.exp(x / width), x => a / width ** 2 * Math.exp(x / width)];

// ---- parameters ----
const log = (start, low, high) => ({ kind: "log", start, low, high });
const linear = (start, low, high, step) => ({ kind: "linear", start, low, high, step });
const whole = (start, low, high) => ({ kind: "whole", start, low, high });
const choosable = (about, f, start, name = "alpha", more = {}) => ({
  about, free: name, parameters: { [name]: log(start), ...more }, least: () => 0,
  inverse: (kappa, p) => kappa / f(p).peak, at: p => scaled(f(p), p[name]),
});

return {
  rctaf: choosable("σ′ is a gate: sigmoid(αx) after β passes of g → 3g² − 2g³.", p => rct(p.beta), 4, "alpha", { beta: whole(0, 0, 3) }),
  rcraf: {
    ...choosable("softplus(αx)/α, and no more than γ where a γ is given.", () => rct(0), 1, "alpha", { gamma: { ...log(null, 0.2, 5), optional: 2 } }),
    at: p => {
      const free = scaled(rct(0), p.alpha);
      if (p.gamma === null) return free;
      const place = Math.log(Math.expm1(p.alpha * p.gamma)) / p.alpha, end = p.alpha * p.gamma > 700 ? p.gamma : place;
      const cut = f => x => free.value(x) > p.gamma ? 0 : f(x);
      return { value: x => Math.min(free.value(x), p.gamma), slope: cut(free.slope), curvature: cut(free.curvature),
        kappa: Infinity, place: end, jumps: [end] };
    },
  },
  swish: choosable("x·sigmoid(βx).", () => swish, 1, "beta"),
  squareplus: {
    ...choosable("(x + √(x² + b))/2.", () => squareplus, 4, "b"),
    inverse: kappa => 0.25 / kappa ** 2, at: p => scaled(squareplus, 1 / Math.sqrt(p.b)),
  },
  powergate: choosable("σ′ = sigmoid(αx)ⁿ.", p => power(p.n), 4, "alpha", { n: whole(2, 1, 16) }),
  ctu: {
    about: "c·x·sigmoid(bx) + (1 − c)(1 − β)·softplus(x/(1 − β)), b = β/(1 − β).",
    free: "beta", parameters: { beta: { kind: "near one", start: 0.9 }, c: linear(0.5, 0, 1, 0.05) },
    least: p => (1 - p.c) / 4,
    inverse: (kappa, p) => Math.max(0, 1 - (1 + p.c) / (4 * kappa + 2 * p.c)),
    at: p => {
      const a = 1 / (1 - p.beta), b = p.beta * a, s = scaled(swish, b), r = scaled(rct(0), a);
      const mix = name => x => p.c * s[name](x) + (1 - p.c) * r[name](x);
      return { ...r, value: mix("value"), slope: mix("slope"), curvature: mix("curvature"),
        kappa: (2 * p.c * p.beta + 1 - p.c) * a / 4 };
    },
  },
  softplus: choosable("softplus(βx)/β.", () => rct(0), 1, "beta"),
  pssilu: {
    ...choosable("x(sigmoid(αx) − β)/(1 − β).", () => swish, 1, "alpha", { beta: linear(1e-8, 0, 0.95, 0.05) }),
    inverse: (kappa, p) => 2 * kappa * (1 - p.beta), at: p => shifted(p.alpha, p.beta),
  },
  pssilu_fixed: {
    ...choosable("x(sigmoid(αx) − β)/(1 − β), with β never learned.", () => swish, 1, "alpha", { beta: linear(0.3, -0.9, 0.95, 0.05) }),
    inverse: (kappa, p) => 2 * kappa * (1 - p.beta), at: p => shifted(p.alpha, p.beta), learned: true,
  },
  ssilu: { about: "x(sigmoid(x) − β)/(1 − β).", parameters: { beta: linear(0.1, -0.9, 0.95, 0.05) }, at: p => shifted(1, p.beta) },
  psilu: { ...choosable("x·sigmoid(|α|x).", () => swish, 1), learned: true },
  psoftplus: { ...choosable("softplus(|α|x)/|α|.", () => rct(0), 1), learned: true },
  prelu: {
    about: "x for x > 0, αx below.", parameters: { alpha: linear(0, -1, 2, 0.05) }, learned: true,
    at: p => pieces(line(1), line(p.alpha), p.alpha === 1 ? 0 : Infinity),
  },
  prelu_plus: {
    about: "αx for x > 0, 0 below.", parameters: { alpha: linear(1, -1, 3, 0.05) }, learned: true,
    at: p => pieces(line(p.alpha), line(0), p.alpha === 0 ? 0 : Infinity),
  },
  pelu: {
    about: "x for x > 0, α(eˣ − 1) below.", parameters: { alpha: linear(1, -1, 3, 0.05) }, learned: true,
    at: p => pieces(line(1), exponential(p.alpha), p.alpha === 1 ? 1 : Infinity),
  },
  reblu: {
    about: "x + α(√(x² + 1) − 1) for x > 0, 0 below.", parameters: { alpha: linear(0, -1, 3, 0.05) }, learned: true,
    at: p => pieces([x => x + p.alpha * x * (x / (Math.sqrt(x * x + 1) + 1)), x => 1 + p.alpha * x / Math.sqrt(x * x + 1),
      x => p.alpha * (x * x + 1) ** -1.5], line(0), Infinity),
  },
  sparta: {
    about: "x·sigmoid(βx) when training starts. Then the gate looks at neighbouring pixels: no function of one number, and no κ.",
    parameters: { beta: linear(1, 0, 20, 0.5) }, spatial: true, learned: true,
    at: p => p.beta === 0 ? { ...pieces(line(0.5), line(0.5), 0), jumps: [] } : scaled(swish, p.beta),
  },
  gelu: choosable("x·Φ(αx), Φ the normal distribution.", () => gelu, 1),
  mish: choosable("x·tanh(softplus(αx)).", () => mish, 1),
  silu: { about: "x·sigmoid(x): Swish at β = 1.", parameters: {}, at: () => scaled(swish, 1) },
  relu: { about: "max(x, 0).", parameters: {}, at: () => pieces(line(1), line(0), Infinity) },
  elu: {
    about: "x for x > 0, α(eˣ − 1) below.", parameters: { alpha: linear(1, 0.05, 3, 0.05) },
    at: p => pieces(line(1), exponential(p.alpha), p.alpha === 1 ? 1 : Infinity),
  },
  celu: {
    about: "x for x > 0, α(exp(x/α) − 1) below.", free: "alpha", parameters: { alpha: log(1) }, least: () => 0,
    inverse: kappa => 1 / kappa, at: p => pieces(line(1), exponential(p.alpha, p.alpha), 1 / p.alpha),
  },
  selu: {
    about: "λx for x > 0, λα(eˣ − 1) below, with the λ and α of its paper.", parameters: {},
    at: () => pieces(line(1.0507009873554805), exponential(1.0507009873554805 * 1.6732632423543772), Infinity),
  },
  leaky_relu: {
    about: "x for x > 0, ax below; a is negative_slope.", parameters: { negative_slope: linear(0.01, -1, 2, 0.01) },
    at: p => pieces(line(1), line(p.negative_slope), p.negative_slope === 1 ? 0 : Infinity),
  },
  tanh: choosable("tanh(αx)/α.", () => tanh, 1),
  hardswish: {
    about: "x·min(max(x + 3, 0), 6)/6.", parameters: {},
    at: () => {
      const inside = x => Math.abs(x) < 3;
      return { value: x => x * Math.min(Math.max(x + 3, 0), 6) / 6, slope: x => inside(x) ? (2 * x + 3) / 6 : x > 0 ? 1 : 0,
        curvature: x => inside(x) ? 1 / 3 : 0, kappa: Infinity, place: 3, jumps: [-3, 3] };
    },
  },
};
})();
