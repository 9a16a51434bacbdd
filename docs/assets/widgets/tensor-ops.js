// The ops of the reference on flat arrays, the judge's rule, and the mistakes that it knows by their looks.
// Every op takes r, what is done to each product and sum: nothing for the truth, Math.fround for plain float32.

import { product } from "./tensor-files.js";

const exactly = (x) => x;
export const tensor = (shape, data = new Float64Array(product(shape))) => ({ shape, data });

// --- Ops ------------------------------------------------------------------------------------------------------------

/** Decay, write, read, token by token. A padded token neither decays nor writes. */
export function lightningSteps({ q, k, v, slopes, state, mask }, _, r = exactly) {
  const [B, H, T, d] = q.shape, e = v.shape[3], out = tensor([B, H, T, e]), last = tensor([B, H, d, e]);
  for (let b = 0; b < B; b++) for (let h = 0; h < H; h++) {
    const head = b * H + h, S = last.data.subarray(head * d * e, (head + 1) * d * e), keep = r(Math.exp(-slopes.data[h]));
    if (state) S.set(state.data.subarray(head * d * e, (head + 1) * d * e));
    for (let t = 0; t < T; t++) {
      const real = !mask || mask.data[b * T + t], at = (head * T + t) * d, ov = (head * T + t) * e;
      for (let i = 0; i < d; i++) {
        const ki = k.data[at + i], qi = q.data[at + i], row = i * e;
        for (let j = 0; j < e; j++) {
          if (real) S[row + j] = r(r(keep * S[row + j]) + r(ki * v.data[ov + j]));
          out.data[ov + j] = r(out.data[ov + j] + r(qi * S[row + j]));
        }
      }
    }
  }
  return [out, last];
}

/** C tokens at a time: a triangle of scores inside, the state between. */
export function lightningChunks({ q, k, v, slopes, state, mask }, { chunk = 256 } = {}, r = exactly) {
  const [B, H, T, d] = q.shape, e = v.shape[3], out = tensor([B, H, T, e]), last = tensor([B, H, d, e]);
  for (let b = 0; b < B; b++) for (let h = 0; h < H; h++) {
    const head = b * H + h, s = slopes.data[h], S = last.data.subarray(head * d * e, (head + 1) * d * e);
    const decay = (n) => r(Math.exp(-s * n)), real = (t) => !mask || mask.data[b * T + t];
    if (state) S.set(state.data.subarray(head * d * e, (head + 1) * d * e));
    for (let start = 0; start < T; start += chunk) {
      const m = Math.min(chunk, T - start), count = [];
      for (let x = 0; x < m; x++) count.push((count[x - 1] ?? 0) + (real(start + x) ? 1 : 0));
      for (let x = 0; x < m; x++) {
        const at = (head * T + start + x) * d, ov = (head * T + start + x) * e, fade = decay(count[x]);
        for (let i = 0; i < d; i++) {
          const faded = r(q.data[at + i] * fade);
          for (let j = 0; j < e; j++) out.data[ov + j] = r(out.data[ov + j] + r(faded * S[i * e + j]));
        }
        for (let y = 0; y <= x; y++) {
          if (!real(start + y)) continue;
          const ak = (head * T + start + y) * d, av = (head * T + start + y) * e;
          let score = 0;
          for (let i = 0; i < d; i++) score = r(score + r(q.data[at + i] * k.data[ak + i]));
          score = r(score * decay(count[x] - count[y]));
          for (let j = 0; j < e; j++) out.data[ov + j] = r(out.data[ov + j] + r(score * v.data[av + j]));
        }
      }
      const total = count[m - 1], whole = decay(total);
      for (let i = 0; i < d * e; i++) S[i] = r(whole * S[i]);
      for (let y = 0; y < m; y++) {
        if (!real(start + y)) continue;
        const ak = (head * T + start + y) * d, av = (head * T + start + y) * e, fade = decay(total - count[y]);
        for (let i = 0; i < d; i++) {
          const faded = r(k.data[ak + i] * fade);
          for (let j = 0; j < e; j++) S[i * e + j] = r(S[i * e + j] + r(faded * v.data[av + j]));
        }
      }
    }
  }
  return [out, last];
}

/** a_h (1 − f + 1e-5), f = l/(L − 1); ALiBi's interleaved rates where H is no power of two. */
export function decaySlopes(H, layer, L) {
  const geometric = (n) => Array.from({ length: n }, (_, h) => 2 ** (-8 * (h + 1) / n)), lower = 2 ** Math.floor(Math.log2(H));
  const rates = [...geometric(lower), ...geometric(2 * lower).filter((_, h) => h % 2 === 0)].slice(0, H);
  return rates.map((a) => a * (1 - (L > 1 ? layer / (L - 1) : 0) + 1e-5));
}

/** softmax(q kᵀ / √d) v; query head h reads key head ⌊h / (H/G)⌋; the last T keys are the queries' own. */
export function softmaxAttention({ q, k, v, visible }, { scale } = {}, r = exactly) {
  const [B, H, T, d] = q.shape, [, G, J] = k.shape, e = v.shape[3], out = tensor([B, H, T, e]);
  const by = r(scale ?? d ** -0.5), weights = new Float64Array(J), scaled = new Float64Array(d);
  for (let b = 0; b < B; b++) for (let h = 0; h < H; h++) for (let t = 0; t < T; t++) {
    const at = ((b * H + h) * T + t) * d, keys = (b * G + Math.floor(h / (H / G))) * J;
    for (let i = 0; i < d; i++) scaled[i] = r(q.data[at + i] * by);
    let top = -Infinity, total = 0;
    for (let j = 0; j < J; j++) {
      weights[j] = -Infinity;
      if (visible ? !visible.data[((visible.shape[0] === 1 ? 0 : b) * T + t) * J + j] : j > J - T + t) continue;
      let score = 0;
      for (let i = 0; i < d; i++) score = r(score + r(scaled[i] * k.data[(keys + j) * d + i]));
      weights[j] = score;
      top = Math.max(top, score);
    }
    if (top === -Infinity) continue; // sees nothing: 0
    for (let j = 0; j < J; j++) { weights[j] = r(Math.exp(r(weights[j] - top))); total = r(total + weights[j]); }
    const o = ((b * H + h) * T + t) * e;
    for (let j = 0; j < J; j++) {
      if (weights[j] === 0) continue;
      const w = r(weights[j] / total);
      for (let x = 0; x < e; x++) out.data[o + x] = r(out.data[o + x] + r(w * v.data[(keys + j) * e + x]));
    }
  }
  return [out];
}

/** g ⊙ x / √(mean(x²) + ε) */
export function rmsNorm({ x, weight }, { eps = 1e-5 } = {}, r = exactly) {
  const n = x.shape.at(-1), out = tensor(x.shape);
  for (let at = 0; at < x.data.length; at += n) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum = r(sum + r(x.data[at + i] ** 2));
    const by = r(1 / r(Math.sqrt(r(r(sum / n) + r(eps)))));
    for (let i = 0; i < n; i++) out.data[at + i] = r(weight.data[i] * r(x.data[at + i] * by));
  }
  return [out];
}

/** Turn channels i and i + R/2 by position · base^(−2i/R). */
export function applyRotary({ x, positions }, { rotary_dim: R, base = 1e7 }, r = exactly) {
  const [B, H, T, d] = x.shape, out = tensor(x.shape, x.data.slice()), half = R / 2;
  for (let b = 0; b < B; b++) for (let h = 0; h < H; h++) for (let t = 0; t < T; t++) {
    const at = ((b * H + h) * T + t) * d, place = positions.data[(positions.shape[0] === 1 ? 0 : b) * T + t];
    for (let i = 0; i < half; i++) {
      const angle = place * base ** (-2 * i / R), c = r(Math.cos(angle)), s = r(Math.sin(angle));
      const a = x.data[at + i], z = x.data[at + i + half];
      out.data[at + i] = r(r(a * c) - r(z * s));
      out.data[at + i + half] = r(r(z * c) + r(a * s));
    }
  }
  return [out];
}

/** The K best experts of a softmax over all, the lower index first among equals, their weights scaled to sum to 1. */
export function route({ logits }, { top_k: K = 2, whole = false } = {}, r = exactly) {
  const E = logits.shape.at(-1), shape = [...logits.shape.slice(0, -1), K], weights = tensor(shape), indices = tensor(shape);
  for (let row = 0; row < logits.data.length / E; row++) {
    const l = logits.data.subarray(row * E, (row + 1) * E), top = Math.max(...l), p = [...l].map((x) => r(Math.exp(r(x - top))));
    const total = p.reduce((sum, x) => r(sum + x), 0), best = p.map((_, i) => i).sort((a, b) => l[b] - l[a] || a - b).slice(0, K);
    const chosen = best.map((i) => r(p[i] / total)), sum = whole ? 1 : chosen.reduce((a, b) => r(a + b), 0);
    best.forEach((i, n) => { weights.data[row * K + n] = r(chosen[n] / sum); indices.data[row * K + n] = i; });
  }
  return [weights, indices];
}

const sigmoid = (x, r) => r(1 / r(1 + r(Math.exp(-x))));

export function silu({ x }, _, r = exactly) {
  return [tensor(x.shape, x.data.map((a) => r(a * sigmoid(a, r))))];
}

/** x Wᵀ */
export function linear(x, weight, r = exactly) {
  const [m, n] = weight.shape, out = tensor([...x.shape.slice(0, -1), m]);
  for (let row = 0; row < x.data.length / n; row++) for (let i = 0; i < m; i++) {
    let sum = 0;
    for (let j = 0; j < n; j++) sum = r(sum + r(x.data[row * n + j] * weight.data[i * n + j]));
    out.data[row * m + i] = sum;
  }
  return out;
}

/** σ(x Wᵀ) ⊙ y */
export function outputGate({ y, x, project }, _, r = exactly) {
  const gate = linear(x, project, r);
  return [tensor(y.shape, y.data.map((a, i) => r(sigmoid(gate.data[i], r) * a)))];
}

/** W₂ (silu(W₁ x) ⊙ W₃ x), W₁'s rows before W₃'s in gate_up. */
export function swiglu({ x, gate_up, down }, _, r = exactly) {
  const hidden = linear(x, gate_up, r), F = down.shape[1], inner = tensor([...x.shape.slice(0, -1), F]);
  for (let i = 0; i < inner.data.length; i++) {
    const at = Math.floor(i / F) * 2 * F + (i % F), a = hidden.data[at];
    inner.data[i] = r(r(a * sigmoid(a, r)) * hidden.data[at + F]);
  }
  return [linear(inner, down, r)];
}

// --- Rounding and the judge -----------------------------------------------------------------------------------------

export const SAME_NUMBERS = 1e-11, LIKENESS = 0.35, FLOOR = 1e-300;
/** Unit roundoff of each type that rounding excuses anything in. */
export const UNIT = { F32: 2 ** -24, F16: 2 ** -11, BF16: 2 ** -8 };

/** To the nearest number of a type, ties to even. */
export function rounded(x, type) {
  if (type === "F32") return Math.fround(x);
  if (type === "BF16") {
    const narrow = new Float32Array([x]), bits = new Uint32Array(narrow.buffer);
    if (Number.isNaN(x)) return x;
    bits[0] = ((bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) >>> 16) << 16;
    return narrow[0];
  }
  if (type !== "F16" || x === 0 || !Number.isFinite(x)) return x;
  const unit = 2 ** (Math.max(-14, Math.floor(Math.log2(Math.abs(x)))) - 10), floor = Math.floor(x / unit), rest = x / unit - floor;
  const y = (rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor) * unit;
  return Math.abs(y) > 65504 ? Math.sign(x) * Infinity : y;
}

export function rms(data) {
  let sum = 0;
  for (const x of data) sum += x * x;
  return data.length ? Math.sqrt(sum / data.length) : 0;
}

const minus = (a, b) => a.map((x, i) => x - b[i]);
const sameShape = (a, b) => a.length === b.length && a.every((n, i) => n === b[i]);
const finite = (data) => data.every(Number.isFinite);

/** Name the first position in time whose own difference is beyond four times what is allowed on average. */
export function firstWrong(difference, allowed, shape, letters) {
  const names = letters.split(" ");
  if (names.length !== shape.length) return null;
  const order = [...names.keys()].sort((a, b) => (names[a] !== "T") - (names[b] !== "T") || a - b);
  let best = null;
  for (let at = 0; at < difference.length; at++) {
    if (Math.abs(difference[at]) <= 4 * allowed) continue;
    const index = [];
    for (let axis = shape.length - 1, rest = at; axis >= 0; rest = Math.floor(rest / shape[axis--])) index[axis] = rest % shape[axis];
    const place = order.map((axis) => index[axis]);
    const earlier = best && place.findIndex((n, i) => n !== best[i]);
    if (!best || (earlier >= 0 && place[earlier] < best[earlier])) best = place;
  }
  return best && order.map((axis, i) => `${names[axis]} = ${best[i]}`).join(", ");
}

/** What needs no planted mistake to be seen. */
export function obvious(found, exact) {
  if (!finite(found)) return "it holds NaN or infinity";
  if (found.every((x) => x === 0)) return "it is all zeros";
  let both = 0, one = 0;
  found.forEach((x, i) => { both += x * exact[i]; one += exact[i] ** 2; });
  const factor = both / Math.max(one, FLOOR);
  const times = exact.length > 1 && Math.abs(factor - 1) > 1e-3 && rms(found.map((x, i) => x - factor * exact[i])) < 1e-3 * rms(found);
  return times ? `it is the right answer times ${+factor.toPrecision(4)}` : null;
}

/** How far a result lies from a mistake's, in units of their distance from the truth: 0 is the very mistake, 1 is no likeness. */
export function resemblance(found, exact, mistaken, noise = 0) {
  if (found.length !== exact.length || mistaken.length !== exact.length || !finite(found) || !finite(mistaken)) return 1;
  const apart = Math.max(rms(minus(found, exact)), rms(minus(mistaken, exact)));
  return apart > 0 ? Math.sqrt(Math.max(rms(minus(found, mistaken)) ** 2 - noise ** 2, 0)) / apart : 0;
}

// --- What the page knows of each op ---------------------------------------------------------------------------------

const absolute = (x) => x && tensor(x.shape, x.data.map(Math.abs));
const ofAll = (run) => (a, n) => run({ ...Object.fromEntries(Object.entries(a).map(([key, x]) => [key, ["slopes", "mask"].includes(key) ? x : absolute(x)])) }, n);
const told = (x) => `[${x.shape.join(", ")}]`;

function lightningShapes({ q, k, v, slopes, state, mask }) {
  if (q.shape.length !== 4 || v.shape.length !== 4) return `q is ${told(q)} and v ${told(v)}; they have four axes, [B, H, T, d] and [B, H, T, e].`;
  const [B, H, T, d] = q.shape;
  if (slopes.data.length !== H && slopes.data.length === T) return `q is ${told(q)} and there are ${T} slopes, one a head: heads come before time, [B, H, T, d].`;
  if (slopes.data.length !== H) return `q is ${told(q)}, which is ${H} heads, and there are ${slopes.data.length} slopes; there is one a head.`;
  if (!sameShape(k.shape, q.shape) || !sameShape(v.shape.slice(0, 3), q.shape.slice(0, 3))) {
    return `q is ${told(q)}, k ${told(k)}, v ${told(v)}: lightning attention has no grouped heads, so all three share B, H and T, and q and k share d.`;
  }
  if (state && !sameShape(state.shape, [B, H, d, v.shape[3]])) return `state is ${told(state)}, not [B, H, d, e] = [${[B, H, d, v.shape[3]].join(", ")}].`;
  if (mask && !sameShape(mask.shape, [B, T])) return `mask is ${told(mask)}, not [B, T] = [${B}, ${T}].`;
  return null;
}

function attentionShapes({ q, k, v, visible }) {
  if ([q, k, v].some((x) => x.shape.length !== 4)) return `q is ${told(q)}, k ${told(k)}, v ${told(v)}; they have four axes, [B, H, T, d], [B, G, J, d], [B, G, J, e].`;
  const [B, H, T, d] = q.shape, [, G, J] = k.shape;
  if (k.shape[0] !== B || k.shape[3] !== d || !sameShape(v.shape.slice(0, 3), k.shape.slice(0, 3))) {
    return `q is ${told(q)}, k ${told(k)}, v ${told(v)}: q and k share B and d, k and v share B, G and J.`;
  }
  if (H % G) return `${H} query heads cannot share ${G} key heads; H is a multiple of G.`;
  if (J < T && !visible) return `there are ${T} queries and ${J} keys; the last T keys are the queries' own.`;
  if (visible && (!sameShape(visible.shape.slice(1), [T, J]) || ![1, B].includes(visible.shape[0]))) return `visible is ${told(visible)}, not [B, T, J] = [${B}, ${T}, ${J}].`;
  return null;
}

const LIGHTNING = {
  needs: ["q", "k", "v", "slopes"], may: ["state", "mask"], answers: ["out", "state"], letters: ["B H T e", "B H d e"],
  shapes: lightningShapes, truth: lightningSteps, size: ofAll(lightningSteps), numbers: ["chunk"],
};

/** Of each op: the inputs that it needs and may have, its answers, the truth, the plain form, its scale and its numbers. */
export const OPS = {
  lightning_attention_chunked: { ...LIGHTNING, plain: lightningChunks },
  lightning_attention_recurrent: { ...LIGHTNING, plain: lightningSteps },
  lightning_attention_direct: { ...LIGHTNING, plain: (a, n, r) => lightningChunks(a, { chunk: a.q.shape[2] || 1 }, r) },
  softmax_attention: {
    needs: ["q", "k", "v"], may: ["visible"], answers: ["out"], letters: ["B H T e"], shapes: attentionShapes, truth: softmaxAttention,
    size: (a, n) => softmaxAttention({ ...a, v: absolute(a.v) }, n),
  },
  apply_rotary: {
    needs: ["x", "positions"], may: [], answers: ["out"], letters: ["B H T d"], truth: applyRotary, numbers: ["rotary_dim", "base"], must: ["rotary_dim"],
    shapes({ x, positions }, { rotary_dim: R }) {
      if (x.shape.length !== 4) return `x is ${told(x)}; it has four axes, [B, H, T, d].`;
      if (positions.shape.length !== 2 || positions.shape[1] !== x.shape[2] || ![1, x.shape[0]].includes(positions.shape[0])) {
        return `positions is ${told(positions)}, not [B, T] = [${x.shape[0]}, ${x.shape[2]}].`;
      }
      return R % 2 || R > x.shape[3] || R < 0 ? `rotary_dim is ${R}; it is even and at most d = ${x.shape[3]}.` : null;
    },
  },
  swiglu: {
    needs: ["x", "gate_up", "down"], may: [], answers: ["out"], letters: ["B T D"], truth: swiglu, size: ofAll(swiglu),
    shapes: ({ x, gate_up: g, down }) => (g.shape.length !== 2 || down.shape.length !== 2 || g.shape[1] !== x.shape.at(-1) || g.shape[0] !== 2 * down.shape[1]
      ? `x is ${told(x)}, gate_up ${told(g)}, down ${told(down)}; they are […, D], [2F, D] and [D, F].` : null),
  },
  output_gate: {
    needs: ["y", "x", "project"], may: [], answers: ["out"], letters: ["B T Hd"], truth: outputGate,
    size(a) {
      const gate = linear(a.x, a.project);
      return [tensor(a.y.shape, a.y.data.map((y, i) => Math.abs(y) * (1 + Math.abs(gate.data[i]))))];
    },
    shapes: ({ y, x, project: w }) => (w.shape.length !== 2 || w.shape[1] !== x.shape.at(-1) || w.shape[0] !== y.shape.at(-1) || y.data.length * w.shape[1] !== x.data.length * w.shape[0]
      ? `y is ${told(y)}, x ${told(x)}, project ${told(w)}; they are [B, T, Hd], [B, T, D] and [Hd, D].` : null),
  },
  rms_norm: {
    needs: ["x", "weight"], may: [], answers: ["out"], letters: ["B T n"], truth: rmsNorm, numbers: ["eps"],
    shapes: ({ x, weight }) => (weight.data.length === x.shape.at(-1) ? null : `weight has ${weight.data.length} numbers and the last axis of x ${x.shape.at(-1)}.`),
  },
  route: {
    needs: ["logits"], may: [], answers: ["weights", "indices"], letters: ["B T K", "B T K"], truth: route, numbers: ["top_k"],
    shapes: ({ logits }, { top_k: K = 2 }) => (K >= 1 && K <= logits.shape.at(-1) ? null : `top_k is ${K}, and there are ${logits.shape.at(-1)} experts.`),
  },
  silu: { needs: ["x"], may: [], answers: ["out"], letters: ["B T n"], truth: silu, shapes: () => null },
};
const NUMBERS = new Set(["layer_idx", "num_layers", ...Object.values(OPS).flatMap((op) => op.numbers ?? [])]);

// --- Mistakes -------------------------------------------------------------------------------------------------------

const times = (x, by) => tensor(x.shape, x.data.map((a, i) => a * by(i)));
/** The head that a number of a [B, H, …] array belongs to. */
const headOf = (x) => { const each = product(x.shape.slice(2)), H = x.shape[1]; return (i) => Math.floor(i / each) % H; };
const swapLast = (x) => {
  if (!x) return x;
  const [m, n] = x.shape.slice(-2), turned = tensor([...x.shape.slice(0, -2), n, m]);
  x.data.forEach((a, i) => { const at = Math.floor(i / (m * n)) * m * n, j = i - at; turned.data[at + (j % n) * m + Math.floor(j / n)] = a; });
  return turned;
};
const slopesOf = (a, data) => ({ ...a, slopes: tensor(a.slopes.shape, Float64Array.from(data)) });
/** The layer of these slopes, where they are those of a layer of L. */
export function layerOf(slopes, L) {
  const a = decaySlopes(slopes.length, 0, L), factor = slopes[0] / a[0], l = Math.round((1 + 1e-5) * (1 - factor) * (L - 1));
  const same = l >= 0 && l < L && decaySlopes(slopes.length, l, L).every((s, h) => Math.abs(s - slopes[h]) <= 1e-6 * s);
  return same ? l : null;
}

/** [what it looks like, the cure, the mistaken op: (arguments, numbers) → answers, or null where it cannot be made]. */
function ofLightning(run) {
  const own = (a) => {
    const [, , , d] = a.q.shape, e = a.v.shape[3];
    return (i) => {
      const at = Math.floor(i / e) * d;
      let sum = 0;
      for (let x = 0; x < d; x++) sum += a.q.data[at + x] * a.k.data[at + x];
      return sum * a.v.data[i];
    };
  };
  const tooEarly = (by) => (a, n) => {
    const [out, state] = run(a, n), mine = own(a), head = headOf(out);
    return [tensor(out.shape, out.data.map((x, i) => (x - mine(i)) * by(a.slopes.data[head(i)]))), state];
  };
  const unmasked = ({ mask, ...a }) => a;
  const blank = (x, mask) => {
    const [B, H, T] = x.shape, n = product(x.shape.slice(3));
    return times(x, (i) => { const row = Math.floor(i / n); return mask.data[Math.floor(row / (H * T)) * T + (row % T)]; });
  };
  return [
    ["the state is read before it is written", "Decay, write, then read: a token sees itself.", tooEarly(Math.exp)],
    ["the state is read between the decay and the write", "Decay, write, then read: a token sees itself.", tooEarly(() => 1)],
    ["a token's own contribution is decayed", "Decay what was there before, then add k vᵀ undecayed.",
      (a, n) => { const head = headOf(a.v); return run({ ...a, v: times(a.v, (i) => Math.exp(-a.slopes.data[head(i)])) }, n); }],
    ["the state is forgotten between calls", "Hand the state that a call returned to the next one.",
      (a, n) => a.state && run({ ...a, state: undefined }, n)],
    ["the state is stored transposed", "S is [B, H, d_k, d_v]: S_ij = Σ k_i v_j.",
      (a, n) => { if (a.q.shape[3] !== a.v.shape[3]) return null; const [out, state] = run({ ...a, state: swapLast(a.state) }, n); return [out, swapLast(state)]; }],
    ["queries are scaled by 1/√d", "Lightning attention has no scale; its norm comes after.",
      (a, n) => run({ ...a, q: times(a.q, () => a.q.shape[3] ** -0.5) }, n)],
    ["the short last chunk decays the state as a full one", "Decay by the m positions that the chunk holds, not by C.",
      (a, n) => {
        const C = n.chunk ?? 256, missing = (C - (a.q.shape[2] % C)) % C, [out, state] = run(a, n), head = headOf(state);
        return missing ? [out, times(state, (i) => Math.exp(-a.slopes.data[head(i)] * missing))] : null;
      }],
    ["padding decays the state", "Count time in real tokens: a padded position neither writes nor decays.",
      (a, n) => a.mask && run(unmasked({ ...a, k: blank(a.k, a.mask), v: blank(a.v, a.mask) }), n)],
    ["padding is written into the state", "Leave padded keys and values out, by selection.", (a, n) => a.mask && run(unmasked(a), n)],
    ["there is no decay", "Multiply the state by e^(−s) at every token.", (a, n) => run(slopesOf(a, a.slopes.data.map(() => 0)), n)],
    ["2 is raised to the slopes in place of e", "exp2 wants log₂ e: e^(−s) = 2^(−s·log₂ e).", (a, n) => run(slopesOf(a, a.slopes.data.map((s) => s * Math.LN2)), n)],
    ["the slopes are in reverse order of the heads", "Head 0 forgets fastest.", (a, n) => run(slopesOf(a, [...a.slopes.data].reverse()), n)],
    ["every layer has the slopes of layer 0", "Multiply by 1 − l/(L − 1) + 1e-5.", (a, n) => run(slopesOf(a, decaySlopes(a.slopes.data.length, 0, 80)), n)],
    ["the layer factor is l/L", "f = l/(L − 1): the last layer's factor is 1e-5.", (a, n) => {
      const L = n.num_layers ?? 80, l = layerOf([...a.slopes.data], L);
      return l && run(slopesOf(a, decaySlopes(a.slopes.data.length, l, L + 1)), n);
    }],
    ["the answer is [B, T, H, e]", "Put heads before time: [B, H, T, e].", (a, n) => {
      const [out, state] = run(a, n), [B, H, T, e] = out.shape;
      return H === T && H > 1 ? [tensor(out.shape, swapHeads(out, B, H, T, e)), state] : null;
    }],
  ];
}
/** The numbers of [B, H, T, e] in the order of [B, T, H, e]. */
function swapHeads(x, B, H, T, e) {
  const turned = new Float64Array(x.data.length);
  for (let b = 0; b < B; b++) for (let h = 0; h < H; h++) for (let t = 0; t < T; t++) for (let j = 0; j < e; j++) {
    turned[((b * T + t) * H + h) * e + j] = x.data[((b * H + h) * T + t) * e + j];
  }
  return turned;
}

const pairs = (x, R, to) => {
  const d = x.shape[3], order = Array.from({ length: d }, (_, i) => (i < R / 2 ? 2 * i : i < R ? 2 * (i - R / 2) + 1 : i));
  const turned = tensor(x.shape);
  x.data.forEach((_, at) => { const i = at % d, from = at - i + order[i]; if (to) turned.data[at] = x.data[from]; else turned.data[from] = x.data[at]; });
  return turned;
};
const tiled = ({ q, k, v, ...rest }) => {
  const [, H] = q.shape, G = k.shape[1];
  const of = (x) => {
    const each = product(x.shape.slice(2)), whole = tensor([x.shape[0], H, ...x.shape.slice(2)]);
    for (let b = 0; b < x.shape[0]; b++) for (let h = 0; h < H; h++) whole.data.set(x.data.subarray((b * G + (h % G)) * each, (b * G + (h % G) + 1) * each), (b * H + h) * each);
    return whole;
  };
  return { q, k: of(k), v: of(v), ...rest };
};
const seen = (a, sees) => {
  const T = a.q.shape[2], J = a.k.shape[2];
  return { ...a, visible: tensor([1, T, J], Float64Array.from({ length: T * J }, (_, i) => sees(Math.floor(i / J), i % J))) };
};
const centred = (x) => {
  const n = x.shape.at(-1), means = [];
  for (let at = 0; at < x.data.length; at += n) means.push(x.data.subarray(at, at + n).reduce((a, b) => a + b, 0) / n);
  return tensor(x.shape, x.data.map((a, i) => a - means[Math.floor(i / n)]));
};

export const MISTAKES = {
  lightning_attention_chunked: ofLightning(lightningSteps),
  lightning_attention_recurrent: ofLightning(lightningSteps).filter(([says]) => !says.includes("short last chunk")),
  lightning_attention_direct: ofLightning(lightningSteps).filter(([says]) => !says.includes("short last chunk")),
  softmax_attention: [
    ["grouped heads are tiled", "Query head h reads key head h // (H/G): repeat each key head, do not tile them.", (a, n) => softmaxAttention(tiled(a), n)],
    ["scores are not scaled by 1/√d", "softmax(q kᵀ / √d).", (a) => softmaxAttention(a, { scale: 1 })],
    ["queries see the future", "Query t looks at key slots j ≤ t.", (a, n) => softmaxAttention(seen(a, () => 1), n)],
    ["the triangle begins at the first key", "The last T keys are the queries' own: query t sees j ≤ J − T + t.", (a, n) => softmaxAttention(seen(a, (t, j) => +(j <= t)), n)],
  ],
  apply_rotary: [
    ["the softmax layer's rotary, on the whole head", "Rotate the first rotary_dim channels; the others pass through.", (a, n) => applyRotary(a, { ...n, rotary_dim: a.x.shape[3] })],
    ["the rotary frequencies are those of the whole head", "base^(−2i/R) with R = rotary_dim, not the head's d.", (a, n) => applyRotary(a, { ...n, base: (n.base ?? 1e7) ** (n.rotary_dim / a.x.shape[3]) })],
    ["rotary pairs neighbouring channels", "Channel i turns with channel i + R/2.", (a, n) => [pairs(applyRotary({ ...a, x: pairs(a.x, n.rotary_dim, true) }, n)[0], n.rotary_dim, false)]],
    ["rotary turns the wrong way", "(a cos θ − b sin θ, b cos θ + a sin θ).", (a, n) => applyRotary({ ...a, positions: times(a.positions, () => -1) }, n)],
    ["the rotary base is 10,000", "MiniMax-Text-01 has rope_theta 10,000,000; the paper's section 2 prints 10,000.", (a, n) => applyRotary(a, { ...n, base: 1e4 })],
    ["positions start at 1", "The first real token is at position 0. Only cached keys show it.", (a, n) => applyRotary({ ...a, positions: tensor(a.positions.shape, a.positions.data.map((t) => t + 1)) }, n)],
  ],
  rms_norm: [
    ["the layer norms' eps is 1e-6", "They take rms_norm_eps, 1e-5; only the inner norm has 1e-6.", (a) => rmsNorm(a, { eps: 1e-6 })],
    ["the inner norm's eps is 1e-5", "It is 1e-6, fixed; rms_norm_eps does not reach it.", (a) => rmsNorm(a, { eps: 1e-5 })],
    ["the norms subtract the mean", "RMSNorm divides by the root mean square and subtracts nothing.", (a, n) => rmsNorm({ ...a, x: centred(a.x) }, n)],
    ["the gain is left out", "g ⊙ x / RMS(x): every channel has its own gain.", (a, n) => rmsNorm({ ...a, weight: tensor(a.weight.shape, a.weight.data.map(() => 1)) }, n)],
    ["the gain is 1 + g", "The stored gain is g itself.", (a, n) => rmsNorm({ ...a, weight: tensor(a.weight.shape, a.weight.data.map((g) => 1 + g)) }, n)],
  ],
  route: [
    ["the chosen experts' weights are not renormalised", "Divide the K probabilities by their sum.", (a, n) => route(a, { ...n, whole: true })],
    ["the experts' weights are in the wrong order", "Weight k belongs to the k-th index.", (a, n) => {
      const [weights, indices] = route(a, n), K = weights.shape.at(-1);
      return [tensor(weights.shape, weights.data.map((_, i) => weights.data[i - (i % K) + K - 1 - (i % K)])), indices];
    }],
  ],
  output_gate: [
    ["the gate is a silu", "The output gate is a sigmoid, whatever hidden_act says.", (a) => { const g = linear(a.x, a.project); return [times(outputGate(a)[0], (i) => g.data[i])]; }],
    ["the gate is not squashed", "The output gate is a sigmoid of x Wᵀ.", (a) => { const g = linear(a.x, a.project); return [times(a.y, (i) => g.data[i])]; }],
  ],
  swiglu: [
    ["w1 and w3 are exchanged", "The activation is on w1's output; w3's multiplies it.", (a) => {
      const half = a.gate_up.data.length / 2, turned = new Float64Array(2 * half);
      turned.set(a.gate_up.data.subarray(half));
      turned.set(a.gate_up.data.subarray(0, half), half);
      return swiglu({ ...a, gate_up: tensor(a.gate_up.shape, turned) });
    }],
  ],
  silu: [["it is the sigmoid alone", "silu(x) = x σ(x).", (a) => [tensor(a.x.shape, a.x.data.map((x) => sigmoid(x, exactly)))]]],
};

// --- A file's cases, judged -----------------------------------------------------------------------------------------

/** Which op these names are the inputs of. */
export function opOf(names) {
  const found = Object.entries(OPS).filter(([, op]) => op.needs.every((name) => names.has(name)));
  return found.sort(([, a], [, b]) => b.needs.length - a.needs.length)[0]?.[0];
}

const list = (words) => (words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words.join(""));
const isInput = (name) => Object.values(OPS).some((op) => [...op.needs, ...op.may].includes(name)) || NUMBERS.has(name);
const PADDED = new Set(["k", "v"]);

/** Sort what files hold into cases, or throw one sentence: [{ label, op, inputs, numbers, answers }]. */
export function casesOf(files, refuse, wanted) {
  const story = Object.assign({}, ...files.map((file) => file.story)), cases = new Map();
  for (const { tensors } of files) {
    const bare = (name) => name.replace(/^\d+\./, ""), names = new Set(Object.keys(tensors).map(bare));
    const answersOnly = files.filter((file) => Object.keys(file.tensors).length).length > 1 && !opOf(names);
    for (const [name, x] of Object.entries(tensors)) {
      const number = name.match(/^(\d+)\./)?.[1] ?? "", short = bare(name).replace(/^weight$/, names.has("y") ? "project" : "weight");
      if (/\.(magnitude|plain\.\w+)$/.test(short)) continue; // of expected.safetensors
      if (!cases.has(number)) cases.set(number, { inputs: {}, numbers: {}, answers: {} });
      const one = cases.get(number), state = short === "new_state" || (answersOnly && short === "state");
      const slot = state || answersOnly || !isInput(short) ? "answers" : NUMBERS.has(short) ? "numbers" : "inputs", key = state ? "state" : short;
      if (key in one[slot] && slot === "answers") refuse(`Two files hold ${name}; drop the inputs and one file of answers.`);
      one[slot][key] = slot === "numbers" ? x.data[0] : x;
    }
  }
  if (!cases.size) refuse("There is no tensor in what you dropped.");
  return [...cases].sort(([a], [b]) => a - b).map(([number, one]) => {
    const { case: label, ...numbers } = story.cases?.[number] ?? {};
    for (const key of NUMBERS) if (story[key] !== undefined && !Number.isNaN(+story[key])) numbers[key] = +story[key];
    Object.assign(one.numbers, numbers);
    const told = (number && `${number}.`), held = [...Object.keys(one.inputs), ...Object.keys(one.answers)];
    const op = wanted || (OPS[story.op] ? story.op : opOf(new Set(Object.keys(one.inputs))));
    if (!op) refuse(`${list(held.map((name) => told + name))} ${held.length > 1 ? "are" : "is"} not the inputs of an op that this page knows; lightning attention, for one, has q, k, v, slopes and out.`);
    const { needs, may, answers, must = [], shapes } = OPS[op];
    const absent = needs.find((name) => !one.inputs[name]);
    if (absent) refuse(`${told}${absent} is missing; ${op} has ${list(needs)}.`);
    const lacking = must.find((name) => !(name in one.numbers));
    if (lacking) refuse(`${told}${lacking} is missing; store it beside the tensors as an array of one number.`);
    if (!answers.some((name) => one.answers[name])) {
      refuse(`There is no answer to judge: store it as ${list(answers.map((name) => `${told}${name === "state" && !number ? "new_state" : name}`))} beside ${list(needs)}.`);
    }
    const inputs = Object.fromEntries([...needs, ...may].filter((name) => one.inputs[name]).map((name) => [name, one.inputs[name]]));
    const wrong = shapes(inputs, one.numbers);
    if (wrong) refuse(`${told}${wrong}`);
    for (const [name, x] of Object.entries(inputs)) {
      const at = x.data.findIndex((a) => !Number.isFinite(a)), each = product(x.shape.slice(3)) || 1;
      const [, H, T] = x.shape, hidden = (i) => !inputs.mask.data[Math.floor(i / (each * H * T)) * T + (Math.floor(i / each) % T)];
      if (at < 0) continue;
      if (inputs.mask && PADDED.has(name) && x.data.every((a, i) => Number.isFinite(a) || hidden(i))) continue;
      refuse(`${told}${name} holds NaN or infinity, first in place ${at.toLocaleString("en")}: what it should give is not defined.`);
    }
    const unknown = Object.keys(one.answers).filter((name) => !answers.includes(name));
    return { label: label ?? (number && `case ${number}`), op, inputs, numbers: one.numbers, answers: one.answers, unknown };
  });
}

/** An answer with padded positions set to zero: they are nobody's business. */
function counted(inputs, data, shape, name) {
  if (!inputs.mask || !inputs.slopes || name !== "out") return data;
  const [, H, T, e] = shape;
  return data.map((x, i) => (inputs.mask.data[Math.floor(i / (H * T * e)) * T + (Math.floor(i / e) % T)] ? x : 0));
}

/** Keys and values at padding, by selection: 0 · NaN is NaN. */
function selected(inputs) {
  if (!inputs.mask) return inputs;
  const of = (x) => tensor(x.shape, counted(inputs, x.data, x.shape, "out"));
  return { ...inputs, k: of(inputs.k), v: of(inputs.v) };
}

/** Judge one case: a row for each answer, and what is needed to name a mistake. */
export function judgeCase({ label, op, inputs: given, numbers, answers }) {
  const known = OPS[op], inputs = selected(given), exact = known.truth(inputs, numbers), rows = [], outcomes = [];
  const narrow = Object.values(answers).map((x) => x.type).filter((type) => UNIT[type]).sort((a, b) => UNIT[b] - UNIT[a])[0];
  let plain, size;
  known.answers.forEach((name, n) => {
    const found = answers[name], truth = exact[n];
    const row = { part: name, label, shape: truth.shape, type: found?.type, error: null, allowed: null, verdict: "missing", where: null, note: null };
    rows.push(row);
    if (!found) return;
    if (!sameShape(found.shape, truth.shape)) {
      const [B, H, T, e] = truth.shape, heads = known.letters[n] === "B H T e" && sameShape(found.shape, [B, T, H, e]);
      const turned = heads && rms(minus(found.data, swapHeads(truth, B, H, T, e))) <= 1e-2 * rms(truth.data);
      row.verdict = "different";
      row.note = `it has shape [${found.shape.join(", ")}], not [${truth.shape.join(", ")}]${heads ? ": heads come before time" : ""}${turned ? "; turned round, it is right but for rounding at most" : ""}`;
      return;
    }
    let allowed = SAME_NUMBERS * rms(counted(inputs, truth.data, truth.shape, name));
    if (UNIT[found.type]) {
      plain ??= plainly(known, inputs, numbers, narrow);
      size ??= known.size ? known.size(inputs, numbers) : plain;
      const own = plain[n].data.map((x) => rounded(x, found.type));
      allowed = 2 * rms(minus(own, truth.data)) + 4 * UNIT[found.type] * rms(size[n].data);
    }
    if (name === "out" && inputs.mask && inputs.slopes && !finite(found.data)) {
      const real = finite(counted(inputs, found.data, truth.shape, name));
      row.verdict = "different";
      row.note = real ? "it holds NaN or infinity at padded positions" : "it holds NaN or infinity";
      return;
    }
    const f = counted(inputs, found.data, truth.shape, name), e = counted(inputs, truth.data, truth.shape, name), scale = Math.max(rms(e), FLOOR);
    row.error = rms(minus(f, e)) / scale;
    row.allowed = allowed / scale;
    row.verdict = row.error <= row.allowed ? "same" : "different";
    if (row.verdict === "different") {
      row.where = firstWrong(minus(f, e), allowed, truth.shape, known.letters[n]);
      row.note = obvious(f, e);
    }
    outcomes.push({ n, row, found: f, exact: e, shape: truth.shape });
  });
  const { layer_idx: l, num_layers: L } = numbers;
  if (given.slopes && l !== undefined && L !== undefined) rows.push(judgeSlopes(given.slopes, l, L, label));
  return { rows, outcomes, inputs: given, numbers }; // as given: what is at padding is what a mistake may write
}

/** Slopes by their formula, where the file says of which layer they are. */
function judgeSlopes({ data, type }, l, L, label) {
  const H = data.length, exact = Float64Array.from(decaySlopes(H, l, L)), error = rms(minus(data, exact)) / rms(exact);
  const allowed = UNIT[type] ? 6 * UNIT[type] : SAME_NUMBERS; // a rounding each: 2u + 4u
  const others = { "the layer factor is l/L": decaySlopes(H, l, L + 1), "every layer has the slopes of layer 0": decaySlopes(H, 0, L), "the slopes are in reverse order of the heads": [...exact].reverse() };
  const like = Object.entries(others).find(([, other]) => resemblance(data, exact, Float64Array.from(other)) < LIKENESS);
  return { part: "slopes", label, shape: [H], type, error, allowed, verdict: error <= allowed ? "same" : "different", where: null, note: error <= allowed ? null : like?.[0] ?? null };
}

/** The plain form in a narrow type: inputs rounded to it, float32 inside, slopes in float32. */
function plainly({ truth, plain = truth }, inputs, numbers, type) {
  const narrow = Object.entries(inputs).map(([name, x]) => {
    if (["mask", "visible", "positions"].includes(name)) return [name, x];
    const to = name === "slopes" ? "F32" : type;
    return [name, tensor(x.shape, x.data.map((a) => rounded(a, to)))];
  });
  return plain(Object.fromEntries(narrow), numbers, Math.fround);
}

/** The mistake whose answers are nearest to those found, over all cases: [what it looks like, the cure] or null. */
export function nearestMistake(op, judged) {
  let best = LIKENESS, named = null;
  for (const [says, cure, plant] of MISTAKES[op]) {
    const distances = [];
    for (const { outcomes, inputs, numbers } of judged) {
      const mistaken = plant(inputs, numbers);
      for (const { n, row, found, exact, shape } of outcomes) {
        const m = mistaken ? counted(inputs, mistaken[n].data, shape, OPS[op].answers[n]) : exact;
        if (!finite(m)) continue;
        if (row.verdict === "different" || rms(minus(m, exact)) > row.allowed * rms(exact)) {
          distances.push(resemblance(found, exact, m, row.allowed > 1e-10 ? row.allowed * rms(exact) : 0));
        }
      }
    }
    const score = distances.length ? distances.reduce((a, b) => a + b) / distances.length : 1;
    if (score < best) [best, named] = [score, [says, cure]];
  }
  return named;
}

/** Judge everything: { op, ok, rows, looksLike, unknown }. */
export function judgeAll(cases) {
  const judged = cases.map(judgeCase), rows = judged.flatMap((one) => one.rows), wrong = rows.find((row) => row.verdict === "different");
  const named = wrong ? nearestMistake(cases[0].op, judged) : null;
  return { op: cases[0].op, ok: !wrong && rows.some((row) => row.verdict === "same"), rows, first: wrong ?? null, looksLike: named, unknown: [...new Set(cases.flatMap((one) => one.unknown))] };
}
