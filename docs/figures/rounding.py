"""Draw error against length, by form and by type: `python docs/figures/rounding.py`.

The numbers lie in rounding.json, for how a machine's matrix product adds up differs in the last bits. With
``--measure`` they are measured again, from the reference, in a few seconds: four heads (the first, two between, the
last) of layer 78 of 80, 16 channels each, SiLU of normal numbers, the mean of five seeds.
"""

import json
import sys
from pathlib import Path

import numpy as np
from kit import Plot, sheet, text, write
from minimax_numpy import ops
from minimax_numpy.trace import round_to

FILE = Path(__file__).with_name("rounding.json")
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SEEDS = 5
CHUNK = 64
CURVES = {  # name: (style, at which length its name stands, how far below the line)
    "recurrent, state in bfloat16": ("hot dashed", 1024, -26),
    "chunked, state in bfloat16": ("cool dashed", 4096, -9),
    "bfloat16 in and out": ("ink", 4096, 18),
    "recurrent": ("hot thick", 4096, -12),
    "direct": ("", 512, -7),
    "chunked": ("cool thick", 2048, 26),
}


def state_rounded(q, k, v, slopes, step):
    """Run `step` positions at a time, in the form that they call for; keep the state between in bfloat16."""
    run = ops.lightning_attention_recurrent if step == 1 else ops.lightning_attention_chunked
    state, out = None, []
    for t in range(0, q.shape[2], step):
        part, state = run(*(x[:, :, t : t + step] for x in (q, k, v)), slopes, state)
        state = round_to(state, "bfloat16")
        out.append(part)
    return np.concatenate(out, axis=2)


def narrow(q, k, v, slopes):
    """bfloat16 numbers in, the answer rounded to bfloat16; between them float32."""
    return round_to(ops.lightning_attention_chunked(q, k, v, slopes, chunk=CHUNK)[0], "bfloat16")


WAYS = {
    "recurrent, state in bfloat16": lambda *x: state_rounded(*x, step=1),
    "chunked, state in bfloat16": lambda *x: state_rounded(*x, step=CHUNK),
    "bfloat16 in and out": narrow,
    "recurrent": lambda *x: ops.lightning_attention_recurrent(*x)[0],
    "direct": lambda *x: ops.lightning_attention_direct(*x)[0],
    "chunked": lambda *x: ops.lightning_attention_chunked(*x, chunk=CHUNK)[0],
}


def errors(T, seeds=SEEDS):
    """The relative RMS error of each way against float64 on the same inputs, as a mean over seeds."""
    slopes = ops.decay_slopes(64, 78, 80)[[0, 21, 42, 63]]
    found = {name: 0.0 for name in WAYS}
    for seed in range(seeds):
        rng = np.random.default_rng([seed, T])
        x = [ops.silu(rng.standard_normal((1, 4, T, 16))).astype(np.float32) for _ in range(3)]
        for name, way in WAYS.items():
            given = [round_to(y, "bfloat16") for y in x] if "in and out" in name else x
            exact = ops.lightning_attention_chunked(*(y.astype(np.float64) for y in given), slopes)[0]
            off = way(*given, slopes).astype(np.float64) - exact
            found[name] += float(np.sqrt(np.mean(off**2) / np.mean(exact**2))) / seeds
    return found


def measure():
    """Write rounding.json."""
    rows = [errors(T) for T in LENGTHS]
    curves = {name: [float(f"{row[name]:.3g}") for row in rows] for name in WAYS}
    text = json.dumps({"lengths": LENGTHS, "errors": curves}, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8", newline="\n")


def figures():
    """File name → content."""
    measured = json.loads(FILE.read_text(encoding="utf-8"))
    lengths, found = measured["lengths"], measured["errors"]
    plot = Plot((lengths[0], lengths[-1]), (2e-8, 1), left=38, top=30, right=418, bottom=320, log="xy")
    xs = {T: f"{T:,}" for T in lengths[::2]}
    ys = {10.0**n: f"10{''.join('⁻' if c == '-' else '⁰¹²³⁴⁵⁶⁷⁸⁹'[int(c)] for c in str(n))}" for n in range(-7, 0)}
    parts = [plot.axes(xs, ys, "length T", "relative error of the output")]
    for u, name in ((2.0**-8, "u of bfloat16"), (2.0**-24, "u of float32")):
        x, y = plot.place(lengths[0], u)
        parts.append(plot.curve((lengths[0], lengths[-1]), (u, u), "dotted grid"))
        parts.append(text(x + 4, y - 4 if u > 1e-4 else y + 12, name, "soft"))
    for name, (style, T, below) in CURVES.items():
        parts.append(plot.curve(lengths, found[name], style))
        x, y = plot.place(T, found[name][lengths.index(T)])
        colour = style.split()[0] if style.startswith(("hot", "cool")) else ""
        parts.append(text(x, y + below, name, f"{colour} end"))
    last = {name: values[-1] for name, values in found.items()}
    label = (
        f"Error against length. After {lengths[-1]:,} tokens in float32 the recurrent form is {last['recurrent']:.0e} "
        f"off, the chunked one {last['chunked']:.0e}; with a state kept in bfloat16 they are "
        f"{last['recurrent, state in bfloat16']:.0%} and {last['chunked, state in bfloat16']:.1%} off. bfloat16 in "
        f"and out alone costs {last['bfloat16 in and out']:.1%} at any length."
    )
    return {"rounding.svg": sheet(440, 360, label, parts)}


if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure()
    write(figures())
