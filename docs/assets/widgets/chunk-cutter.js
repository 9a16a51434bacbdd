// Chunk cutter: one cut through the score grid, the past carried over it by the state.
import { el, heat, number, power, row, slider, strong, voice } from "./kit.js";

/** Twelve tokens with d = 2 and e = 1: as simple as can be, and no two alike. */
export function tokens(T) {
  const turn = (t, by) => [Math.cos(by * t), Math.sin(by * t)].map((x) => Math.round(10 * (1 + x)) / 10);
  const steps = Array.from({ length: T }, (_, t) => t);
  return { q: steps.map((t) => turn(t, 0.7)), k: steps.map((t) => turn(t, 1.1)), v: steps.map((t) => [1 + ((3 * t) % 5)]) };
}

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** (q_t · k_j) e^(−s(t−j)) for j ≤ t, else 0. */
export function scores(q, k, s) {
  return q.map((qt, t) => k.map((kj, j) => (j <= t ? dot(qt, kj) * Math.exp(-s * (t - j)) : 0)));
}

/** The definition: every pair. */
export function direct(q, k, v, s) {
  return scores(q, k, s).map((line) => v[0].map((_, e) => line.reduce((sum, x, j) => sum + x * v[j][e], 0)));
}

/** S after these tokens: the sum of e^(−s(m−i)) k_i v_iᵀ. */
export function stateAfter(k, v, s) {
  return k[0].map((_, d) => v[0].map((_, e) => k.reduce((sum, ki, i) => sum + Math.exp(-s * (k.length - 1 - i)) * ki[d] * v[i][e], 0)));
}

/** Two chunks: each its own triangle, the second also reads the state of the first, e^(−s r) q S. */
export function cutInTwo(q, k, v, s, cut) {
  const state = stateAfter(k.slice(0, cut), v.slice(0, cut), s);
  const inside = direct(q.slice(cut), k.slice(cut), v.slice(cut), s);
  const second = inside.map((line, r) => line.map((x, e) =>
    x + Math.exp(-s * (r + 1)) * q[cut + r].reduce((sum, qd, d) => sum + qd * state[d][e], 0)));
  return { out: [...direct(q.slice(0, cut), k.slice(0, cut), v.slice(0, cut), s), ...second], state };
}

export function largestDifference(a, b) {
  return Math.max(...a.flatMap((line, t) => line.map((x, e) => Math.abs(x - b[t][e]))));
}

export function mount(place) {
  let T = 8, cut = 5, s = 0.2;
  const result = voice();
  const grid = el("div", { class: "grid", "aria-hidden": "true" });
  const handle = el("div", { class: "cut", role: "slider", tabindex: 0, "aria-label": "Where the second chunk begins", "aria-orientation": "vertical" });
  const board = el("div", { class: "board" }, grid, handle);
  const lines = el("tbody");

  function move(to) {
    cut = Math.max(1, Math.min(T - 1, to));
    draw();
  }
  handle.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, Home: -T, End: T }[event.key];
    if (by) { event.preventDefault(); move(cut + by); }
  });
  board.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.focus({ preventScroll: true });
    board.setPointerCapture(event.pointerId);
    drag(event);
  });
  board.addEventListener("pointermove", (event) => { if (board.hasPointerCapture(event.pointerId)) drag(event); });
  function drag(event) {
    const box = board.getBoundingClientRect();
    move(Math.round((event.clientY - box.top) / box.height * T));
  }

  function draw() {
    const { q, k, v } = tokens(T), whole = direct(q, k, v, s), halves = cutInTwo(q, k, v, s, cut);
    const table = scores(q, k, s), most = Math.max(...table.flat());
    board.style.setProperty("--T", T);
    board.style.setProperty("--cut", cut);
    grid.replaceChildren(...table.flatMap((line, t) => line.map((x, j) => {
      const kind = j > t ? "future" : t >= cut && j < cut ? "block" : "triangle";
      const cell = el("span", { class: kind }, j > t ? "" : x.toFixed(1));
      if (j <= t) heat(cell, kind === "block" ? -x - 0.7 * most : x + 0.7 * most, 1.7 * most);
      return cell;
    })));
    lines.replaceChildren(...whole.map((line, t) => el("tr", t >= cut ? { class: "second" } : {},
      el("th", { scope: "row" }, t + 1), el("td", {}, line[0].toFixed(3)), el("td", {}, halves.out[t][0].toFixed(3)),
      el("td", {}, power(Math.abs(line[0] - halves.out[t][0]))))));
    handle.setAttribute("aria-valuemin", 2);
    handle.setAttribute("aria-valuemax", T);
    handle.setAttribute("aria-valuenow", cut + 1);
    handle.setAttribute("aria-valuetext", `token ${cut + 1} of ${T}`);
    result.say(`Tokens 1 to ${cut}, then ${cut + 1} to ${T}. The block of ${cut * (T - cut)} scores is replaced by a state of two numbers, (`,
      halves.state.map((line) => number(line[0])).join(", "), "). Largest difference: ", strong(power(largestDifference(whole, halves.out))), ".");
  }

  const length = slider("Tokens T", { min: 4, max: 12, value: T }, (x) => { T = x; move(cut); });
  place.replaceChildren(
    row(length, slider("Slope s", { min: 0, max: 1, step: 0.05, value: s, say: (x) => x.toFixed(2) }, (x) => { s = x; draw(); })),
    el("div", { class: "beside" },
      el("div", {}, board, el("p", { class: "legend" },
        el("span", { class: "key triangle" }), "inside a chunk ", el("span", { class: "key block" }), "through the state")),
      el("table", { class: "figures" },
        el("caption", {}, "o, both ways"),
        el("thead", {}, el("tr", {}, ...["t", "all pairs", "two chunks", "difference"].map((name) => el("th", { scope: "col" }, name)))),
        lines)),
    result,
  );
  draw();
}
