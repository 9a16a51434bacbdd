"""Draw the whole model in one map: `python docs/figures/model.py` writes two layouts of the same five panels.

Plain SVG text, no drawing library, so that the same bytes come out everywhere. The pages paste the files in,
where the colours follow the site's theme; a file opened alone follows the system's.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "figures"
API = "../reference/numpy/#minimax_numpy."  # as seen from the page that shows the map: entry and source of a function
PATH = "../path/"  # … and the page that explains a panel
POINT = (
    "MiniMax-Text-01 in one map. Token ids are embedded, pass ten times through seven lightning layers and one softmax "
    "layer, a last norm and the head. In a layer, what bypasses attention and experts is the normed value times alpha. "
    "Lightning attention keeps one state of constant size a head; softmax attention keeps every key and value; "
    "two of 32 experts serve a token."
)
STYLE = """
.map{--ink:var(--md-default-fg-color,#24292f);--soft:var(--md-default-fg-color--light,#6b7280);
--hot:var(--twin-accent,#d2622a);font:13px var(--md-text-font-family,system-ui,sans-serif);display:block;width:100%}
.map text{fill:var(--ink);text-anchor:middle}.map .title{font-weight:700;font-size:14px;text-anchor:start}
.map a .title{text-decoration:underline;text-decoration-color:var(--hot);text-underline-offset:3px}
.map .soft{fill:var(--soft);font-size:11px}.map .small{font-size:11px}
.map .end{text-anchor:end}.map .hot{fill:var(--hot)}.map .on{font-weight:600}
.map .math{font:14.5px KaTeX_Main,Georgia,serif}.map .sub{font-size:10px}
.map rect,.map path,.map circle{fill:none;stroke:var(--soft);stroke-width:1.2}.map a:hover rect{stroke-width:2.2}
.map .frame{stroke-dasharray:2 4;opacity:.7}.map .lit{fill:var(--hot);fill-opacity:.14;stroke:var(--hot)}
.map .line{stroke:var(--hot)}.map .tip{fill:var(--soft);stroke:none}.map .line.tip{fill:var(--hot)}
.map .zoom{fill:var(--soft);fill-opacity:.07;stroke:none}@media(prefers-color-scheme:dark){
.map{--ink:var(--md-default-fg-color,#d5d9e0);--soft:var(--md-default-fg-color--light,#9aa3b0)}}
""".replace("\n", "")


def text(x, y, words, style=""):
    return f'<text x="{x}" y="{y}" class="{style}">{words}</text>' if style else f'<text x="{x}" y="{y}">{words}</text>'


def title(words, page):
    """A panel's name, which opens its page."""
    return f'<a href="{PATH}{page}/">{text(0, 14, words, "title")}</a>'


def box(x, y, w, h, words, note="", lit=False, to="", math=False):
    """A part: its name, a note under it, and the entry of the reference that it links to."""
    middle, line = x + w / 2, y + h / 2 + (4.5 if not note else -2.5)
    shape = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" class="{"lit" if lit else ""}"/>'
    words = text(middle, line, words, "math" if math else "")
    words += text(middle, line + 15, note, "soft") if note else ""
    return f'<a href="{API}{to}">{shape}{words}</a>' if to else shape + words


def sub(letter, index, rest=""):
    """A letter with its index below the line."""
    return f'{letter}<tspan dy="3" class="sub">{index}</tspan><tspan dy="-3">{rest}</tspan>'


def flow(*points, lit=False, tip=True):
    """A line through the points, with an arrow's tip at the last."""
    kind = "line" if lit else ""
    path = f'<path d="M{" L".join(f"{x} {y}" for x, y in points)}" class="{kind}"/>'
    if not tip:
        return path
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    corners = (x, y), (x - 6 * dx - 3.5 * dy, y - 6 * dy - 3.5 * dx), (x - 6 * dx + 3.5 * dy, y - 6 * dy + 3.5 * dx)
    return path + f'<path d="M{" L".join(f"{a} {b}" for a, b in corners)} Z" class="{kind} tip"/>'


def join(x, y, sign):
    return f'<circle cx="{x}" cy="{y}" r="10"/>' + text(x, y + 4.5, sign)


def model():
    """160 × 460: ids in, logits out."""
    parts = [title("The model", "one-in-eight"), text(74, 46, "token ids"), text(132, 46, "B T", "soft")]
    parts += [flow((74, 54), (74, 70)), box(14, 70, 120, 34, "embedding", to="model.MiniMaxModel")]
    parts += [text(150, 91, "D", "soft"), flow((74, 104), (74, 134))]
    parts += ['<rect x="6" y="122" width="136" height="206" rx="8" class="frame"/>', text(153, 230, "×10", "on")]
    for i in range(8):
        kind = "lightning" if i < 7 else "softmax"
        parts.append(box(18, 134 + 23 * i, 112, 19, kind, lit=i < 7, to="layers.decoder_layer"))
    parts += [flow((74, 314), (74, 344)), box(14, 344, 120, 28, "RMSNorm", to="ops.norms.rms_norm")]
    parts += [flow((74, 372), (74, 388)), box(14, 388, 120, 34, "head", to="model.MiniMaxForCausalLM")]
    parts += [flow((74, 422), (74, 438))]
    return "".join([*parts, text(74, 454, "logits"), text(132, 454, "B T V", "soft")])


def layer():
    """180 × 460: the stream runs down the left, the scaled shortcut down the right."""
    parts = [title("A layer", "residuals"), text(64, 46, "x", "math"), flow((64, 54), (64, 70))]
    for y, name, note, to in (
        (70, "attention", "lightning or softmax", "layers.lightning_self_attention"),
        (258, "experts", "2 of 32", "layers.sparse_moe"),
    ):
        n, a = ("n₁", "α") if y == 70 else ("n₂", "α")
        parts += [box(4, y, 120, 28, "RMSNorm", to="ops.norms.rms_norm"), flow((64, y + 28), (64, y + 62))]
        parts += [flow((64, y + 44), (152, y + 44), (152, y + 136), (75, y + 136), lit=True)]
        parts += [f'<circle cx="64" cy="{y + 44}" r="2.5" class="line tip"/>', text(50, y + 48, n, "math")]
        parts += [text(166, y + 94, f"{a} {n}", "math hot"), box(4, y + 62, 120, 44, name, note, to=to)]
        parts += [flow((64, y + 106), (64, y + 125)), text(54, y + 120, "β", "math"), join(64, y + 136, "+")]
        parts += [flow((64, y + 146), (64, y + 188 if y == 70 else y + 180))]
    return "".join([*parts, text(64, 454, "x, for the next layer")])


def lightning():
    """300 × 400: decay, write, read; then a norm and a gate."""
    parts = [title("Lightning attention", "memory"), text(300, 14, "7 layers in 8", "soft end")]
    parts += [text(150, 46, "n₁", "math"), flow((150, 54), (150, 62), (91, 62), (91, 78))]
    parts += [flow((150, 62), (247, 62), (247, 78))]
    parts += [box(6, 78, 170, 28, "silu(" + sub("W", "qkv", " n₁)"), math=True, to="ops.projections.split_qkv")]
    parts += [box(196, 78, 102, 28, "σ(" + sub("W", "gate", " n₁)"), math=True, to="ops.pointwise.output_gate")]
    for x, name in ((36, "q"), (91, "k"), (146, "v")):
        parts += [flow((x, 106), (x, 136)), text(x + 9, 124, name, "math")]
    parts += [f'<a href="{API}ops.lightning.lightning_attention_chunked">']
    parts += ['<rect x="6" y="136" width="170" height="84" rx="6" class="lit"/>']
    parts += [text(91, 165, "S ← e⁻ˢ S + k vᵀ", "math"), text(91, 188, "o = Sᵀ q", "math")]
    parts += [text(91, 209, "d × e numbers, always", "small"), "</a>"]
    parts += [flow((91, 220), (91, 244)), box(6, 244, 170, 28, "RMSNorm, all heads", to="ops.norms.inner_norm")]
    parts += [flow((91, 272), (91, 293)), join(91, 304, "×"), flow((247, 106), (247, 304), (102, 304))]
    parts += [flow((91, 314), (91, 334)), box(6, 334, 170, 28, sub("W", "out"), math=True, to="ops.projections.linear")]
    return "".join([*parts, flow((91, 362), (91, 382))])


def softmax():
    """300 × 300: turn, look up, mix."""
    parts = [title("Softmax attention", "lookup"), text(300, 14, "1 layer in 8", "soft end")]
    parts += [text(150, 46, "n₁", "math"), flow((150, 54), (150, 78)), flow((150, 62), (46, 62), (46, 78))]
    parts += [flow((150, 62), (254, 62), (254, 78))]
    for x, name, heads in ((6, "q", "64 heads"), (110, "k", "8 heads"), (214, "v", "8 heads")):
        parts.append(box(x, 78, 80, 38, sub("W", name, " n₁"), heads, math=True, to="ops.projections.split_heads"))
    parts += [flow((46, 116), (46, 130)), flow((150, 116), (150, 130)), flow((254, 116), (254, 182))]
    parts += [box(6, 130, 184, 36, "rotary", "64 of 128 channels", to="ops.rotary.apply_rotary")]
    parts += [flow((46, 166), (46, 218)), flow((150, 166), (150, 182))]
    for x in (110, 214):  # what is kept: a slot a token
        for i in range(7):
            parts.append(f'<rect x="{x + 11 * i}" y="182" width="8" height="18" rx="2" class="{"lit" * (i == 6)}"/>')
        parts.append(flow((x + 40, 200), (x + 40, 218)))
    parts.append(text(202, 214, "a slot a token", "soft"))
    parts.append(box(6, 218, 288, 30, "softmax(q kᵀ / √d) v", math=True, to="ops.attention.softmax_attention"))
    parts += [
        flow((150, 248), (150, 264)),
        box(65, 264, 170, 28, sub("W", "o"), math=True, to="ops.projections.linear"),
    ]
    return "".join([*parts, flow((150, 292), (150, 310))])


def experts():
    """300 × 240: a router, eight of the 32 experts, two of them at work."""
    parts = [title("Experts", "experts"), text(300, 14, "in every layer", "soft end"), text(150, 46, "n₂", "math")]
    parts += [flow((150, 54), (150, 68)), box(75, 68, 150, 28, "router: top 2", to="ops.experts.route")]
    for place, name in enumerate(("", "", "i", "", "", "j", "", "")):
        x, side = 20 + 37 * place, 1 if name == "j" else -1
        parts += [flow((150, 96), (x, 132), lit=bool(name), tip=False)]
        parts += [box(x - 14, 132, 28, 28, name, lit=bool(name), math=True, to="ops.experts.swiglu")]
        if name:
            parts += [flow((x, 160), (x, 190), (149 + 11 * side, 190), lit=True)]
            parts += [text(x + 14 * side, 180, sub("w", name), "math")]
    parts += [join(149, 190, "+"), flow((149, 200), (149, 218))]
    return "".join([*parts, text(149, 234, "weights sum to 1", "soft")])


def wedge(x0, top0, bottom0, x1, top1, bottom1):
    """A box seen from nearer."""
    return f'<path d="M{x0} {top0} L{x1} {top1} L{x1} {bottom1} L{x0} {bottom0} Z" class="zoom"/>'


def sheet(width, height, name, *placed):
    """Wedges, and panels at their places."""
    groups = (p if isinstance(p, str) else f'<g transform="translate({p[1]} {p[2]})">{p[0]()}</g>' for p in placed)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="map {name}" role="group" '
        f'aria-label="{POINT}"><style>{STYLE}</style>{"".join(groups)}</svg>\n'
    )


def figures():
    """File name → content."""
    wide = sheet(
        740, 730, "wide",
        wedge(130, 134, 314, 200, 0, 460), wedge(324, 132, 176, 440, 0, 720),
        (model, 0, 0), (layer, 200, 0), (experts, 60, 486), (lightning, 440, 0), (softmax, 440, 412),
    )  # fmt: skip
    narrow = sheet(
        360, 1514, "narrow",
        (model, 0, 0), (layer, 180, 0), (lightning, 30, 500), (softmax, 30, 920), (experts, 30, 1270),
    )  # fmt: skip
    return {"model.svg": wide, "model-narrow.svg": narrow}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, svg in figures().items():
        (FOLDER / file).write_text(svg, encoding="utf-8", newline="\n")
