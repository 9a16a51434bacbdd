// Layer pattern: choose the attention of each of 80 layers; see what is remembered and what a token costs.
import { button, bytes, el, number, row, slider, strong, voice } from "./kit.js";

/** The sizes of MiniMax-Text-01. */
export const SIZES = { D: 6144, H: 64, G: 8, d: 128, E: 32, K: 2, F: 9216, V: 200064 };
const LAYERS = 80;

/** Bytes of the lightning states, float32: 4 H d² a layer, whatever the length. */
export function stateBytes(lightning, { H, d } = SIZES) {
  return 4 * H * d * d * lightning;
}

/** Bytes of keys and values, bfloat16: 2 · 2 G d a token and layer. */
export function kvBytes(softmax, length, { G, d } = SIZES) {
  return 4 * G * d * softmax * length;
}

/** 2 for each weight a token is multiplied by, then the cores: 4 H d² or 4 H d n a layer. */
export function flops(lightning, softmax, length, { D, H, G, d, E, K, F, V } = SIZES) {
  const experts = 3 * K * D * F + E * D;
  const weights = (lightning + softmax) * experts + lightning * 5 * H * d * D + softmax * (2 * H + 2 * G) * d * D + V * D;
  return 2 * weights + 4 * H * d * (lightning * d + softmax * length);
}

/** Recall of 64 pairs, measured on three trained models of four layers: share of softmax layers, then mean, worst and best of three seeds. */
export const RECALL = {
  LLLL: { share: 0, mean: 0.2438, worst: 0.1465, best: 0.4077 },
  LLLS: { share: 0.25, mean: 0.9837, worst: 0.9785, best: 0.9873 },
  SSSS: { share: 1, mean: 1., worst: 1., best: 1. },
};

/** The measured models whose share of softmax layers is nearest: two, halfway between. */
export function nearest(softmax) {
  const far = (name) => Math.abs(RECALL[name].share - softmax / LAYERS);
  const least = Math.min(...Object.keys(RECALL).map(far));
  return Object.keys(RECALL).filter((name) => far(name) === least);
}

const PATTERNS = {
  "As it is, 7 : 1": (layer) => layer % 8 === 7,
  "All lightning": () => false,
  "All softmax": () => true,
};

export function mount(place) {
  let kinds = Array.from({ length: LAYERS }, (_, layer) => layer % 8 === 7), length = 2 ** 17;
  const result = voice();
  const values = ["lightning states", "keys and values", "FLOPs a token"].map((name) => ({ name, value: el("td") }));
  const percent = (x) => `${number(100 * x)} %`;
  const recall = Object.entries(RECALL).map(([name, { mean, worst, best }]) => ({
    name,
    row: el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, `${percent(mean)} (${percent(worst)} to ${percent(best)})`)),
  }));
  const cells = kinds.map((_, layer) => button(layer, () => { kinds[layer] = !kinds[layer]; draw(); }));
  const layers = el("div", { class: "layers", role: "group", "aria-label": "Layers; pressed ones are softmax. Arrow keys move, space changes." }, ...cells);
  cells.forEach((cell, i) => { cell.tabIndex = i ? -1 : 0; });
  layers.addEventListener("keydown", (event) => {
    const at = cells.indexOf(document.activeElement);
    const to = at + ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -8, ArrowDown: 8 }[event.key] || 0);
    if (to === at || !cells[to]) return;
    event.preventDefault();
    cells[at].tabIndex = -1;
    cells[to].tabIndex = 0;
    cells[to].focus();
  });

  function draw() {
    const softmax = kinds.filter(Boolean).length, lightning = LAYERS - softmax;
    cells.forEach((cell, layer) => {
      cell.setAttribute("aria-pressed", kinds[layer]);
      cell.setAttribute("aria-label", `layer ${layer}, ${kinds[layer] ? "softmax" : "lightning"}`);
    });
    const state = stateBytes(lightning), kv = kvBytes(softmax, length);
    values[0].value.textContent = bytes(state);
    values[1].value.textContent = bytes(kv);
    values[2].value.textContent = `${number(flops(lightning, softmax, length) / 1e9, 4)} billion`;
    recall.forEach(({ name, row }) => row.classList.toggle("near", nearest(softmax).includes(name)));
    result.say(strong(`${lightning} lightning, ${softmax} softmax`), ` at ${number(length, 7)} tokens: ${bytes(state + kv)} to remember.`);
  }

  place.replaceChildren(
    row(...Object.entries(PATTERNS).map(([name, pattern]) => button(name, () => { kinds = kinds.map((_, l) => pattern(l)); draw(); })),
      slider("Tokens n", { min: 0, max: 20, value: 17, say: (x) => number(2 ** x, 7) }, (x) => { length = 2 ** x; draw(); })),
    el("div", { class: "beside" },
      el("div", {}, layers, el("p", { class: "legend" }, el("span", { class: "key lightning" }), "lightning ", el("span", { class: "key softmax" }), "softmax")),
      el("div", {}, el("table", { class: "figures" }, el("caption", {}, "What a sequence costs"),
        el("tbody", {}, ...values.map(({ name, value }) => el("tr", {}, el("th", { scope: "row" }, name), value)))), result,
        el("table", { class: "figures" }, el("caption", {}, "Right about 64 pairs: trained models of four layers, three seeds; bold is nearest in share of softmax"),
          el("tbody", {}, ...recall.map(({ row }) => row))))),
  );
  draw();
}
