// What browse.py asks of every page: things that a reader would see and a test without a browser cannot.
// Defines audit(), which returns a list of [kind, what].
(() => {
  const AA = 4.5, AA_LARGE = 3;
  // Text whose fading is what it shows, or that is decoration by intent.
  const FADES_ON_PURPOSE = ".widget .fading, .headerlink, :disabled, [aria-disabled='true']";

  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const ink = canvas.getContext("2d", { willReadFrequently: true });
  const known = new Map();
  /** Any CSS colour as [r, g, b, alpha], 0 … 1. */
  function colour(css) {
    if (!known.has(css)) {
      const plain = css.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
      const wide = css.match(/^color\(srgb ([\d.e-]+) ([\d.e-]+) ([\d.e-]+)(?: \/ ([\d.e-]+))?\)$/);
      if (plain) known.set(css, [plain[1] / 255, plain[2] / 255, plain[3] / 255, +(plain[4] ?? 1)]);
      else if (wide) known.set(css, [+wide[1], +wide[2], +wide[3], +(wide[4] ?? 1)]);
      else {
        ink.clearRect(0, 0, 1, 1);
        ink.fillStyle = css;
        ink.fillRect(0, 0, 1, 1);
        known.set(css, [...ink.getImageData(0, 0, 1, 1).data].map((x) => x / 255));
      }
    }
    return known.get(css);
  }
  const over = ([r, g, b, a], under) => [r, g, b].map((x, i) => a * x + (1 - a) * under[i]);
  const light = (rgb) => rgb.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + [0.2126, 0.7152, 0.0722][i] * x, 0);
  const hex = (rgb) => `#${rgb.map((x) => Math.round(255 * x).toString(16).padStart(2, "0")).join("")}`;

  /** An element and its ancestors, outermost first, each with the opacity that it and those around it leave. */
  function around(element) {
    const chain = [];
    for (let at = element; at; at = at.parentElement) chain.unshift(at);
    let left = 1;
    return chain.map((at) => {
      const style = getComputedStyle(at);
      left *= +style.opacity;
      return { at, style, left };
    });
  }

  /** What lies behind a point of an element, and how much of the element's own ink is left. */
  function behind(element, x, y) {
    let rgb = [1, 1, 1], left = 1;
    for (const layer of around(element)) {
      left = layer.left;
      const [r, g, b, a] = colour(layer.style.backgroundColor);
      rgb = over([r, g, b, a * left], rgb);
      if (layer.at.tagName === "svg") {
        for (const shape of layer.at.querySelectorAll("rect, circle, ellipse, path, polygon")) {
          if (!(shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING)) break;
          const style = getComputedStyle(shape);
          if (style.fill === "none" || !shape.getScreenCTM()) continue;
          if (!shape.isPointInFill(new DOMPoint(x, y).matrixTransform(shape.getScreenCTM().inverse()))) continue;
          const [r, g, b, a] = colour(style.fill);
          rgb = over([r, g, b, a * style.fillOpacity * around(shape).at(-1).left], rgb);
        }
      }
    }
    return { rgb, left };
  }

  const name = (element) => {
    const one = (e) => e.tagName.toLowerCase() + (typeof e.className === "string" && e.className.trim() ? `.${e.className.trim().split(/\s+/).slice(0, 2).join(".")}` : "");
    return element.parentElement ? `${one(element.parentElement)} > ${one(element)}` : one(element);
  };

  function texts() {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      if (!node.data.trim() || node.parentElement.closest("script, style, noscript, template, title")) continue;
      found.push(node);
    }
    return found;
  }

  function shown(node) {
    if (!node.parentElement.checkVisibility({ visibilityProperty: true })) return null;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = [...range.getClientRects()].find((r) => r.width > 1 && r.height > 1);
    if (!box || box.right <= 0 || box.bottom + scrollY <= 0) return null; // off the page: for those who listen
    for (let at = node.parentElement; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.clipPath === "inset(50%)" || style.clip === "rect(0px, 0px, 0px, 0px)") return null;
    }
    return box;
  }

  function contrast() {
    const worst = new Map();
    for (const node of texts()) {
      const element = node.parentElement;
      if (element.closest(FADES_ON_PURPOSE)) continue;
      const box = shown(node);
      if (!box) continue;
      const style = getComputedStyle(element);
      const drawn = element instanceof SVGElement;
      const [r, g, b, a] = colour(drawn ? style.fill : style.color);
      const { rgb, left } = behind(element, box.x + box.width / 2, box.y + box.height / 2);
      if (left === 0) continue; // hidden until it is wanted
      const front = over([r, g, b, a * left * (drawn ? style.fillOpacity : 1)], rgb);
      const [low, high] = [light(front), light(rgb)].sort((p, q) => p - q);
      const ratio = (high + 0.05) / (low + 0.05), size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
      if (ratio < (large ? AA_LARGE : AA) - 0.005) {
        const key = `${name(element)} ${hex(front)} on ${hex(rgb)}`;
        if (!worst.has(key)) worst.set(key, `${ratio.toFixed(2)} : 1, ${key}, “${node.data.trim().slice(0, 30)}”`);
      }
    }
    return [...worst.values()].map((what) => ["contrast", what]);
  }

  function sideways() {
    const root = document.documentElement;
    if (root.scrollWidth <= root.clientWidth) return [];
    const wide = [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > root.clientWidth + 1);
    const inner = wide.find((e) => !wide.some((other) => other !== e && e.contains(other))) || document.body;
    return [["sideways", `the page is ${root.scrollWidth} px wide; ${name(inner)}, “${inner.textContent.trim().slice(0, 30)}”`]];
  }

  function formulas() {
    const told = [...document.querySelectorAll(".katex-error")].map((e) => ["formula", `an error: ${e.title || e.textContent}`]);
    for (const place of document.querySelectorAll(".arithmatex")) {
      if (!place.querySelector(".katex")) told.push(["formula", `not set: ${place.textContent.slice(0, 40)}`]);
    }
    for (const node of texts()) {
      if (node.parentElement.closest("code, pre, .katex, textarea")) continue;
      const raw = node.data.match(/\$\$|\\[([].{0,20}|\$[^$\s][^$\n]*\$|\\(?:frac|sum|mathrm|text|sqrt)\b/);
      if (raw && shown(node)) told.push(["formula", `left raw: ${node.data.trim().slice(0, 40)}`]);
    }
    return told;
  }

  window.audit = () => [...sideways(), ...formulas(), ...contrast()];
})();
