// Memory and cost calculator: choose a model, a length and a type; see what it weighs, remembers and costs.
import { button, bytes, el, number, row, strong, voice } from "./kit.js";

/** The sizes that can be chosen. `every` is how many layers one softmax layer closes; 0 is none, 1 is all. */
export const PRESETS = {
  "MiniMax-Text-01": { L: 80, every: 8, D: 6144, H: 64, G: 8, d: 128, E: 32, K: 2, F: 9216, V: 200064 },
  "all softmax": { L: 80, every: 1, D: 6144, H: 64, G: 8, d: 128, E: 32, K: 2, F: 9216, V: 200064 },
  "a laptop’s": { L: 8, every: 8, D: 512, H: 8, G: 2, d: 64, E: 8, K: 2, F: 1024, V: 32000 },
};

/** How many of the layers are softmax layers. */
export function softmaxLayers({ L, every }) {
  return every ? Math.floor(L / every) : 0;
}

/** Parameters of each kind of part, and of all. */
export function parameters(size) {
  const { L, D, H, G, d, E, K, F, V } = size, softmax = softmaxLayers(size);
  const lightning = (L - softmax) * (5 * H * d * D + H * d);
  const lookup = softmax * (2 * H + 2 * G) * d * D;
  const experts = L * E * 3 * F * D, routers = L * E * D, norms = (2 * L + 1) * D;
  const activated = lightning + lookup + L * K * 3 * F * D + routers + norms;
  return { lightning, lookup, experts, routers, norms, words: V * D, activated, total: lightning + lookup + experts + routers + norms + 2 * V * D };
}

/** Bytes of one matrix of m × n in a kind of few bits, scales included. */
function few(m, n, kind) {
  const blocks = Math.ceil((m * n) / 64);
  if (kind === "int8") return m * n + 4 * m;
  const codes = Math.ceil((m * n) / 2);
  return kind === "nf4" ? codes + 4 * blocks : codes + blocks + 4 * Math.ceil(blocks / 256) + 4;
}

/** Bytes of the weights. Routers are float32; in few bits are attention and experts, the rest is bfloat16. */
export function weightBytes(size, kind) {
  const { L, D, H, G, d, E, F } = size, softmax = softmaxLayers(size), { total, routers } = parameters(size);
  if (kind === "float32") return 4 * total;
  if (kind === "bfloat16") return 2 * total + 2 * routers;
  const lightning = few(3 * H * d, D, kind) + few(H * d, D, kind) + few(D, H * d, kind);
  const lookup = few(H * d, D, kind) + 2 * few(G * d, D, kind) + few(D, H * d, kind);
  const experts = L * E * (few(2 * F, D, kind) + few(D, F, kind));
  const inBits = (L - softmax) * 5 * H * d * D + softmax * (2 * H + 2 * G) * d * D + L * E * 3 * F * D;
  return (L - softmax) * lightning + softmax * lookup + experts + 2 * (total - inBits) + 2 * routers;
}

/** Bytes remembered of `batch` sequences of `length`: states in float32, keys and values in bfloat16. */
export function remembered(size, length, batch) {
  const { L, H, G, d } = size, softmax = softmaxLayers(size);
  return { states: batch * 4 * H * d * d * (L - softmax), slots: batch * 4 * G * d * softmax * length };
}

/** FLOPs of one token at position n: 2 for each weight it is multiplied by, 4 H d² or 4 H d n for a core. */
export function flops(size, n) {
  const { L, D, H, G, d, E, K, F, V } = size, softmax = softmaxLayers(size);
  const weights = (L - softmax) * 5 * H * d * D + softmax * (2 * H + 2 * G) * d * D + L * (K * 3 * F * D + E * D) + V * D;
  return 2 * weights + 4 * H * d * ((L - softmax) * d + softmax * n);
}

/** FLOPs of reading a prompt of n tokens in one go, the head for its last token only, chunks of C positions. */
export function prefill(size, n, C = 256) {
  const { L, H, d, V, D } = size, softmax = softmaxLayers(size);
  const weights = (flops(size, 0) - 4 * H * d * d * (L - softmax) - 2 * V * D) * n + 2 * V * D;
  const inside = Math.min(C, n);
  return weights + n * (L - softmax) * (4 * H * d * d + 2 * H * d * (inside + 1)) + softmax * 2 * H * d * n * (n + 1);
}

/** Bytes of weights and memory that one step of decoding reads, at most K experts a row. */
export function readPerStep(size, length, batch) {
  const { L, D, E, K, F, V } = size, { activated } = parameters(size), { states, slots } = remembered(size, length, batch);
  const experts = Math.min(E, K * batch) - K;
  return 2 * (activated + V * D + L * experts * 3 * F * D) + 2 * states + slots; // a state is read and written
}

const FIELDS = { L: "layers", every: "one softmax layer in", D: "channels D", H: "heads H", G: "key heads G", d: "channels of a head d", E: "experts E", K: "experts a token K", F: "channels of an expert F", V: "vocabulary V" };
const ASKED = { n: "tokens n", B: "sequences B" };
const KINDS = ["bfloat16", "float32", "int8", "nf4", "nf4-double"];

/** Why no model has these sizes, in a sentence, and the fields that it is about; null where one can. */
export function impossible(size) {
  for (const [name, label] of Object.entries({ ...FIELDS, ...ASKED })) {
    const x = size[name], least = name === "every" ? 0 : 1;
    if (name in size && !(Number.isInteger(x) && x >= least && x < 1e9)) {
      return { fields: [name], why: `“${label}” must be a whole number, at least ${least} and less than a billion.` };
    }
  }
  const { H, G, E, K } = size;
  if (H % G) return { fields: ["H", "G"], why: `${H} heads cannot share ${G} key heads: H must be a multiple of G.` };
  if (K > E) return { fields: ["E", "K"], why: `A token cannot go to ${K} of ${E} ${E === 1 ? "expert" : "experts"}: K must be at most E.` };
  return null;
}

export function mount(place) {
  let kind = "bfloat16";
  const size = { ...PRESETS["MiniMax-Text-01"], n: 131072, B: 1 }; // a field that is empty is NaN
  const result = voice(), rows = {}, inputs = {};
  const field = ([name, label]) => {
    const input = inputs[name] = el("input", { type: "number", min: name === "every" ? 0 : 1, step: 1, value: size[name], inputmode: "numeric" });
    input.addEventListener("input", () => { size[name] = input.valueAsNumber; draw(); });
    return el("label", { class: "field" }, el("span", {}, label), input);
  };
  const fields = Object.entries(FIELDS).map(field), asked = Object.entries(ASKED).map(field);
  const types = el("select", {}, ...KINDS.map((name) => el("option", { value: name }, name)));
  types.addEventListener("input", () => { kind = types.value; draw(); });
  const NAMES = ["parameters", "… at work on a token", "weights", "lightning states", "keys and values", "… if all were softmax", "FLOPs of a token at n", "FLOPs of a prompt of n", "read for a step of decoding"];
  const body = el("tbody", {}, ...NAMES.map((name) => el("tr", {}, el("th", { scope: "row" }, name), rows[name] = el("td"))));

  function draw() {
    const wrong = impossible(size), { n: length, B: batch } = size;
    for (const [name, input] of Object.entries(inputs)) input.setAttribute("aria-invalid", Boolean(wrong?.fields.includes(name)));
    if (wrong) {
      NAMES.forEach((name) => { rows[name].textContent = "–"; });
      result.say(strong(wrong.why));
      return;
    }
    const counted = parameters(size), kept = remembered(size, length, batch);
    const others = remembered({ ...size, every: 1 }, length, batch);
    const shown = [
      number(counted.total / 1e9, 5) + " billion", number(counted.activated / 1e9, 4) + " billion", bytes(weightBytes(size, kind)),
      bytes(kept.states), bytes(kept.slots), bytes(others.slots),
      number(flops(size, length) / 1e9, 4) + " billion", number(prefill(size, length) / 1e12, 4) + " trillion", bytes(readPerStep(size, length, batch)),
    ];
    NAMES.forEach((name, i) => { rows[name].textContent = shown[i]; });
    result.say(strong(bytes(weightBytes(size, kind) + kept.states + kept.slots)), ` to hold weights in ${kind} and ${number(batch, 6)} ${batch === 1 ? "sequence" : "sequences"} of ${number(length, 9)} tokens.`);
  }

  place.replaceChildren(
    row(...Object.entries(PRESETS).map(([name, preset]) => button(name, () => {
      Object.assign(size, preset);
      for (const key of Object.keys(preset)) inputs[key].value = preset[key];
      draw();
    }))),
    el("div", { class: "fields", role: "group", "aria-label": "The model" }, ...fields),
    el("div", { class: "fields", role: "group", "aria-label": "What is asked of it" }, ...asked, el("label", { class: "field" }, el("span", {}, "type of weights"), types)),
    el("table", { class: "figures" }, el("caption", {}, "What it takes"), body), result,
  );
  draw();
}
