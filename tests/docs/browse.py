"""Read the built site in Chromium as a reader does, and print what is wrong with it: `make browse`.

Every page, by day and by night, on a desk and on a phone: no error in the console, no request that fails or leaves the
site, nothing to scroll sideways, every formula set, text in contrast to what lies behind it (WCAG AA). Then every
widget, by keyboard alone, its numbers compared with those of the reference.

    python tests/docs/browse.py                      the site in site/
    python tests/docs/browse.py --site DIR           another one
    python tests/docs/browse.py --pages concepts     pages whose address has that in it; home is the first
    python tests/docs/browse.py --pictures DIR       and a picture of each page in each look

It speaks the DevTools protocol over a pipe and needs Chromium and the reference, nothing else. Exit status 0 where
nothing is wrong, 1 where something is, 2 where it cannot run. Not part of `make test`, which needs no browser.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCHEMES = {"light": "default", "dark": "slate"}
WIDTHS = (1280, 390)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)
STILL = (
    "*, ::before, ::after { transition: none !important; animation: none !important; scroll-behavior: auto !important }"
)


class Browser:
    """Chromium, spoken to in JSON over a pipe."""

    def __init__(self, program: str):
        self.home = tempfile.mkdtemp(prefix="browse-")
        asks, answers = os.pipe(), os.pipe()

        def pipes():  # Chromium reads 3 and writes 4
            far = [os.dup(asks[0]), os.dup(answers[1])]
            while min(far) < 5:
                far = [os.dup(fd) for fd in far]
            os.dup2(far[0], 3)
            os.dup2(far[1], 4)

        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [program, *FLAGS, *root, f"--user-data-dir={self.home}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=pipes, close_fds=False,
        )  # fmt: skip
        os.close(asks[0])
        os.close(answers[1])
        self.to, self.of = asks[1], answers[0]
        self.number, self.rest, self.events = 0, b"", []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict:
        """Ask for something and wait for the answer; events that come before it are kept."""
        self.number += 1
        told: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if session:
            told["sessionId"] = session
        message = json.dumps(told).encode() + b"\0"
        while message:
            message = message[os.write(self.to, message) :]
        while True:
            answer = self.read(60)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, seconds: float = 30) -> dict:
        """Wait for an event; those before it are kept."""
        end = time.monotonic() + seconds
        while True:
            for i, event in enumerate(self.events):
                if event.get("method") == method:
                    return self.events.pop(i)
            self.events.append(self.read(end - time.monotonic()))

    def read(self, seconds: float) -> dict:
        while b"\0" not in self.rest:
            if not select.select([self.of], [], [], max(seconds, 0))[0]:
                raise TimeoutError("Chromium does not answer")
            more = os.read(self.of, 1 << 20)
            if not more:
                raise RuntimeError("Chromium has ended")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def close(self):
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.home, ignore_errors=True)


class Tab:
    """One tab: go somewhere, look, press keys."""

    KEYS = {
        "Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "Backspace": 8, "PageUp": 33, "PageDown": 34,
        "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
    }  # fmt: skip

    def __init__(self, browser: Browser, site: str):
        self.browser, self.site = browser, site
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Network.setCacheDisabled", cacheDisabled=False)

    def call(self, method: str, **parameters: Any) -> dict:
        return self.browser.call(method, self.session, **parameters)

    def run(self, script: str) -> Any:
        """The value of an expression, or of what it promises."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return told["result"].get("value")

    def go(self, address: str) -> list[tuple[str, str]]:
        """Open a page and wait until it has drawn itself; what went wrong meanwhile."""
        self.browser.events.clear()
        self.call("Page.navigate", url=self.site + address)
        self.browser.wait("Page.loadEventFired")
        self.run(SETTLED)
        return self.complaints()

    def complaints(self) -> list[tuple[str, str]]:
        """Errors in the console and requests that failed or left the site, since the last time."""
        found, asked = [], {}
        for event in self.browser.events:
            what, told = event.get("method"), event.get("params", {})
            if what == "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                found.append(("console", details.get("exception", {}).get("description", details["text"])[:150]))
            elif what == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
                found.append(("console", " ".join(str(x.get("value", x)) for x in told["args"])[:150]))
            elif what == "Log.entryAdded" and told["entry"]["level"] == "error":
                found.append(("console", f"{told['entry']['text']} {told['entry'].get('url', '')}"[:150]))
            elif what == "Network.requestWillBeSent":
                url = asked[told["requestId"]] = told["request"]["url"]
                if not url.startswith((self.site, "data:", "blob:", "about:")):
                    found.append(("request", f"leaves the site: {url[:100]}"))
            elif what == "Network.loadingFailed" and not told.get("canceled"):
                found.append(("request", f"failed: {asked.get(told['requestId'], '?')[:100]} {told['errorText']}"))
            elif what == "Network.responseReceived" and told["response"]["status"] >= 400:
                found.append(("request", f"{told['response']['status']}: {told['response']['url'][:100]}"))
        self.browser.events.clear()
        return found

    def look(self, scheme: str, width: int, height: int = 900):
        """Choose day or night and the width of the window."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    # By keyboard

    def press(self, key: str, times: int = 1):
        """Press a key of KEYS."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        told = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": self.KEYS[key]}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **told)
            self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def write(self, words: str):
        """Replace what a field holds."""
        told = {"key": "a", "windowsVirtualKeyCode": 65, "modifiers": 2}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", commands=["selectAll"], **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)
        if not words:
            self.press("Backspace")
        for letter in words:
            self.call("Input.dispatchKeyEvent", type="char", text=letter)

    def into(self, widget: str):
        """Stand before a widget: the next Tab goes to the first thing in it that can have the focus."""
        self.run(f"(() => {{ const w = document.querySelector('{widget}'); w.tabIndex = -1; w.focus(); }})()")

    def tab_to(self, wanted: str, most: int = 60):
        """Press Tab until the focus is on what a selector names, and see that the focus is seen."""
        for _ in range(most):
            self.press("Tab")
            if self.run(f"document.activeElement.matches({json.dumps(wanted)})"):
                seen = self.run(SEES_THE_FOCUS)
                if not seen:
                    raise Wrong(f"the focus on {wanted} is not seen")
                return
        raise Wrong(f"Tab does not reach {wanted}")

    def choose(self, files: list[str]):
        """Open the chooser of the file field that has the focus, by its key, and choose."""
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        self.press(" ")
        node = self.browser.wait("Page.fileChooserOpened", 5)["params"]["backendNodeId"]
        self.call("DOM.setFileInputFiles", files=files, backendNodeId=node)
        self.call("Page.setInterceptFileChooserDialog", enabled=False)

    def until(self, condition: str, seconds: float = 5):
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise Wrong(f"this does not come to hold: {condition}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def texts(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")

    def picture(self, file: str | os.PathLike):
        """Save the whole page as it is seen, for whoever looks into a finding."""
        width, height = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 12_000), "scale": 1}
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(file).write_bytes(base64.b64decode(told["data"]))


SETTLED = """(async () => {
  const end = performance.now() + 8000;
  const still = ".widget[data-widget]:not(:has(button, input))"; // there stands a figure, a table or a sentence
  while (document.querySelector(still) && performance.now() < end) await new Promise((done) => setTimeout(done, 20));
  await document.fonts.ready;
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
})()"""

SEES_THE_FOCUS = """(() => {
  const rim = (e) => getComputedStyle(e).outlineStyle !== "none" && parseFloat(getComputedStyle(e).outlineWidth) > 0;
  const at = document.activeElement;
  return rim(at) || [...at.querySelectorAll("*")].some((e) => getComputedStyle(e).strokeWidth > "2" || rim(e)) ||
    (at.parentElement && rim(at.parentElement));
})()"""


class Wrong(Exception):
    """A widget does not do what it should."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    Quiet.extensions_map = {**Quiet.extensions_map, ".js": "text/javascript", ".mjs": "text/javascript"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def addresses(site: Path, only: list[str]) -> list[str]:
    """Every page of a built site, or those whose address has one of these in it."""
    pages = [file.relative_to(site).as_posix().removesuffix("index.html") for file in sorted(site.rglob("*.html"))]
    pages = [page for page in pages if not page.startswith("assets/")]
    return [page for page in pages if not only or any(part in (page or "home") for part in only)]


def read_pages(tab: Tab, pages: list[str], pictures: Path | None = None) -> Iterator[tuple[str, str, str, str]]:
    """(page, look, kind, what) of everything that is wrong with how pages look."""
    audit = (HERE / "browse.js").read_text(encoding="utf-8")
    for page in pages:
        tab.look("light", WIDTHS[0])
        for kind, what in tab.go(page):
            yield page, "", kind, what
        tab.run(f"document.head.append(Object.assign(document.createElement('style'), {{ textContent: '{STILL}' }}))")
        tab.run("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        tab.run("document.body.classList.remove('shown')")  # of a lecture: all slides, one below the other
        tab.run(audit)
        for scheme, name in SCHEMES.items():
            for width in WIDTHS:
                tab.look(scheme, width)
                look = f"{scheme} {width}"
                if tab.run("document.body.dataset.mdColorScheme ?? ''") not in (name, ""):  # slides are always light
                    yield page, look, "scheme", "the page does not follow the system from day to night"
                for kind, what in tab.run("audit()"):
                    yield page, look, kind, what
                if pictures:
                    pictures.mkdir(parents=True, exist_ok=True)
                    name_of_page = page.strip("/").replace("/", "-") or "home"
                    tab.picture(pictures / f"{name_of_page}-{width}-{scheme}.png")
        for kind, what in tab.complaints():
            yield page, "", kind, what


def drive_widgets(tab: Tab, pages: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """The same of widgets: each is driven by keyboard on a desk by day and on a phone by night."""
    from browse_widgets import DRIVERS

    for page in pages:
        tab.look("light", WIDTHS[0])
        tab.go(page)
        names = tab.run("[...document.querySelectorAll('.widget[data-widget]')].map((w) => w.dataset.widget)")
        for name in names:
            if name not in DRIVERS:
                yield page, "", name, "no driver in browse_widgets.py"
                continue
            for scheme, width in (("light", 1280), ("dark", 390)):
                tab.look(scheme, width)
                for kind, what in tab.go(page):
                    yield page, f"{scheme} {width}", kind, what
                try:
                    DRIVERS[name](tab, f".widget[data-widget={name}]")
                except (Wrong, AssertionError, RuntimeError, TimeoutError) as error:
                    yield page, f"{scheme} {width}", name, str(error).strip()[:300] or type(error).__name__
                for kind, what in tab.complaints():
                    yield page, f"{scheme} {width}", kind, what


def table(findings: list[tuple[str, str, str, str]]) -> str:
    """Findings, the same one on several pages or in several looks told once."""
    told: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for page, look, kind, what in findings:
        told.setdefault((kind, what), []).append((page or "home", look))
    lines = []
    for (kind, what), places in sorted(told.items()):
        pages, looks = sorted({page for page, _ in places}), sorted({look for _, look in places if look})
        where = pages[0] if len(pages) == 1 else f"{pages[0]} and {len(pages) - 1} more"
        lines.append(f"{kind:<14} {' '.join(what.split())}")
        lines.append(f"{'':14} {' · '.join(filter(None, [where, ', '.join(looks)]))}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--site", type=Path, default=HERE.parents[1] / "site", help="a built site")
    parser.add_argument("--pages", nargs="*", default=[], help="only pages whose address has one of these in it")
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of each page")
    parser.add_argument("--chromium", default=next(filter(shutil.which, CHROMIUM), None), help="the browser's program")
    parser.add_argument("--widgets", action="store_true", help="drive the widgets only")
    arguments = parser.parse_args()
    if not arguments.chromium or not shutil.which(arguments.chromium):
        print("There is no Chromium here: install it (chromium, google-chrome) or name it with --chromium.")
        return 2
    pages = addresses(arguments.site, arguments.pages)
    if not pages:
        print(f"There is no page in {arguments.site}: build the site first, with make docs.")
        return 2
    start, findings = time.monotonic(), []
    browser = Browser(arguments.chromium)
    try:
        with served(arguments.site) as site:
            tab = Tab(browser, site)
            if not arguments.widgets:
                findings += read_pages(tab, pages, arguments.pictures)
            findings += drive_widgets(tab, [page for page in pages if has_widgets(arguments.site, page)])
    finally:
        browser.close()
    print(table(findings))
    looks = "widgets" if arguments.widgets else f"{len(SCHEMES) * len(WIDTHS)} looks each, and widgets"
    print(f"{len(pages)} pages, {looks}: {len(findings)} findings in {time.monotonic() - start:.0f} s.")
    return 1 if findings else 0


def has_widgets(site: Path, page: str) -> bool:
    file = site / page if page.endswith(".html") else site / page / "index.html"
    return 'data-widget="' in file.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
