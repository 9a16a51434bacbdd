"""The site builds without a warning, every link in it leads somewhere, and reading it asks nobody else for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The ids, the links and the loaded files of a page."""

    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag == "link" and attrs.get("rel") != "canonical" and attrs.get("href"):
            self.loaded.append(attrs["href"])
        elif tag in ("script", "img", "iframe", "source") and attrs.get("src"):
            self.loaded.append(attrs["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def pages(site):
    return {name: Page(file) for name, file in site.items() if name.endswith(".html") and name != "404.html"}


def test_every_link_leads_somewhere(site, pages):
    for name, page in pages.items():
        for link in page.links + page.loaded:
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = urljoin(f"/{name}", unquote(link)).partition("#")
            place = place.lstrip("/")
            place = f"{place}index.html" if place == "" or place.endswith("/") else place
            assert place in site, f"{name} links to {link}, which is not there"
            if anchor and place in pages:
                assert anchor in pages[place].ids, f"{name} links to {link}, but nothing there has that id"


def test_reading_the_site_asks_nobody_else(site, pages):
    for name, page in pages.items():
        outside = [link for link in page.loaded if re.match(r"(https?:)?//", link)]
        assert not outside, f"{name} loads {outside}"
    for name, file in site.items():
        if name.endswith(".css"):
            outside = re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']+", file.read_text(encoding="utf-8"))
            assert not outside, f"{name} loads {outside}"


def test_notebooks_come_with_their_outputs(site):
    for name, file in site.items():
        if re.fullmatch(r"notebooks/\w+/index.html", name):
            assert "jp-OutputArea-output" in file.read_text(encoding="utf-8"), f"{name} shows no output"
