"""What the pages say is so: examples run, code is the real code, figures and lists are up to date."""

import doctest
import re
import runpy
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
CODE_ROOT = {"minimax_numpy": ROOT / "reference", "minimax_torch": ROOT / "accelerated", "tests": ROOT}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())


def fences(page, language):
    """(options, text) of each fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}(.*?)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [(options, dedent(block)) for _, options, block in found]


@every_page
def test_examples_print_what_the_page_shows(page):
    text = "\n".join(block for _, block in fences(page, "pycon"))
    if "minimax_torch.kernels" in text:
        pytest.importorskip("triton", reason="Triton exists for Linux only")
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    told = []
    assert doctest.DocTestRunner().run(examples, out=told.append).failed == 0, "".join(told)


@every_page
def test_code_with_a_file_name_is_cut_from_that_file(page):
    for options, block in fences(page, "(?:python|c|js)\\b"):
        title = re.search(r'title="(\w+)/(\S+)"', options)
        if title:
            file = CODE_ROOT[title[1]] / title[1] / title[2]
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            wanted = [line.strip() for line in block.splitlines()]
            places = range(len(lines) - len(wanted) + 1)
            assert any(lines[i : i + len(wanted)] == wanted for i in places), f"{file} does not hold:\n{block}"


@pytest.mark.parametrize(
    "script", [s for s in sorted((DOCS / "figures").glob("*.py")) if s.stem != "kit"], ids=lambda script: script.stem
)
def test_a_figure_is_what_its_script_draws(script):
    for name, svg in runpy.run_path(str(script))["figures"]().items():
        stored = (DOCS / "assets" / "figures" / name).read_bytes()
        assert stored == svg.encode(), f"{name} is not up to date: run python {script.relative_to(ROOT)}"


def test_the_reference_lists_every_name():
    for name, page in runpy.run_path(str(DOCS / "reference" / "make_api.py"))["pages"]().items():
        stored = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert stored == page, f"{name} is not up to date: run python docs/reference/make_api.py"


def test_coverage_names_what_exists():
    """Each proof is a test's name in words and its file; each link leads to a page."""
    text = (DOCS / "coverage.md").read_text(encoding="utf-8")
    proofs = re.findall(r"(?:\| |<br>)([a-z0-9 ]+): `(tests/[\w/]+\.py)`", text)
    assert len(proofs) == len(re.findall(r"`tests/", text)) > 0
    for words, file in proofs:
        assert (ROOT / file).is_file(), f"there is no {file}"
        assert f"def test_{words.replace(' ', '_')}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}: {words}?"
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (DOCS / link).is_file(), f"there is no page {link}"
