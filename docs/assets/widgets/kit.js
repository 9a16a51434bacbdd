// What all widgets are made of: elements, sliders, buttons, numbers in words, and a voice for those who listen.

const SVG = new Set(["svg", "g", "circle", "line", "path", "rect", "text"]);

/** Make an element with attributes; a name that begins with "on" is an event's. */
export function el(tag, attributes = {}, ...children) {
  const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A labelled slider that says its value in words; `move(value)` sets it from outside. */
export function slider(label, { min, max, step = 1, value, say = String }, change) {
  const input = el("input", { type: "range", min, max, step, value });
  const shown = el("span", { class: "shown", "aria-hidden": "true" });
  const tell = () => {
    shown.textContent = say(+input.value);
    input.setAttribute("aria-valuetext", say(+input.value));
  };
  input.addEventListener("input", () => { tell(); change(+input.value); });
  tell();
  const node = el("label", { class: "slider" }, el("span", {}, label), input, shown);
  node.move = (to) => { input.value = to; tell(); };
  return node;
}

export function button(label, press) {
  return el("button", { type: "button", onclick: press }, label);
}

export function row(...children) {
  return el("div", { class: "controls" }, ...children);
}

/** A line of results, read aloud when it has been quiet for a moment, not at every move of a slider. */
export function voice() {
  const seen = el("p", { class: "result", "aria-hidden": "true" });
  const heard = el("p", { class: "heard", role: "status" });
  let wait;
  const node = el("div", {}, seen, heard);
  node.say = (...words) => {
    seen.replaceChildren(...words);
    clearTimeout(wait);
    const tell = () => { heard.textContent = seen.textContent; };
    if (heard.textContent) wait = setTimeout(tell, 400);
    else tell(); // the first line is part of the page, no news
  };
  return node;
}

export function strong(text) {
  return el("strong", {}, text);
}

/** A number in words: three significant digits, thousands apart, a true minus. */
export function number(x, digits = 3) {
  if (x !== 0 && Math.abs(x) < 1e-4) return power(x);
  return x.toLocaleString("en", { maximumSignificantDigits: digits }).replace("-", "−");
}

/** 1.2e-16 → 1.2·10⁻¹⁶ */
export function power(x) {
  if (x === 0) return "0";
  const [digits, exponent] = x.toExponential(1).split("e");
  const raised = [...exponent.replace("+", "")].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
  return `${digits.replace("-", "−")}·10${raised}`;
}

/** Bytes in words: 293601280 → 280 MiB. */
export function bytes(n) {
  const step = Math.min(4, Math.floor(Math.log2(Math.max(n, 1)) / 10));
  return `${number(n / 1024 ** step, 4)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

/** Colour a cell by its value: 0 is blank, the sign chooses the colour, `most` is the fullest. */
export function heat(node, value, most) {
  const share = most ? Math.min(1, Math.abs(value) / most) : 0;
  node.style.setProperty("--heat", share.toFixed(3));
  node.style.setProperty("--hue", value < 0 ? "var(--cool)" : "var(--warm)");
}
