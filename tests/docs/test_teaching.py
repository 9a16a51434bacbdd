"""Slides and questions are what their scripts make, and what they say is computed."""

import doctest
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"
SLIDES = runpy.run_path(str(DOCS / "teach" / "make_slides.py"))
BANK = runpy.run_path(str(DOCS / "teach" / "make_bank.py"))
LECTURE = (DOCS / "teach" / "lecture.txt").read_text(encoding="utf-8")
MADE = SLIDES["slides"](LECTURE)
QUESTIONS = BANK["bank"]()["question"]
every_question = pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked["id"])


# --- Slides --------------------------------------------------------------------------------------------------------


def test_the_slides_are_what_their_script_makes():
    stored = (DOCS / "teach" / "lecture.html").read_text(encoding="utf-8")
    assert stored == SLIDES["page"](LECTURE), "run python docs/teach/make_slides.py"


def test_what_the_slides_say_is_computed():
    """Every example, the hidden ones too, in the order of the lecture."""
    examples = doctest.DocTestParser().get_doctest("\n".join(slide.code for slide in MADE), {}, "lecture", None, 0)
    told = []
    assert doctest.DocTestRunner().run(examples, out=told.append).failed == 0, "".join(told)
    assert sum(">>>" in slide.code for slide in MADE) > len(MADE) / 2


def test_every_figure_of_the_slides_exists():
    names = [name for slide in MADE for name, _ in slide.figures]
    assert len(names) > 5 and all((DOCS / "assets" / "figures" / name).is_file() for name in names)


def test_every_slide_has_a_title_minutes_and_notes():
    for slide in MADE:
        assert slide.title and 1 <= slide.minutes <= 10 and len(slide.notes.split()) > 20, slide.title


def test_a_slide_is_not_a_page():
    """What is shown, figures and code left out, is read in a few seconds."""
    for slide in MADE:
        words = re.sub(r"^```.*?^```|\$\$.*?\$\$", "", slide.shown, flags=re.MULTILINE | re.DOTALL).split()
        assert len(words) <= 75, f"{slide.title}: {len(words)} words"


def test_the_slides_ask_nobody_for_anything():
    """All that they load lies in the site, and without it formulas are still there."""
    page = (DOCS / "teach" / "lecture.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:script|link)[^>]* (?:src|href)="(?!data:)([^"]+)"', page)
    assert loaded == ["../assets/katex/katex.min.css", "../assets/katex/katex.min.js"]
    assert all((DOCS / "teach" / file).is_file() for file in loaded)
    assert not re.search(r"url\(|@import|<img|<iframe", page)
    assert page.count("<math ") == page.count('class="tex"') == LECTURE.count("$$") // 2 + inline(LECTURE)


def inline(text):
    """Formulas inside a line."""
    text = re.sub(r"^```.*?^```|\$\$.*?\$\$", "", text, flags=re.MULTILINE | re.DOTALL)
    return len(re.findall(r"\$[^$\n]+\$", text))


# --- Questions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["questions.md", "answers.md"])
def test_the_question_bank_is_what_its_script_makes(name):
    stored = (DOCS / "teach" / name).read_text(encoding="utf-8")
    assert stored == BANK["pages"]()[name], "run python docs/teach/make_bank.py"


@every_question
def test_a_question_is_whole(asked):
    """A kind, a level, minutes, an answer, wrong answers and what they show: of choices, all that are wrong."""
    assert asked["kind"] in BANK["KINDS"] and asked["level"] in (1, 2, 3) and 1 <= asked["minutes"] <= 20
    assert asked["ask"] and asked["answer"] and asked["wrong"] and all(all(row) for row in asked["wrong"])
    if asked["kind"] == "choice":
        letters = [letter for letter, _ in BANK["letters"](asked)]
        assert asked["right"] in letters
        assert [row[0] for row in asked["wrong"]] == [letter for letter in letters if letter != asked["right"]]


@every_question
def test_an_answer_says_what_is_computed(asked):
    """Each number that its code gives stands in the answer."""
    if "compute" not in asked:
        return
    shown = BANK["session"](asked["compute"], BANK["namespace"]()).strip().splitlines()[-1]
    said = asked["answer"].replace(",", "").replace("½", "0.5")
    numbers = {float(x) for x in re.findall(r"\d+(?:\.\d+)?", said)}
    for found in re.findall(r"\d+(?:\.\d+)?", shown):
        assert float(found) in numbers, f"{found} is computed, but the answer says {asked['answer']}"
    assert "False" not in shown or asked["id"] == "first-difference"


@every_question
def test_a_wrong_answer_is_wrong(asked):
    """Where both are numbers, they differ by more than rounding."""
    if "compute" not in asked or asked["kind"] != "short":
        return
    known = BANK["namespace"]()
    right = BANK["session"](asked["compute"], known).strip().splitlines()[-1]
    if re.fullmatch(r"-?[\d.]+", right):
        for given, shows in asked["wrong"]:
            if given.startswith("="):
                value = eval(given[1:], dict(known))
                assert not np.isclose(value, float(right), rtol=1e-3), f"{given} is no other answer: {shows}"


def test_no_question_stands_twice():
    ids = [asked["id"] for asked in QUESTIONS]
    assert len(ids) == len(set(ids)) >= 40 and len({asked["ask"] for asked in QUESTIONS}) == len(ids)


def test_every_topic_has_every_kind_and_topics_stand_together():
    topics = [asked["topic"] for asked in QUESTIONS]
    assert topics == sorted(topics, key=topics.index)
    for topic in topics:
        kinds = {asked["kind"] for asked in QUESTIONS if asked["topic"] == topic}
        assert kinds == set(BANK["KINDS"]), topic


def test_the_right_letter_gives_nothing_away():
    right = [asked["right"] for asked in QUESTIONS if asked["kind"] == "choice"]
    assert all(right.count(letter) >= 2 for letter in "abcd") and max(map(right.count, "abcd")) <= len(right) / 2, right


def test_ready_made_tests_name_what_there_is():
    ids = {asked["id"] for asked in QUESTIONS}
    for paper in BANK["bank"]()["paper"]:
        assert set(paper["questions"]) <= ids and len(paper["questions"]) == len(set(paper["questions"]))
