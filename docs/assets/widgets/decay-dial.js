// Decay dial: what one head of one layer of MiniMax-Text-01 still holds of each earlier token.
import { el, number, row, slider, strong, voice } from "./kit.js";

const HEADS = 64, LAYERS = 80;
const LAGS = [1, 10, 100, 1_000, 10_000, 100_000];
const TEXT =
  "Once a word is written into the memory of a head, nothing takes it out again; it only fades, by the same factor at " +
  "every step, whatever comes after it. A quick head hears the last word or two and is deaf to the rest. A slow head of a " +
  "high layer still holds the first line of a book when it comes to the last. Together they cover every distance, and here " +
  "is the word being read now.";

/** Rate of forgetting s of head 1 … 64 in layer 0 … 79: 2^(−8h/64) (1 − l/79 + 1e-5). */
export function slope(head, layer) {
  return 2 ** (-8 * head / HEADS) * (1 - layer / (LAYERS - 1) + 1e-5);
}

/** What is left of a token `lag` steps later: e^(−s·lag). */
export function left(s, lag) {
  return Math.exp(-s * lag);
}

/** Steps until half is left: ln 2 / s. */
export function halfLife(s) {
  return Math.LN2 / s;
}

/** Every eighth layer is softmax attention. */
export function isSoftmax(layer) {
  return layer % 8 === 7;
}

const percent = (x) => (x < 1e-4 ? "under 0.01 %" : `${number(100 * x, x > 0.99 && x < 1 ? 6 : 3)} %`);

export function mount(place) {
  let head = 40, layer = 0;
  const words = TEXT.split(" ").map((word) => el("span", { class: "word" }, word));
  const bars = LAGS.map(() => el("span", { class: "fill" }));
  const shares = LAGS.map(() => el("td"));
  const result = voice();

  function draw() {
    const fades = !isSoftmax(layer), s = fades ? slope(head, layer) : 0, half = halfLife(s);
    words.forEach((word, i) => word.style.setProperty("--left", left(s, words.length - 1 - i).toFixed(4)));
    LAGS.forEach((lag, i) => {
      bars[i].style.width = `${100 * left(s, lag)}%`;
      shares[i].textContent = percent(left(s, lag));
    });
    if (fades) {
      result.say("Each step keeps ", strong(percent(left(s, 1))), "; half is gone after ",
        strong(`${number(half, half < 100 ? 3 : Math.trunc(Math.log10(half)) + 1)} tokens`), `. s = ${number(s)}.`);
    } else {
      result.say(strong(`Layer ${layer} is softmax attention`), ": it looks up every earlier token and fades none.");
    }
  }

  place.replaceChildren(
    row(
      slider("Head", { min: 1, max: HEADS, value: head, say: (h) => `${h} of ${HEADS}` }, (h) => { head = h; draw(); }),
      slider("Layer", { min: 0, max: LAYERS - 1, value: layer, say: (l) => `${l} (0 to ${LAYERS - 1})` }, (l) => { layer = l; draw(); }),
    ),
    result,
    el("p", { class: "fading" }, ...words.flatMap((word) => [word, " "])),
    el("table", { class: "bars" },
      el("caption", {}, "What is left of a token"),
      el("tbody", {}, ...LAGS.map((lag, i) => el("tr", {},
        el("th", { scope: "row" }, `after ${number(lag, 6)}`), el("td", { class: "bar" }, bars[i]), shares[i])))),
  );
  draw();
}
