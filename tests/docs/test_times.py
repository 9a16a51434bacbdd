"""Times stand once: plans add up what pages, notebooks, slides and exercises say, and what they say is plausible."""

import doctest
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "make_pages.py"))
KNOWN = SCRIPT["things"]()
STALE = "run python docs/make_pages.py"
PLANNED = SCRIPT["pages_with_plans"]()
TIMED = [thing for thing in KNOWN.values() if thing.text and thing.minutes]


@pytest.mark.parametrize("page", PLANNED)
def test_a_plan_is_what_the_pages_say(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert SCRIPT["filled"](page, text, KNOWN) == text, f"{page} is not up to date: {STALE}"


def test_the_page_of_pages_is_up_to_date():
    assert (DOCS / "pages.md").read_text(encoding="utf-8") == SCRIPT["page_of_pages"](), STALE


def test_what_programs_read_is_up_to_date():
    assert (DOCS / "llms.txt").read_text(encoding="utf-8") == SCRIPT["llms"](), STALE


def test_there_are_plans_for_one_reader_and_for_three_courses():
    assert {"path/evenings.md", "teach/syllabi.md", "teach/notes.md"} <= set(PLANNED)
    names = [name for page in PLANNED for name in SCRIPT["plans"](SCRIPT["source"](page))]
    kinds = [name.split()[0].rstrip(",") for name in names]
    assert {kind: kinds.count(kind) for kind in kinds} == {"evening": 5, "lecture": 1, "day": 5, "session": 10}


def test_the_evenings_leave_out_nothing_of_the_path():
    """Every page of the way through, every notebook and every exercise is on some evening."""
    plans = SCRIPT["plans"](SCRIPT["source"]("path/evenings.md"))
    named = {name for plan in plans.values() for names in plan.values() for name in names}
    path = {file for file in SCRIPT["sections"]()["Learn it"] if file != "path/evenings.md"}
    notebooks = {name for name, thing in KNOWN.items() if thing.place.endswith(".ipynb")}
    exercises = {name for name in KNOWN if re.fullmatch(r"\d+\.\d+", name)}
    assert path | notebooks | exercises <= named


@pytest.mark.parametrize("page", ["path/evenings.md", "teach/syllabi.md"])
def test_what_a_plan_lists_exists_and_stands_there_once(page):
    for name, plan in SCRIPT["plans"](SCRIPT["source"](page)).items():
        names = sum(plan.values(), [])
        assert len(names) == len(set(names)), f"{name} of {page}"
        assert {n for n in names if not n.startswith("slides:")} <= set(KNOWN), f"{name} of {page}"


@pytest.mark.parametrize("page", ["path/evenings.md", "teach/syllabi.md"])
def test_no_time_of_a_page_is_typed_into_a_plan(page):
    """Outside of what is made, minutes stand in the page's own line and nowhere else."""
    text = re.sub(r"^<!-- plans?: .*?^<!-- /plans? -->", "", SCRIPT["source"](page), flags=re.MULTILINE | re.DOTALL)
    typed = re.findall(r".*\b\d+ min\b.*", text)
    assert len(typed) == 1, typed


@pytest.mark.parametrize("thing", TIMED, ids=lambda thing: thing.place)
def test_a_stated_time_is_plausible(thing):
    """For its words and its lines of code; what moves, and what a table looks up, takes longer than reading."""
    if thing.place == "concepts/playground.md":
        return  # six things to play with, and few words
    estimate = SCRIPT["estimate"](thing.text)
    low, high = SCRIPT["LOW"] * estimate, SCRIPT["HIGH"] * estimate
    assert low <= thing.minutes <= high, f"{thing.minutes} min is stated, words and code take about {estimate:.0f}"


@pytest.mark.parametrize("book", [thing for thing in TIMED if thing.inside], ids=lambda book: book.place)
def test_a_notebook_knows_how_long_its_exercises_take(book):
    """It says so for those who open it alone, rounded, and never less than the registry."""
    more = int(re.search(r"^\d+ min, (\d+) more\b", book.text, re.MULTILINE)[1])
    listed = sum(KNOWN[number].minutes for number in book.inside)
    assert more >= listed - SCRIPT["ROUNDED"], f"{more} more are stated, the exercises take {listed}"


def test_lessons_fit_into_ninety_minutes():
    """What is planned in class, where times are known; and the slides of the lecture fit as well."""
    plans = SCRIPT["plans"](SCRIPT["source"]("teach/syllabi.md"))
    too_long = {name: SCRIPT["total"](plan["In class"], KNOWN) for name, plan in plans.items()}
    assert {name: minutes for name, minutes in too_long.items() if minutes > 90} == {}
    assert 75 <= sum(SCRIPT["slides"]()) <= 90


def test_seconds_of_another_notebook_are_not_shown():
    stored = SCRIPT["measured"]()
    file = "notebooks/01_tour.ipynb"
    now = {"notebooks": {file: {"seconds": 3, "digest": SCRIPT["digest"](file)}}}
    assert SCRIPT["ran"](now) == {file: 3}
    now["notebooks"][file]["digest"] = "another"
    assert SCRIPT["ran"](now) == {}
    assert all(it["seconds"] > 0 for it in stored["notebooks"].values()) and stored["where"]


@pytest.mark.parametrize("script", ["make_pages.py", "teach/make_bank.py"])
def test_the_examples_of_the_scripts_are_so(script):
    known = runpy.run_path(str(DOCS / script))
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    examples = [
        example for name, it in known.items() if callable(it) for example in finder.find(it, name, None, globs=known)
    ]
    for example in examples:
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0 and sum(bool(example.examples) for example in examples) > 0
