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

/** Answers that were right, in %: [lowest, mean, highest] of three seeds, 64 pairs, models of four layers trained alike. */
export const MEASURED = {
  LLLL: [14.6, 24.4, 40.8],
  LLLS: [97.9, 98.4, 98.7],
  SSSS: [100, 100, 100],
};

/** The measured pattern that is of a pattern's kind: no softmax layer, some, or nothing else. */
export function ofItsKind(lightning, softmax) {
  return softmax === 0 ? "LLLL" : lightning === 0 ? "SSSS" : "LLLS";
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
  const recall = Object.entries(MEASURED).map(([name, [low, mean, high]]) => {
    const bar = el("span", { class: "fill", style: `width: ${mean}%` });
    const told = low === high ? `${number(mean)} %` : `${number(mean)} % (${number(low)} to ${number(high)})`;
    return { name, line: el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "bar" }, bar), el("td", {}, told)) };
  });
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
    for (const { name, line } of recall) {
      line.classList.toggle("chosen", name === ofItsKind(lightning, softmax));
      line.setAttribute("aria-current", name === ofItsKind(lightning, softmax));
    }
    result.say(strong(`${lightning} lightning, ${softmax} softmax`), ` at ${number(length, 7)} tokens: ${bytes(state + kv)} to remember.`);
  }

  place.replaceChildren(
    row(...Object.entries(PATTERNS).map(([name, pattern]) => button(name, () => { kinds = kinds.map((_, l) => pattern(l)); draw(); })),
      slider("Tokens n", { min: 0, max: 20, value: 17, say: (x) => number(2 ** x, 7) }, (x) => { length = 2 ** x; draw(); })),
    el("div", { class: "beside" },
      el("div", {}, layers, el("p", { class: "legend" }, el("span", { class: "key lightning" }), "lightning ", el("span", { class: "key softmax" }), "softmax")),
      el("div", {}, el("table", { class: "figures" }, el("caption", {}, "What a sequence costs"),
        el("tbody", {}, ...values.map(({ name, value }) => el("tr", {}, el("th", { scope: "row" }, name), value)))), result)),
    el("table", { class: "bars recall" },
      el("caption", {}, "Recall, measured: answers that are right of 64 pairs, by models of four layers, mean of three seeds"),
      el("tbody", {}, ...recall.map(({ line }) => line))),
    el("p", { class: "legend" }, "In bold: the one of your pattern’s kind, with no softmax layer, with some, or with nothing else. No model of 80 layers was trained."),
  );
  draw();
}
