"""The browser's eye sees what is wrong: a page with one fault of each kind, where there is a browser to look with."""

import shutil
from pathlib import Path

import browse
import browse_widgets
import pytest

ASSETS = Path(__file__).parents[2] / "docs" / "assets"
PROGRAM = next(filter(shutil.which, browse.CHROMIUM), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROGRAM, reason="there is no Chromium here")]

HEAD = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<script>
const follow = () => { document.body.dataset.mdColorScheme = night.matches ? "slate" : "default"; };
const night = matchMedia("(prefers-color-scheme: dark)");
addEventListener("DOMContentLoaded", follow);
night.onchange = follow;
</script>"""
FAULTS = {
    "an error of a script": ("<script>nothing.here</script>", "console", "nothing is not defined"),
    "a word to the console": ("<script>console.error('bad luck')</script>", "console", "bad luck"),
    "a file that is not there": ("<img src='gone.png' alt=''>", "request", "404"),
    "somebody else's file": ("<img src='http://127.0.0.1:9/x.png' alt=''>", "request", "leaves the site"),
    "a wide table": ("<div style='width: 500px'>wide</div>", "sideways", "508 px wide"),
    "an unset formula": ("<p>so $x^2$ it is</p>", "formula", "left raw"),
    "an empty formula": ("<span class=arithmatex>x</span>", "formula", "not set"),
    "a broken formula": ("<span class=katex-error title='no such \\q'>q</span>", "formula", "no such"),
    "grey on grey": ("<p style='color: #888; background: #ccc'>pale</p>", "contrast", "#888888 on #cccccc"),
    "half-clear ink": ("<p style='opacity: .4'>pale</p>", "contrast", "#999999 on #ffffff"),
    "ink on a drawing": (
        "<svg width=90 height=30><rect width=90 height=30 fill='#777' /><text y=20 fill='#555'>on</text></svg>",
        "contrast", "#555555 on #777777",
    ),
    "always day": ("<script>addEventListener('load', () => { night.onchange = null; })</script>", "scheme", "follow"),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    opened = browse.Browser(PROGRAM)
    yield opened
    opened.close()


def found(browser, folder, body):
    (folder / "index.html").write_text(f"{HEAD}<body>{body}</body>", encoding="utf-8")
    with browse.served(folder) as site:
        return list(browse.read_pages(browse.Tab(browser, site), [""]))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(browser, tmp_path, name):
    body, kind, told = FAULTS[name]
    findings = found(browser, tmp_path, body)
    assert [f for f in findings if f[2] == kind and told in f[3]], findings


def test_a_good_page_is_left_alone(browser, tmp_path):
    body = "<h1>A page</h1><p style='color: #666'>with <a href='#'>a link</a> and a price of $5.</p>"
    assert found(browser, tmp_path, body) == []


def test_a_finding_is_told_once(browser):
    told = browse.table([("a/", "light 390", "x", "y"), ("a/", "dark 390", "x", "y"), ("b/", "", "x", "y")])
    assert told.split("\n") == ["x              y", "               a/ and 1 more · dark 390, light 390"]


def driven(browser, folder, name, spoil=None):
    """What a driver finds on a page that holds one widget, a file of it spoiled or not."""
    shutil.copytree(ASSETS, folder / "assets")
    if spoil:
        stem, right, wrong = spoil
        file = folder / "assets" / "widgets" / f"{stem}.js"
        text = file.read_text(encoding="utf-8")
        assert text.count(right) == 1, f"{right} is not once in {file.name}"
        file.write_text(text.replace(right, wrong), encoding="utf-8")
    widget = f"<div class=widget data-widget={name}><svg class=drawn></svg></div>"
    load = "<script type=module src=assets/widgets/load.js></script>"
    style = "<link rel=stylesheet href=assets/extra.css>"
    (folder / "index.html").write_text(f"{HEAD}{style}<body>{widget}{load}</body>", encoding="utf-8")
    with browse.served(folder) as site:
        return list(browse.drive_widgets(browse.Tab(browser, site), [""]))


SPOILED = [  # one mistake in a widget's file: widget, file, the right words, the wrong ones
    ("decay-dial", "decay-dial", "(LAYERS - 1) + 1e-5", "LAYERS + 1e-5"),
    ("step-machine", "step-machine", "x + k[i] * v[j]", "x + k[j] * v[i]"),
    ("chunk-cutter", "chunk-cutter", "Math.exp(-s * (r + 1))", "Math.exp(-s * r)"),
    ("rounding-lens", "rounding-lens", "0x7fff + ((bits[0] >>> 16) & 1)", "0"),
    ("router", "router", "p[e] / sum", "p[e]"),
    ("layer-pattern", "layer-pattern", "return 4 * G * d * softmax * length", "return 2 * G * d * softmax * length"),
    ("bring-tensor", "tensor-files", "bytes.subarray(begin, begin + size)", "bytes.subarray(begin + 1, begin + size)"),
    ("calculator", "calculator", "4 * H * d * ((L - softmax) * d + softmax * n)", "4 * H * d * softmax * n"),
    ("calculator", "calculator", "if (H % G)", "if (H < G)"),
    ("calculator", "calculator", "if (K > E)", "if (K > E + 1)"),
    ("live-cell", "live-cell", "could not be had from here", "is on its way"),
]


@pytest.mark.parametrize("name", browse_widgets.DRIVERS)
def test_a_widget_says_what_the_reference_says(browser, tmp_path, name):
    assert driven(browser, tmp_path, name) == []


@pytest.mark.parametrize("name, file, right, wrong", SPOILED, ids=[f"{name}: {wrong}" for name, _, _, wrong in SPOILED])
def test_a_widget_with_a_mistake_is_found_out(browser, tmp_path, name, file, right, wrong):
    assert any(kind == name for _, _, kind, _ in driven(browser, tmp_path, name, (file, right, wrong)))


def test_a_cell_that_fetches_before_anybody_asks_is_found_out(browser, tmp_path):
    """Only its button may leave the site: the driver allows that one request, after the key is pressed."""
    right, wrong = "let python = null", 'fetch("http://127.0.0.1:9/x").catch(() => 0); let python = null'
    findings = driven(
        browser, tmp_path, "live-cell", ("live-cell", f"{right}, busy = false;", f"{wrong}, busy = false;")
    )
    assert any(kind == "request" and "leaves the site" in what for _, _, kind, what in findings), findings


def test_every_widget_is_spoiled_once():
    assert {name for name, *_ in SPOILED} == set(browse_widgets.DRIVERS)
