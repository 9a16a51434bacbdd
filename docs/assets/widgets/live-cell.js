// Live cell: the reference's own ops, run in the page. NumPy for the browser is fetched when the button is pressed, and
// only then; where it cannot be had, the cell says so in a line and goes.
import { button, el, row, voice } from "./kit.js";

export const RUNTIME = "https://cdn.jsdelivr.net/pyodide/v0.28.3/full/pyodide.mjs";

/** The reference's files that it runs, as they are published beside this page. */
export const FILES = ["shapes.py", ...["__init__", "attention", "experts", "lightning", "losses", "norms", "packing", "pointwise", "projections", "rotary"].map((name) => `ops/${name}.py`)];

/** Shapes in signatures are read by people here, so any will do; the package has its ops and no more. */
export const PREPARE = `
import os, sys, types
shape = type("Shape", (), {"__class_getitem__": classmethod(lambda cls, axes: object)})
jaxtyping = types.ModuleType("jaxtyping")
jaxtyping.Float = jaxtyping.Int = jaxtyping.Bool = shape
sys.modules["jaxtyping"] = jaxtyping
sys.path.insert(0, os.getcwd())
`;

export const CODE = `import numpy as np
from minimax_numpy import ops

one = np.ones((1, 1, 3, 1))  # q and k: three tokens, one channel
v = np.array([8.0, 4.0, 2.0]).reshape(1, 1, 3, 1)
half = np.array([np.log(2)])  # the memory halves at each token
out, state = ops.lightning_attention_recurrent(one, one, v, half)
print(out.ravel())
`;

/** The runtime with the reference's ops in it. */
async function runtime(say) {
  say("Fetching the runtime …");
  const { loadPyodide } = await import(RUNTIME);
  const python = await loadPyodide();
  await python.loadPackage("numpy");
  python.FS.mkdirTree("minimax_numpy/ops");
  python.FS.writeFile("minimax_numpy/__init__.py", "");
  for (const file of FILES) {
    const answer = await fetch(new URL(`../live/${file}`, import.meta.url));
    if (!answer.ok) throw new Error(`${file} did not arrive`);
    python.FS.writeFile(`minimax_numpy/${file}`, await answer.text());
  }
  python.runPython(PREPARE);
  return python;
}

export function mount(place) {
  const code = el("textarea", { rows: 9, spellcheck: "false", "aria-label": "Python code" });
  code.value = CODE;
  const printed = el("pre", { class: "printed" }), result = voice();
  let python = null, busy = false;
  const say = (words) => result.say(words);
  const run = button("Run", async () => {
    if (busy) return;
    busy = true;
    try {
      python ??= await runtime(say);
    } catch {
      place.replaceChildren(el("p", {}, "The runtime could not be had from here; what the code prints stands above."));
      return;
    }
    const told = [];
    python.setStdout({ batched: (line) => told.push(line) });
    say("Running …");
    try {
      python.runPython(code.value);
      say("Done.");
    } catch (error) {
      told.push(error.message.trim().split("\n").at(-1));
      say("It raised an exception.");
    }
    printed.textContent = told.join("\n");
    busy = false;
  });
  place.replaceChildren(code, row(run), result, printed);
  say("Run fetches Python and NumPy for the browser from cdn.jsdelivr.net, once; nothing is fetched before.");
}
