// Rounding lens: one number of the state, kept in four types side by side.
import { el, number, power, row, slider, strong, voice } from "./kit.js";

/** Bits after the leading one. */
export const FRACTION = { float64: 52, float32: 23, float16: 10, bfloat16: 7 };
const STEPS = [1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1000, 2000, 3000, 5000, 7000, 10000];

/** Round to the nearest number of a type, ties to even; bfloat16 by way of float32, as its bits are. */
export function roundTo(x, dtype) {
  if (dtype === "float64") return x;
  if (dtype === "float32") return Math.fround(x);
  if (dtype === "bfloat16") {
    const wide = new Float32Array([x]), bits = new Uint32Array(wide.buffer);
    if (Number.isNaN(x)) return x;
    bits[0] = ((bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) >>> 16) << 16;
    return wide[0];
  }
  return roundToFloat16(x);
}

function roundToFloat16(x) {
  if (x === 0 || !Number.isFinite(x)) return x;
  const exponent = Math.max(-14, Math.floor(Math.log2(Math.abs(x))));
  const unit = 2 ** (exponent - 10), parts = x / unit, floor = Math.floor(parts), rest = parts - floor;
  const whole = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
  const rounded = whole * unit;
  return Math.abs(rounded) > 65504 ? Math.sign(x) * Infinity : rounded === 0 ? 0 * x : rounded;
}

/** What is written at step t = 1 … n: a number in (0, 1) that never repeats. */
export function written(t) {
  return (t * 0.6180339887498949) % 1;
}

/** S ← e^(−s) S + x, n times, every product and every sum rounded to the type. */
export function accumulate(s, n, dtype) {
  const keep = roundTo(Math.exp(-s), dtype);
  let S = 0;
  for (let t = 1; t <= n; t++) S = roundTo(roundTo(keep * S, dtype) + roundTo(written(t), dtype), dtype);
  return S;
}

/** Leading bits that are still right: −log₂ of the relative error, at most what the type has. */
export function rightBits(value, exact, dtype) {
  const most = FRACTION[dtype] + 1;
  if (value === exact) return most;
  return Math.max(0, Math.min(most, Math.floor(-Math.log2(Math.abs(value - exact) / Math.abs(exact)))));
}

/** The leading one and the bits after it: 1.25 in float16 → 10100000000. */
export function bitsOf(x, dtype) {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, x);
  return "1" + view.getBigUint64(0).toString(2).padStart(64, "0").slice(12, 12 + FRACTION[dtype]);
}

const short = (x) => (x < 1e-3 ? power(x) : number(x, 2));

export function mount(place) {
  let half = 64, n = 300;
  const result = voice();
  const lines = Object.keys(FRACTION).map((dtype) => {
    const value = el("span"), error = el("span"), bits = el("span", { class: "bits", role: "img" });
    return { dtype, value, error, bits, node: el("div", { class: "type" }, el("strong", {}, dtype), value, error, bits) };
  });

  function draw() {
    const s = Math.LN2 / half, exact = accumulate(s, n, "float64");
    const told = {};
    for (const { dtype, value, error, bits } of lines) {
      const S = accumulate(s, n, dtype), right = rightBits(S, exact, dtype);
      told[dtype] = { S, right };
      value.textContent = number(S, 8);
      error.textContent = dtype === "float64" ? "taken as the truth" : `error ${short(Math.abs(S - exact) / exact)}`;
      bits.setAttribute("aria-label", `${right} of ${FRACTION[dtype] + 1} bits right`);
      bits.replaceChildren(...[...bitsOf(S, dtype)].map((bit, i) => el("i", { class: i < right ? "right" : "wrong" }, bit)));
    }
    const keep = roundTo(Math.exp(-s), "bfloat16");
    result.say("Right after ", strong(`${number(n, 6)} steps`), `: ${told.float32.right} of 24 bits in float32, ${told.float16.right} of 11 in float16, `,
      `${told.bfloat16.right} of 8 in bfloat16. `, `e⁻ˢ = ${number(Math.exp(-s), 6)}; bfloat16 has ${number(keep, 6)}${keep === 1 ? " and forgets nothing" : ""}.`);
  }

  place.replaceChildren(
    row(
      slider("Half-life", { min: 0, max: 14, value: Math.log2(half), say: (x) => `${number(2 ** x, 6)} tokens` }, (x) => { half = 2 ** x; draw(); }),
      slider("Steps n", { min: 0, max: STEPS.length - 1, value: STEPS.indexOf(n), say: (i) => number(STEPS[i], 6) }, (i) => { n = STEPS[i]; draw(); }),
    ),
    el("div", { class: "types" }, ...lines.map((line) => line.node)),
    el("p", { class: "legend" }, el("span", { class: "key right" }), "bits that are right ", el("span", { class: "key wrong" }), "bits that are not"),
    result,
  );
  draw();
}
