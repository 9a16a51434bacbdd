"""Look at every page of the built site in a browser: `make browse`, which needs Chromium.

Each page is opened light and dark, as wide as a desk and as a phone. Looked for are errors on the console, requests that
fail or leave the site, sideways scrolling, formulas that are not set, text that is too pale (WCAG AA), and widgets that
do not move when they are used from the keyboard. One line for each finding; the exit status is 1 if there is any.
"""

import argparse
import base64
import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import websocket

SCHEMES, WIDTHS = ("light", "dark"), (1280, 390)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOOK = r"""
(() => {
  const found = [];
  const wide = document.scrollingElement.scrollWidth - innerWidth;
  if (wide > 0) {
    const widest = [...document.querySelectorAll(".md-content *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1);
    const inScroller = (e) => e && (/(auto|scroll|hidden|clip)/.test(getComputedStyle(e).overflowX) || inScroller(e.parentElement));
    const at = widest.find((e) => !inScroller(e.parentElement)) || widest[0];
    found.push(`scrolls sideways by ${wide} px` + (at ? `: <${at.tagName.toLowerCase()} class="${at.className.baseVal ?? at.className}">` : ""));
  }
  for (const e of document.querySelectorAll(".katex-error")) found.push("a formula is not set: " + e.textContent.slice(0, 60));
  for (const e of document.querySelectorAll(".arithmatex"))
    if (!e.querySelector(".katex")) found.push("a formula is not set: " + e.textContent.slice(0, 60));
  for (const e of document.querySelectorAll("img")) if (e.complete && !e.naturalWidth) found.push("an image is missing: " + e.src);

  // contrast: the colour of text against what lies behind it
  const channel = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (css) => {
    if (!known.has(css)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = css;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(css, [r, g, b, a / 255]);
    }
    return known.get(css);
  };
  const over = (top, under) => under.map((u, i) => top[3] * top[i] + (1 - top[3]) * u);
  const behind = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const pale = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    const e = node.parentElement, text = node.textContent.trim();
    const fades = "[data-widget=decay-dial] .word"; // its point is that it fades
    if (!text || e.closest("script, style, noscript, .katex-mathml, [hidden], [aria-hidden=true], :disabled, " + fades)) continue;
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || style.visibility !== "visible" || e.closest(".md-search__output, .md-clipboard, .headerlink")) continue;
    let opacity = 1;
    for (let up = e; up; up = up.parentElement) opacity *= getComputedStyle(up).opacity;
    if (opacity < 0.05) continue;
    const under = behind(e), ink = rgba(e.closest("svg") ? style.fill : style.color).slice();
    ink[3] *= opacity;
    const [a, b] = [light(over(ink, under)), light(under)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5) - 0.005) {
      const key = `${ratio.toFixed(2)}:1, <${e.tagName.toLowerCase()} class="${e.className.baseVal ?? e.className}">`;
      if (![...pale].some((k) => k.startsWith(key))) pale.add(`${key} “${text.slice(0, 30)}”`);
    }
  }
  for (const what of pale) found.push("too pale, " + what);
  return found;
})()
"""
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, " ": 32}


class Browser:
    """A headless Chromium and the pages of one site, over the DevTools protocol."""

    def __init__(self, program: str, site: str):
        self.site, self.folder = site, tempfile.TemporaryDirectory()
        flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-port=0"]
        flags += ["--remote-allow-origins=*", f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen([program, *flags], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        port = Path(self.folder.name, "DevToolsActivePort")
        for _ in range(200):
            if port.exists() and port.read_text():
                break
            time.sleep(0.1)
        where = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"
        page = next(t for t in json.load(urllib.request.urlopen(where)) if t["type"] == "page")
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60)
        self.count, self.events = 0, []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters):
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while (told := json.loads(self.socket.recv())).get("id") != self.count:
            self.events.append(told)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        return told["result"]

    def run(self, script: str):
        """The value of a script in the page."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def press(self, key: str) -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def open(self, page: str, scheme: str, width: int) -> list[str]:
        """Open a page and say what is wrong with it."""
        self.events.clear()
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=media)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Page.navigate", url=f"{self.site}/{page}")
        for _ in range(200):
            if self.run("document.readyState === 'complete' && location.href !== 'about:blank'"):
                break
            time.sleep(0.05)
        time.sleep(0.25)
        self.run("document.fonts.ready.then(() => 0)")
        return [*self.told(), *(self.run(LOOK) or [])]

    def told(self) -> list[str]:
        """What console and network have said since the page was opened."""
        found = []
        for event in self.events:
            kind, about = event.get("method"), event.get("params", {})
            if kind == "Runtime.exceptionThrown":
                about = about["exceptionDetails"]
                found.append(f"an error: {about.get('exception', {}).get('description', about['text'])[:120]}")
            elif kind == "Runtime.consoleAPICalled" and about["type"] == "error":
                found.append(f"an error on the console: {about['args'][0].get('value', '')!s:.120}")
            elif kind == "Log.entryAdded" and about["entry"]["level"] == "error":
                found.append(f"an error: {about['entry']['text'][:80]} {about['entry'].get('url', '')}")
            elif kind == "Network.requestWillBeSent":
                url = about["request"]["url"]
                if not url.startswith((self.site, "data:", "blob:")):
                    found.append(f"asks {url}")
            elif kind == "Network.loadingFailed" and not about.get("canceled"):
                found.append(f"a request fails: {about['errorText']}")
        return found

    def use(self) -> list[str]:
        """Move each widget of the open page by its keys; what does not move is told."""
        found = []
        names = self.run("[...document.querySelectorAll('.widget[data-widget]')].map((w) => w.dataset.widget)")
        for n, name in enumerate(names or []):
            here = f"document.querySelectorAll('.widget[data-widget]')[{n}]"
            for _ in range(60):
                if not self.run(
                    f"!!{here}.querySelector('svg.drawn[role=img], svg.still') && !{here}.querySelector('button, input')"
                ):
                    break
                time.sleep(0.05)
            controls = f"[...{here}.querySelectorAll('input:not([type=file]), button, select, [tabindex=\"0\"]')]"
            count = self.run(f"{controls}.filter((e) => !e.disabled).length")
            if not count:
                found.append(f"widget {name}: nothing in it takes the keyboard")
                continue
            look = f"{here}.innerHTML + {controls}.map((e) => e.value + e.checked).join()"
            before, moved = self.run(look), False
            for i in range(count):
                self.run(f"{controls}.filter((e) => !e.disabled)[{i}]?.focus()")
                for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "Enter", " "):
                    self.press(key)
                if self.run(look) != before:
                    moved = True
                    break
            if not moved:
                found.append(f"widget {name}: no key changes anything")
        return found + self.told()

    def picture(self, file: Path) -> None:
        """A picture of the whole page."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 12_000), "scale": 1}
        told = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(told["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files, without a line for each."""

    def log_message(self, *_):
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=Path(__file__).parents[2] / "site", help="the built site")
    parser.add_argument("--pages", nargs="*", help="only pages whose path contains one of these")
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of each page")
    options = parser.parse_args()
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        print(f"No Chromium was found; install one of {', '.join(CHROMIUM)}.", file=sys.stderr)
        return 2
    files = sorted(file for file in options.site.rglob("*.html") if file.name != "404.html")
    pages = [file.relative_to(options.site).as_posix().removesuffix("index.html") for file in files]
    if options.pages is not None:
        pages = [page for page in pages if any(part in page or part == "home" and not page for part in options.pages)]
    if not pages:
        print(f"There are no pages in {options.site}; `make docs` builds them.", file=sys.stderr)
        return 2
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=options.site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser, findings = Browser(program, f"http://127.0.0.1:{server.server_port}"), 0
    try:
        for page in pages:
            for scheme in SCHEMES:
                for width in WIDTHS:
                    found = browser.open(page, scheme, width)
                    if options.pictures:
                        options.pictures.mkdir(parents=True, exist_ok=True)
                        name = page.strip("/").replace("/", "-") or "home"
                        browser.picture(options.pictures / f"{name}-{width}-{scheme}.png")
                    if scheme == "light" and width == max(WIDTHS):
                        found += browser.use()
                    findings += len(found)
                    for what in dict.fromkeys(found):
                        print(f"{page or 'home':40} {scheme:5} {width:5}  {what}", flush=True)
    finally:
        browser.close()
        server.shutdown()
    print(f"{len(pages)} pages, {len(SCHEMES)} schemes, {len(WIDTHS)} widths: {findings or 'no'} findings")
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
