"""Write the slides from their text: `python docs/teach/make_slides.py`.

lecture.txt is Markdown with three habits. A line `---` begins a new slide. What follows a line `notes 3 min` is for the
speaker. A paragraph that is an image is a figure of `docs/assets/figures`, pasted in with its colours. A block
```` ```pycon check ```` is run by the tests and not shown: it proves what the slide says.

lecture.html holds everything that it needs, formulas as MathML included; beside the site's KaTeX it sets them with
that.
"""

import html
import re
from pathlib import Path
from typing import NamedTuple

import markdown
from py_mini_racer import MiniRacer

HERE = Path(__file__).parent
ASSETS = HERE.parent / "assets"

LIGHT = {
    "--md-default-bg-color": "#fff",
    "--md-default-fg-color": "#24292f",
    "--md-default-fg-color--light": "#6b7280",
    "--md-default-fg-color--lightest": "#e3e6ea",
    "--md-code-bg-color": "#f5f6f8",
    "--twin-accent": "#b5480c",
    "--twin-cool": "#1d6f8c",
}
DARK = {
    "--md-default-bg-color": "#1b1e27",
    "--md-default-fg-color": "#e0e3ea",
    "--md-default-fg-color--light": "#9aa3b0",
    "--md-default-fg-color--lightest": "#363b47",
    "--md-code-bg-color": "#262a35",
    "--twin-accent": "#f09a5e",
    "--twin-cool": "#5fb0cf",
}


class Slide(NamedTuple):
    """One slide; texts are Markdown."""

    shown: str
    figures: list[tuple[str, str]]  # file and caption
    minutes: int
    notes: str
    code: str  # all examples, shown or not, as a doctest

    @property
    def title(self) -> str:
        return re.search(r"^#+ (.*)", self.shown, re.MULTILINE)[1]


FIGURE = re.compile(r"^!\[(.*)\]\((\S+\.svg)\)\n", re.MULTILINE)
HIDDEN = re.compile(r"^```pycon check\n.*?^```\n", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```pycon.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def slides(text: str) -> list[Slide]:
    """The slides of a text."""
    found = []
    for part in re.split(r"^---\n", text, flags=re.MULTILINE):
        shown, minutes, notes = re.split(r"^notes (\d+) min\n", part, flags=re.MULTILINE)
        figures = [(name, caption) for caption, name in FIGURE.findall(shown)]
        code = "\n".join(CODE.findall(shown))
        found.append(Slide(FIGURE.sub("", HIDDEN.sub("", shown)).strip(), figures, int(minutes), notes.strip(), code))
    return found


class Formulas:
    """Formulas in a text, set as MathML; they are taken out while Markdown works."""

    def __init__(self, engine: MiniRacer):
        self.engine, self.set = engine, []

    def take(self, text: str) -> str:
        """Leave a mark for each formula."""
        return re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", self.mark, text, flags=re.DOTALL)

    def mark(self, found: re.Match) -> str:
        options = {"output": "mathml", "displayMode": bool(found[1]), "throwOnError": True}
        made = self.engine.call("katex.renderToString", (found[1] or found[2]).strip(), options)
        tag = "div" if found[1] else "span"
        self.set.append(f'<{tag} class="tex">{re.search(r"<math.*</math>", made, re.DOTALL)[0]}</{tag}>')
        return f"formula{len(self.set) - 1}x"

    def put(self, text: str) -> str:
        """The formulas back in their places."""
        text = re.sub(r"<p>(formula\d+x)</p>", r"\1", text)
        return re.sub(r"formula(\d+)x", lambda mark: self.set[int(mark[1])], text)


def rendered(text: str, formulas: Formulas) -> str:
    """HTML of a piece of Markdown."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)  # no formulas in code
    text = "".join(part if part.startswith("```") else formulas.take(part) for part in parts)
    return formulas.put(markdown.markdown(text, extensions=["tables", "fenced_code"]))


def figure(name: str, caption: str) -> str:
    """A figure, pasted in."""
    svg = (ASSETS / "figures" / name).read_text(encoding="utf-8").strip()
    return f"<figure>{svg}<figcaption>{html.escape(caption, quote=False)}</figcaption></figure>"


def section(number: int, slide: Slide, formulas: Formulas) -> str:
    """The HTML of a slide."""
    figures = "".join(figure(*each) for each in slide.figures)
    words = re.sub(r"^#+ .*\n?", "", slide.shown, flags=re.MULTILINE).strip()
    first = number == 1
    kind = "first" if first else "both" if figures and words else "alone" if figures else "told"
    heading = f"<h{1 if first else 2}>{html.escape(slide.title, quote=False)}</h{1 if first else 2}>"
    body = f'<div class="words">{rendered(words, formulas)}</div>' if words else ""
    return (
        f'<section id="{number}" class="{kind}" data-minutes="{slide.minutes}">\n{heading}\n'
        f'<div class="body">{body}{figures}</div>\n<aside>{rendered(slide.notes, formulas)}</aside>\n</section>\n'
    )


def colours(values: dict[str, str]) -> str:
    return "".join(f"{name}:{colour};" for name, colour in values.items())


STYLE = """
:root{LIGHT--md-text-font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
@media (prefers-color-scheme:dark){:root:not(.light){DARK}}
:root.dark{DARK}
*{box-sizing:border-box}
body{margin:0;background:var(--md-default-bg-color);color:var(--md-default-fg-color);
font:16px/1.45 var(--md-text-font-family)}
section{position:relative;padding:2.2em 3em 2em;min-height:100vh;display:flex;flex-direction:column;
border-bottom:1px solid var(--md-default-fg-color--lightest)}
h1,h2{margin:0 0 .6em;line-height:1.15;letter-spacing:-.02em}
h1{font-size:2.4em}h2{font-size:1.6em}
.body{flex:1;display:flex;flex-direction:column;justify-content:safe center;min-height:0}
.first{justify-content:safe center}.first .body{flex:none}.first p{color:var(--md-default-fg-color--light)}
.both .body{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1.2fr);gap:1.5em;align-items:center}
p,ul,ol,table,pre{margin:.5em 0}strong{color:var(--twin-accent)}a{color:var(--twin-accent)}
li{margin:.25em 0}
table{border-collapse:collapse}th,td{padding:.3em .9em;text-align:left;
border-bottom:1px solid var(--md-default-fg-color--lightest)}
pre{background:var(--md-code-bg-color);padding:.7em 1em;border-radius:.3em;overflow:auto;
font-size:.72em;line-height:1.5}
figure{margin:0;min-height:0;display:flex;flex-direction:column;align-items:center}
figure svg{max-width:none!important;width:100%;max-height:68vh}
.alone figure svg{max-height:66vh}
figcaption{font-size:.7em;color:var(--md-default-fg-color--light);margin-top:.6em}
.tex{font-size:1.05em}div.tex{margin:.7em 0;overflow:auto hidden;text-align:center}
div.tex .katex-display{margin:0}
aside{display:none;font-size:.62em;color:var(--md-default-fg-color--light);border-top:1px solid
var(--md-default-fg-color--lightest);padding-top:.6em;margin-top:1em}
.notes aside{display:block}
nav{display:none}
.shown section{position:fixed;inset:0;border:0;min-height:0;overflow:auto;font-size:min(2.25vw,4vh);visibility:hidden}
.shown section.now{visibility:visible}
.shown nav{display:flex;gap:.3em;position:fixed;right:.8em;bottom:.6em;font-size:14px;align-items:center;
color:var(--md-default-fg-color--light)}
nav button{font:inherit;color:inherit;background:none;border:0;padding:.3em .6em;cursor:pointer}
@media (max-width:40em){.shown section{font-size:16px;padding:1.4em 1.2em 3em}
.both .body{display:block}h1{font-size:1.7em}h2{font-size:1.35em}table{font-size:.85em}
th,td{padding:.3em .5em}.body{justify-content:flex-start}}
@media print{:root,:root.dark,:root:not(.light){LIGHT}@page{size:338mm 190mm;margin:0}
body{-webkit-print-color-adjust:exact;print-color-adjust:exact}
section,.shown section{position:relative;visibility:visible;font-size:21px;width:338mm;height:189mm;min-height:0;
break-after:page;border:0;overflow:hidden;padding:2.2em 3em 2em}
.both .body{display:grid}.shown nav{display:none}figure svg{max-height:118mm}.alone figure svg{max-height:128mm}
.notes figure svg{max-height:95mm}.notes .alone figure svg{max-height:110mm}}
"""

SCRIPT = """
const slides = [...document.querySelectorAll("section")], nav = document.querySelector("nav");
const minutes = slides.map((slide) => +slide.dataset.minutes), root = document.documentElement;
let now = 0, speaker = null;
const told = (i) => minutes.slice(0, i).reduce((a, b) => a + b, 0);
function show(i) {
  now = Math.max(0, Math.min(slides.length - 1, i));
  slides.forEach((slide, k) => slide.classList.toggle("now", k === now));
  nav.querySelector("span").textContent = `${now + 1} / ${slides.length}`;
  history.replaceState(null, "", `#${now + 1}`);
  if (speaker && !speaker.closed) {
    const next = slides[now + 1] ? slides[now + 1].querySelector("h1, h2").textContent : "the end";
    speaker.document.title = "Notes";
    speaker.document.body.innerHTML = `<p>${now + 1} / ${slides.length} · ${told(now)} to ${told(now + 1)} of ` +
      `${told(slides.length)} min · next: ${next}</p><h2>${slides[now].querySelector("h1, h2").textContent}</h2>` +
      slides[now].querySelector("aside").innerHTML;
  }
}
const keys = {
  ArrowRight: () => show(now + 1), PageDown: () => show(now + 1), " ": () => show(now + 1),
  ArrowLeft: () => show(now - 1), PageUp: () => show(now - 1), Home: () => show(0), End: () => show(slides.length - 1),
  n: () => document.body.classList.toggle("notes"),
  d: () => {
    const dark = root.classList.contains("dark") ||
      (!root.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
    root.classList.toggle("dark", !dark);
    root.classList.toggle("light", dark);
  },
  f: () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen()),
  s: () => {
    speaker = open("", "notes", "width=700,height=500");
    if (speaker) speaker.document.body.style.font = "18px/1.5 system-ui, sans-serif";
    show(now);
  },
};
addEventListener("keydown", (event) => {
  const pressed = keys[event.key];
  if (!pressed || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  pressed();
});
addEventListener("hashchange", () => show(parseInt(location.hash.slice(1) || "1") - 1));
for (const button of nav.querySelectorAll("button")) button.onclick = () => keys[button.dataset.key]();
document.body.classList.add("shown");
show(parseInt(location.hash.slice(1) || "1") - 1);
addEventListener("load", () => {
  if (!window.katex) return; // MathML stays
  for (const place of document.querySelectorAll(".tex")) {
    const tex = place.querySelector("annotation").textContent;
    katex.render(tex, place, { displayMode: place.tagName === "DIV", throwOnError: false });
  }
});
"""

PAGE = """<!doctype html>
<!-- Written by make_slides.py from lecture.txt: change that, not this. -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="../assets/katex/katex.min.css">
<script defer src="../assets/katex/katex.min.js"></script>
<style>STYLE</style>
</head>
<body>
<main>
SECTIONS</main>
<nav aria-label="Slides"><button data-key="ArrowLeft" aria-label="Back">‹</button><span></span>
<button data-key="ArrowRight" aria-label="On">›</button></nav>
<script>SCRIPT</script>
</body>
</html>
"""


def page(text: str) -> str:
    """The whole file."""
    made = slides(text)
    with MiniRacer() as engine:
        engine.eval("var window = this, self = this;")
        engine.eval((ASSETS / "katex" / "katex.min.js").read_text(encoding="utf-8"))
        sections = "".join(section(i, slide, Formulas(engine)) for i, slide in enumerate(made, 1))
    style = STYLE.replace("LIGHT", colours(LIGHT)).replace("DARK", colours(DARK)).replace("\n", "")
    parts = {"TITLE": html.escape(made[0].title), "STYLE": style, "SECTIONS": sections, "SCRIPT": SCRIPT}
    return re.sub("TITLE|STYLE|SECTIONS|SCRIPT", lambda name: parts[name[0]], PAGE)


if __name__ == "__main__":
    made = page((HERE / "lecture.txt").read_text(encoding="utf-8"))
    (HERE / "lecture.html").write_text(made, encoding="utf-8", newline="\n")
