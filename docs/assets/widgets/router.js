// Router: tokens on a plane, four experts as directions, the best two serve.
import { button, el, number, row, slider, strong, voice } from "./kit.js";

const NAMES = "ABCD", TOP = 2;
export const EXPERTS = [[1, 0.4], [-0.4, 1], [-1, -0.4], [0.4, -1]];
const SPREAD = [[0.6, 0.1], [0.3, 0.6], [-0.15, 0.55], [-0.6, 0.3], [-0.55, -0.2], [-0.1, -0.7], [0.2, -0.5], [0.6, -0.4]];
const CROWD = SPREAD.map(([x, y]) => [0.5 + x / 2.5, 0.5 + y / 2.5]);

/** A token's logits: how far it points each expert's way, times a gain. */
export function logitsOf(token, gain) {
  return EXPERTS.map(([a, b]) => gain * (a * token[0] + b * token[1]));
}

export function softmax(logits) {
  const top = Math.max(...logits), powers = logits.map((x) => Math.exp(x - top)), total = powers.reduce((a, b) => a + b);
  return powers.map((x) => x / total);
}

/** The K best, best first, among equals the lower index; their probabilities scaled to sum to 1. */
export function route(logits, k = TOP) {
  const p = softmax(logits);
  const indices = logits.map((_, e) => e).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, k);
  const sum = indices.reduce((total, e) => total + p[e], 0);
  return { indices, weights: indices.map((e) => p[e] / sum) };
}

/** f: assignments to each expert per token; they sum to K. */
export function load(all, k = TOP) {
  const f = all[0].map(() => 0);
  for (const logits of all) for (const e of route(logits, k).indices) f[e] += 1 / all.length;
  return f;
}

/** E Σ f P, which is K where the load is even. */
export function balanceLoss(all, k = TOP) {
  const f = load(all, k), each = all.map(softmax);
  return f.length * f.reduce((sum, fe, e) => sum + fe * each.reduce((total, p) => total + p[e], 0) / all.length, 0);
}

export function mount(place) {
  let tokens = structuredClone(SPREAD), gain = 4, seen = 0;
  const result = voice(), detail = el("p", { class: "detail" });
  const px = (x) => 160 + 140 * x, py = (y) => 160 - 140 * y;
  const links = el("g"), dots = tokens.map((_, i) => {
    const mark = el("text", { y: 5 });
    return el("g", { class: "token", tabindex: 0, role: "button", "aria-roledescription": "token to move", onkeydown: (e) => key(e, i),
      onpointerdown: (e) => grab(e, i), onpointermove: (e) => { if (dots[i].hasPointerCapture(e.pointerId)) drag(e, i); },
      onfocus: () => { seen = i; draw(); } }, el("circle", { r: 20, class: "reach" }), el("circle", { r: 13 }), mark);
  });
  const ends = EXPERTS.map(([a, b]) => { const size = Math.hypot(a, b); return [a / size, b / size]; });
  const plane = el("svg", { viewBox: "0 0 320 320", role: "group", "aria-label": "Tokens; arrow keys move the one in focus" },
    el("rect", { x: 1, y: 1, width: 318, height: 318, rx: 6, class: "plane" }),
    ...ends.map(([a, b]) => el("line", { x1: 160, y1: 160, x2: px(0.9 * a), y2: py(0.9 * b), class: "way" })),
    links,
    ...ends.map(([a, b], e) => el("g", { class: "expert", transform: `translate(${px(0.97 * a)} ${py(0.97 * b)})` },
      el("rect", { x: -13, y: -13, width: 26, height: 26, rx: 5 }), el("text", { y: 5 }, NAMES[e]))),
    ...dots);
  const bars = [...NAMES].map(() => el("span", { class: "fill" }));
  const shares = [...NAMES].map(() => el("td"));

  function put(i, x, y) {
    const inside = (a) => Math.round(100 * Math.max(-1, Math.min(1, a))) / 100;
    tokens[i] = [inside(x), inside(y)];
    seen = i;
    draw();
  }
  function key(event, i) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!by) return;
    event.preventDefault();
    put(i, tokens[i][0] + 0.05 * by[0], tokens[i][1] + 0.05 * by[1]);
  }
  function grab(event, i) {
    event.preventDefault();
    dots[i].focus({ preventScroll: true });
    dots[i].setPointerCapture(event.pointerId);
  }
  function drag(event, i) {
    const box = plane.getBoundingClientRect();
    put(i, ((event.clientX - box.left) / box.width * 320 - 160) / 140, -((event.clientY - box.top) / box.height * 320 - 160) / 140);
  }

  function draw() {
    const all = tokens.map((token) => logitsOf(token, gain)), f = load(all);
    links.replaceChildren();
    tokens.forEach(([x, y], i) => {
      const { indices, weights } = route(all[i]);
      const words = indices.map((e, rank) => `${NAMES[e]} ${weights[rank].toFixed(2)}`).join(", ");
      dots[i].setAttribute("transform", `translate(${px(x)} ${py(y)})`);
      dots[i].setAttribute("aria-label", `Token ${i + 1} at (${number(x)}, ${number(y)}): ${words}`);
      dots[i].classList.toggle("seen", i === seen);
      dots[i].lastChild.textContent = i + 1;
      indices.forEach((e, rank) => links.append(el("line", { x1: px(x), y1: py(y), x2: px(0.97 * ends[e][0]), y2: py(0.97 * ends[e][1]),
        class: i === seen ? "link seen" : "link", "stroke-width": (0.5 + 3 * weights[rank]).toFixed(2) })));
      if (i === seen) {
        detail.replaceChildren(strong(`Token ${i + 1}`), ` goes to ${words}; all four had `,
          softmax(all[i]).map((p, e) => `${NAMES[e]} ${p.toFixed(2)}`).join(", "), ".");
      }
    });
    f.forEach((fe, e) => {
      bars[e].style.width = `${100 * fe}%`;
      shares[e].textContent = `${Math.round(fe * tokens.length)} of ${tokens.length}`;
    });
    result.say("Balance loss ", strong(balanceLoss(all).toFixed(3)), "; an even load gives 2.");
  }

  place.replaceChildren(
    row(slider("Gain", { min: 0.5, max: 12, step: 0.5, value: gain }, (x) => { gain = x; draw(); }),
      button("Spread", () => { tokens = structuredClone(SPREAD); draw(); }), button("Crowd", () => { tokens = structuredClone(CROWD); draw(); })),
    el("div", { class: "beside" }, el("div", { class: "plane-box" }, plane),
      el("div", {}, el("table", { class: "bars" }, el("caption", {}, "Tokens that an expert serves"),
        el("tbody", {}, ...[...NAMES].map((name, e) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "bar" }, bars[e]), shares[e])))),
      detail, result)),
  );
  draw();
}
