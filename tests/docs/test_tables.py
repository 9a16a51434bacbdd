"""Tables that pages take from the code, and the hover text, are those that their script makes."""

import re
import runpy
from pathlib import Path

import pytest
from minimax_numpy import MiniMaxConfig
from minimax_numpy.config import LIGHTNING, SOFTMAX

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "reference" / "make_tables.py"))
MADE = SCRIPT["tables"]()
STALE = "run python docs/reference/make_tables.py"


@pytest.mark.parametrize("page", SCRIPT["places"](), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_table_is_what_the_code_makes(page):
    text = page.read_text(encoding="utf-8")
    assert SCRIPT["filled"](text, MADE) == text, f"{page.name} is not up to date: {STALE}"


def test_every_table_stands_on_one_page():
    placed = [name for names in SCRIPT["places"]().values() for name in names]
    assert sorted(placed) == sorted(MADE)


def test_every_shape_is_a_runs():
    """The letters of the table give the shape of each part of a run, and no part is missing.

    No two axes, nor products of them that stand in the table, have the same size in this model: a wrong letter shows.
    """
    config = MiniMaxConfig.tiny(
        layer_types=(LIGHTNING, SOFTMAX), hidden_size=33, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
        rotary_dim=4, num_local_experts=5, num_experts_per_tok=3, vocab_size=101,
    )  # fmt: skip
    sizes = SCRIPT["letters"](config, B=7, T=11)
    axes = {axis for letters, _ in SCRIPT["PARTS"].values() for axis in letters.split()}
    assert len({SCRIPT["sized"](axis, sizes) for axis in axes}) == len(axes)
    told = {name: SCRIPT["sized"](letters, sizes) for name, (letters, _) in SCRIPT["PARTS"].items()}
    assert told == SCRIPT["traced"](config, B=7, T=11)


def test_no_fixed_tolerance_is_as_good_as_float64():
    """What the page on tolerances claims in words: every rule but float64's lets some mistake through at each scale."""
    rows = [line.split(" | ") for line in MADE["what-tolerances-let-through"].splitlines()[2:]]
    assert [all(cell.strip(" |") == "none" for cell in row[1:]) for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all("none" not in cell for row in rows[:-1] for cell in row[1:])
    assert sum("all seven" in row[-1] for row in rows) == 4  # the absolute ones: zeros pass


def test_which_mistakes_a_type_hides():
    """… and: float64 and float32 catch all seven, bfloat16 at this length only zeros; nobody right is accused."""
    rows = [line.strip("| ").split(" | ") for line in MADE["how-far-over"].splitlines()[2:]]
    caught = {name: [cell.startswith("**") for cell in cells] for name, *cells in rows}
    assert not any(caught.pop("no mistake"))
    assert caught.pop("returns zeros") == [True, True, True]
    assert set(map(tuple, caught.values())) == {(True, True, False)} and len(caught) == 6


def test_a_term_is_defined_once():
    text = (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S.*)\n:   ", text, re.MULTILINE)
    assert len(terms) == len({term.lower() for term in terms}) > 50


def test_hover_text_is_the_glossarys():
    stored = (DOCS / "includes" / "glossary.md").read_text(encoding="utf-8")
    assert stored == SCRIPT["abbreviations"](), f"The hover text is not up to date: {STALE}"
    for line in stored.splitlines():
        told = line.partition("]: ")[2]
        assert told.endswith((".", "?")) and not re.search(r"[$`*\[\]]", told), line
