// Step machine: a 4 × 4 memory, one term of the equation at a time.
import { button, el, heat, number, row, slider, strong, voice } from "./kit.js";

const N = 4;
const SUBSCRIPT = "₁₂₃₄";
const TOKENS = [
  { k: [1, 0, 0, 0], v: [8, 4, 2, 1], q: [1, 0, 0, 0] },
  { k: [0, 1, 0, 0], v: [1, 3, 5, 7], q: [1, 0, 0, 0] },
  { k: [0, 0, 1, 0], v: [2, 2, -2, -2], q: [0, 1, 0, 0] },
  { k: [0.5, 0.5, 0, 0], v: [4, 0, 0, 4], q: [1, 1, 0, 0] },
];
const PHASES = ["decay", "write", "read"];

/** e^(−s) S */
export function decay(S, s) {
  return S.map((line) => line.map((x) => Math.exp(-s) * x));
}

/** S + k vᵀ */
export function write(S, k, v) {
  return S.map((line, i) => line.map((x, j) => x + k[i] * v[j]));
}

/** Sᵀ q */
export function read(S, q) {
  return S[0].map((_, j) => S.reduce((sum, line, i) => sum + line[j] * q[i], 0));
}

/** An empty memory, before its first token. */
export function start(n = N) {
  return { token: -1, phase: "read", S: Array.from({ length: n }, () => Array(n).fill(0)), out: null };
}

/** Apply the next term: decay and write change S, read fills out. Tokens repeat when they run out. */
export function step(now, tokens, s) {
  const phase = PHASES[(PHASES.indexOf(now.phase) + 1) % 3];
  const token = now.token + (phase === "decay" ? 1 : 0);
  const { q, k, v } = tokens[token % tokens.length];
  if (phase === "decay") return { token, phase, S: decay(now.S, s), out: null };
  if (phase === "write") return { token, phase, S: write(now.S, k, v), out: null };
  return { token, phase, S: now.S, out: read(now.S, q) };
}

export function mount(place) {
  const tokens = structuredClone(TOKENS);
  let s = Math.LN2, past = [start()], timer = null;
  const result = voice();
  const cells = Array.from({ length: N }, () => Array.from({ length: N }, () => el("td", { class: "cell" })));
  const outs = Array.from({ length: N }, () => el("td", { class: "cell out" }));
  const terms = [el("span", {}, "S ← e⁻ˢ S"), el("span", {}, "S ← S + k vᵀ"), el("span", {}, "o = Sᵀ q")];
  const inputs = {};
  for (const name of ["q", "k", "v"]) {
    inputs[name] = [...SUBSCRIPT].map((mark, i) => el("input", {
      type: "number", step: 0.5, "aria-label": `${name}${mark}`,
      oninput: (event) => { stop(); shown()[name][i] = event.target.valueAsNumber || 0; },
    }));
  }
  const now = () => past.at(-1);
  /** The token whose q, k and v are on show: the one at work, or the next one after a read. */
  const shown = () => tokens[Math.max(0, now().token) % tokens.length];
  const back = button("Back", () => { stop(); if (past.length > 1) past.pop(); draw(); });
  const play = button("Play", () => (timer ? stop() : begin()));

  function forward() {
    past.push(step(now(), tokens, s));
    draw();
  }
  function begin() {
    play.textContent = "Pause";
    forward();
    timer = setInterval(forward, 1200);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function draw() {
    const { token, phase, S, out } = now();
    const most = Math.max(1, ...S.flat().map(Math.abs));
    const begun = token >= 0;
    place.dataset.phase = begun ? phase : "";
    back.disabled = past.length === 1;
    terms.forEach((term, i) => term.classList.toggle("on", begun && PHASES[i] === phase));
    S.forEach((line, i) => line.forEach((x, j) => {
      cells[i][j].textContent = number(x);
      heat(cells[i][j], x, most);
    }));
    outs.forEach((cell, j) => {
      cell.textContent = out ? number(out[j]) : "·";
      heat(cell, out ? out[j] : 0, Math.max(1, ...(out || []).map(Math.abs)));
    });
    for (const name of ["q", "k", "v"]) {
      inputs[name].forEach((input, i) => {
        if (input !== document.activeElement) input.value = shown()[name][i];
      });
    }
    const { q, k, v } = shown();
    const i = Math.max(0, k.findIndex((x) => x));
    const told = {
      decay: `every number of S is multiplied by e⁻ˢ = ${number(Math.exp(-s))}.`,
      write: `k vᵀ is added: S${SUBSCRIPT[i]}₁ gains k${SUBSCRIPT[i]} · v₁ = ${number(k[i] * v[0])}.`,
      read: out && `q weighs the rows of S: o = (${out.map((x) => number(x)).join(", ")}) for q = (${q.map((x) => number(x)).join(", ")}).`,
    };
    if (begun) result.say(strong(`Token ${token + 1}, ${phase}`), `: ${told[phase]}`);
    else result.say("The memory is empty. Step to let token 1 in.");
  }

  const head = (text) => el("th", { scope: "col" }, text);
  place.replaceChildren(
    row(
      button("Step", () => { stop(); forward(); }), play, back,
      button("Start again", () => { stop(); past = [start()]; draw(); }),
      slider("Decay e⁻ˢ", { min: 0.05, max: 1, step: 0.05, value: 0.5, say: (x) => `${number(x)}, s = ${number(Math.abs(Math.log(x)))}` },
        (keep) => { s = Math.abs(Math.log(keep)); }),
    ),
    el("p", { class: "terms" }, ...terms),
    el("div", { class: "beside" }, el("table", { class: "machine" },
      el("caption", {}, "Rows belong to k and q, columns to v and o"),
      el("thead", {},
        el("tr", {}, el("td"), ...[...SUBSCRIPT].map((m) => head(`v${m}`)), el("td")),
        el("tr", { class: "v" }, head("k"), ...inputs.v.map((input) => el("td", {}, input)), head("q"))),
      el("tbody", {}, ...cells.map((line, i) => el("tr", {},
        el("td", { class: "k" }, inputs.k[i]), ...line, el("td", { class: "q" }, inputs.q[i])))),
      el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "o"), ...outs, el("td")))),
    result),
  );
  draw();
}
