// Calculator: parameters, bytes and FLOPs of a model of this build, against the same model with softmax in every layer.
import { bytes, el, number, row, slider, strong, voice } from "./kit.js";

/** A softmax layer in `every` layers, the last of each block; 0 for none. */
export const PRESETS = {
  "MiniMax-Text-01": { L: 80, every: 8, D: 6144, H: 64, G: 8, d: 128, E: 32, K: 2, F: 9216, V: 200064 },
  "The tiny model": { L: 8, every: 8, D: 32, H: 4, G: 2, d: 16, E: 6, K: 2, F: 40, V: 256 },
};
/** Bytes of a matrix of n weights in rows of so many columns. */
export const TYPES = {
  bfloat16: (n) => 2 * n,
  float32: (n) => 4 * n,
  int8: (n, columns) => n + 4 * (n / columns),
  nf4: (n) => Math.ceil(n / 2) + 4 * Math.ceil(n / 64),
  "nf4-double": (n) => Math.ceil(n / 2) + Math.ceil(n / 64) + 4 * Math.ceil(Math.ceil(n / 64) / 256) + 4,
};

/** How many layers are lightning and how many softmax. */
export function layersOf({ L, every }) {
  const softmax = every ? Math.floor(L / every) : 0;
  return { lightning: L - softmax, softmax };
}

/** Parameters: of each part and of the whole; what a token meets, without embedding and head. */
export function parameters(c) {
  const { lightning, softmax } = layersOf(c);
  const embedding = c.V * c.D, expert = 3 * c.F * c.D, router = c.E * c.D;
  const lightningLayer = 5 * c.H * c.d * c.D + c.H * c.d, softmaxLayer = 2 * (c.H + c.G) * c.d * c.D;
  const attention = lightning * lightningLayer + softmax * softmaxLayer, norms = (2 * c.L + 1) * c.D;
  const total = 2 * embedding + attention + c.L * (router + c.E * expert) + norms;
  const activated = attention + c.L * (router + c.K * expert) + norms;
  return { total, activated, embedding, expert, router, lightningLayer, softmaxLayer, norms };
}

/** The matrices of attention and of an expert as they are stored, [rows, columns]: each is quantised by itself. */
const STORED = {
  lightning: ({ D, H, d }) => [[3 * H * d, D], [H * d, D], [D, H * d]],
  softmax: ({ D, H, G, d }) => [[H * d, D], [G * d, D], [G * d, D], [D, H * d]],
  expert: ({ D, F }) => [[2 * F, D], [D, F]],
};
const stored = (c, part, type) => STORED[part](c).reduce((sum, [rows, columns]) => sum + TYPES[type](rows * columns, columns), 0);

/** Bytes of the weights. Attention and experts are quantised; embedding, head and norms are bfloat16 then, routers float32 always. */
export function weightBytes(c, type) {
  const { lightning, softmax } = layersOf(c), p = parameters(c), plain = type === "float32" ? 4 : 2;
  const matrices = lightning * stored(c, "lightning", type) + softmax * stored(c, "softmax", type) + c.L * c.E * stored(c, "expert", type);
  return matrices + plain * (2 * p.embedding + p.norms + lightning * c.H * c.d) + 4 * c.L * p.router;
}

/** Bytes of the states of B sequences, float32: 4 H d² a lightning layer, at any length. */
export function stateBytes(c, B = 1) {
  return 4 * c.H * c.d ** 2 * layersOf(c).lightning * B;
}

/** Bytes of keys and values of B sequences of n tokens, bfloat16: 4 G d a token and softmax layer. */
export function kvBytes(c, n, B = 1) {
  return 4 * c.G * c.d * layersOf(c).softmax * n * B;
}

/** Weights that a token is multiplied by, head included; gains are not. */
export function multiplied(c) {
  const p = parameters(c);
  return p.activated - p.norms - layersOf(c).lightning * c.H * c.d + p.embedding;
}

/** FLOPs of the token at position n: 2 a weight, then the cores, 4 H d² or 4 H d n a layer. */
export function decodeFlops(c, n) {
  const { lightning, softmax } = layersOf(c);
  return 2 * multiplied(c) + 4 * c.H * c.d * (lightning * c.d + softmax * n);
}

/** Their mean over positions 1 … n: what a token of a prompt of n costs. */
export function prefillFlops(c, n) {
  return decodeFlops(c, (n + 1) / 2);
}

/** Bytes of weights that one step reads, at most, with a token from each of B sequences. */
export function readBytes(c, type, B = 1) {
  const plain = type === "float32" ? 4 : 2, experts = c.L * c.E * stored(c, "expert", type);
  return weightBytes(c, type) - experts + (experts / c.E) * Math.min(c.E, B * c.K) - plain * (c.V - Math.min(c.V, B)) * c.D;
}

/** What is wrong with the sizes, in a sentence, or null. */
export function impossible({ L, D, H, G, d, E, K, F, V, every }) {
  if ([L, D, H, G, d, E, K, F, V].some((x) => !Number.isInteger(x) || x < 1)) return "Every size is a whole number, 1 or more.";
  if (!Number.isInteger(every) || every < 0) return "One softmax layer in 8 is written 8; 0 is none.";
  if (H % G) return `${H} query heads cannot share ${G} key heads: H is a multiple of G.`;
  if (K > E) return `A token cannot be sent to ${K} of ${E} experts.`;
  return null;
}

const FIELDS = {
  L: "Layers L", every: "A softmax layer in", D: "Hidden size D", H: "Heads H", G: "Key heads G", d: "Head width d",
  E: "Experts E", K: "Experts a token K", F: "Expert width F", V: "Vocabulary V",
};
const ROWS = [
  ["parameters", (c) => number(parameters(c).total, 15)],
  ["activated a token", (c) => number(parameters(c).activated, 15)],
  ["weights", (c, o) => bytes(weightBytes(c, o.type))],
  ["states", (c, o) => bytes(stateBytes(c, o.B))],
  ["keys and values", (c, o) => bytes(kvBytes(c, o.n, o.B))],
  ["weights read a step, at most", (c, o) => bytes(readBytes(c, o.type, o.B))],
  ["FLOPs of token n", (c, o) => flops(decodeFlops(c, o.n))],
  ["FLOPs a token, prompt of n", (c, o) => flops(prefillFlops(c, o.n))],
];
const flops = (x) => (x < 1e9 ? `${number(x / 1e6, 4)} million` : x < 1e12 ? `${number(x / 1e9, 4)} billion` : `${number(x / 1e12, 4)} trillion`);

export function mount(place) {
  let c = { ...PRESETS["MiniMax-Text-01"] };
  const o = { n: 2 ** 20, B: 1, type: "bfloat16" };
  const result = voice(), lines = ROWS.map(() => [el("td"), el("td")]);
  const fields = Object.fromEntries(Object.entries(FIELDS).map(([key, label]) => {
    const input = el("input", { type: "number", min: key === "every" ? 0 : 1, step: 1, oninput: () => { c[key] = input.valueAsNumber; draw(); } });
    return [key, { input, node: el("label", { class: "field" }, el("span", {}, label), input) }];
  }));
  const types = el("select", { onchange: () => { o.type = types.value; draw(); } }, ...Object.keys(TYPES).map((type) => el("option", {}, type)));

  function draw() {
    const wrong = impossible(c);
    if (wrong) {
      lines.flat().forEach((cell) => { cell.textContent = "–"; });
      result.say(wrong);
      return;
    }
    const all = { ...c, every: 1 }, { lightning, softmax } = layersOf(c);
    ROWS.forEach(([, tell], i) => [c, all].forEach((model, j) => { lines[i][j].textContent = tell(model, o); }));
    const kept = (model) => stateBytes(model, o.B) + kvBytes(model, o.n, o.B);
    result.say(strong(`${lightning} lightning, ${softmax} softmax`), ` at ${number(o.n, 7)} tokens: ${bytes(kept(c))} to remember, `,
      `with softmax in all layers ${bytes(kept(all))}; the next token costs ${flops(decodeFlops(c, o.n))} FLOPs against ${flops(decodeFlops(all, o.n))}.`);
  }
  function fill(preset) {
    c = { ...preset };
    for (const [key, { input }] of Object.entries(fields)) input.value = c[key];
    draw();
  }

  place.replaceChildren(
    row(...Object.entries(PRESETS).map(([name, preset]) => el("button", { type: "button", onclick: () => fill(preset) }, name)),
      el("label", { class: "choice" }, "Weights in ", types)),
    el("div", { class: "fields" }, ...Object.values(fields).map(({ node }) => node)),
    row(slider("Tokens n", { min: 0, max: 22, value: 20, say: (x) => number(2 ** x, 7) }, (x) => { o.n = 2 ** x; draw(); }),
      slider("Sequences B", { min: 0, max: 10, value: 0, say: (x) => number(2 ** x, 7) }, (x) => { o.B = 2 ** x; draw(); })),
    el("table", { class: "figures" },
      el("caption", {}, "What it takes"),
      el("thead", {}, el("tr", {}, el("th"), ...["this model", "all softmax"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...ROWS.map(([name], i) => el("tr", {}, el("th", { scope: "row" }, name), ...lines[i])))),
    result,
  );
  fill(c);
}
