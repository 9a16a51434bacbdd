"""Write what is known of the pages as a whole: `python docs/make_pages.py`.

How long a page takes stands once, in its line that ends in ``{ .time }``; a notebook has it in the line under its
title, an exercise in its registry, a slide in the line that begins its notes. From these, and in the order of
mkdocs.yml, this makes the table of all pages and fills the plans that pages mark:

    <!-- plan: week 1                      a name
    Before: model.md path/lookup.md        a label, then pages, notebooks (01), exercises (1.1) and slides
    In class: slides:2-9 01 1.1 1.2
    -->
    …                                      made here: titles, links, minutes, sums
    <!-- /plan -->

    <!-- plans: week -->                   an overview of all plans of that name on the page
    <!-- /plans -->

    <!-- mistakes: 2.1 2.5 -->             wrong answers that the checks know, as they are handed in
    <!-- /mistakes -->

    <!-- nearly: 4 -->                     mistakes that keep so many points or more when they are graded
    <!-- /nearly -->

With ``--time`` it first runs every notebook and keeps the seconds in seconds.json, beside a digest of the notebook that
was run: of another notebook they say nothing.
"""

import functools
import hashlib
import json
import math
import os
import posixpath
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from minimax_numpy.check.exercises import EXERCISES
from minimax_numpy.check.exercises.functions import run
from minimax_numpy.check.exercises.registry import build
from minimax_numpy.check.exercises.values import value
from minimax_numpy.check.grade import MODULE, mark_task
from mkdocs.utils.yaml import yaml_load

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SECONDS = DOCS / "seconds.json"
NOT_YET = "not yet"
ROUNDED = 5  # minutes


class Thing(NamedTuple):
    """A page, a notebook or an exercise: what a plan may name. ``place`` is relative to docs."""

    title: str
    place: str
    minutes: int | None
    text: str = ""
    own: int = 0  # minutes for what is written in a notebook and is no exercise of the registry
    inside: tuple[str, ...] = ()  # the registry's exercises in a notebook


# --- What there is -------------------------------------------------------------------------------------------------


def sections() -> dict[str, dict[str, str]]:
    """Section → file → the title that the navigation gives it."""
    with open(ROOT / "mkdocs.yml", encoding="utf-8") as file:
        nav = yaml_load(file)["nav"]
    found: dict[str, dict[str, str]] = {}
    for entry in nav:
        ((name, inside),) = entry.items()
        pages = [{name: inside}] if isinstance(inside, str) else inside
        found[name] = {file: title for page in pages for title, file in page.items()}
    return found


def source(file: str) -> str:
    """The text of a page, or of the script of a notebook as a page."""
    if not file.endswith(".ipynb"):
        return (DOCS / file).read_text(encoding="utf-8")
    script = (DOCS / file).with_suffix(".py").read_text(encoding="utf-8")
    cells = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    parts = []
    for kind, cell in zip(cells[::2], cells[1::2]):
        told = re.sub(r"^# ?", "", cell, flags=re.MULTILINE).strip()
        parts.append(told if "[markdown]" in kind else f"```python\n{cell.strip()}\n```")
    return "\n\n".join(parts)


def minutes_of(file: str, text: str) -> int | None:
    """What the page itself says that it takes."""
    line = r"^(\d+) min\b" if file.endswith(".ipynb") else r"^(\d+) min\b.*\n(?:.*\n)?\{ \.time \}"
    found = re.search(line, text, re.MULTILINE)
    return int(found[1]) if found else None


def own_minutes(text: str, inside: tuple[str, ...]) -> int:
    """Of a notebook's "15 min, 35 more", what its numbered exercises do not account for; a few minutes are rounding."""
    more = re.search(r"^\d+ min, (\d+) more\b", text, re.MULTILINE)
    rest = int(more[1]) - sum(EXERCISES[number].minutes for number in inside) if more else 0
    return rest if rest > ROUNDED else 0


def slides() -> list[int]:
    """Minutes of each slide of the lecture."""
    text = (DOCS / "teach" / "lecture.txt").read_text(encoding="utf-8")
    return [int(minutes) for minutes in re.findall(r"^notes (\d+) min$", text, re.MULTILINE)]


def slides_as_a_thing(name: str) -> Thing:
    """`slides:2-9` of a plan."""
    first, last = map(int, name.removeprefix("slides:").split("-"))
    title = f"Slides {first} to {last}" if last > first else f"Slide {first}"
    return Thing(title, "teach/slides.md", sum(slides()[first - 1 : last]))


def things() -> dict[str, Thing]:
    """Name in a plan → what it is."""
    found = {}
    for pages in sections().values():
        for file, title in pages.items():
            text = source(file)
            name = Path(file).name[:2] if file.startswith("notebooks/") else file
            inside = tuple(re.findall(r"^\{\{ exercise (\S+) \}\}", text, re.MULTILINE)) if name.isdigit() else ()
            found[name] = Thing(title, file, minutes_of(file, text), text, own_minutes(text, inside), inside)
    for number, asked in EXERCISES.items():
        anchor = f"reference/exercises.md#e{number.replace('.', '-')}"
        found[number] = Thing(f"{number} · {asked.title}", anchor, asked.minutes)
    return found


def length(minutes: int) -> str:
    """Minutes as people say them.

    >>> length(50), length(60), length(135)
    ('50\xa0min', '1\xa0h', '2\xa0h\xa015')
    """
    hours, rest = divmod(minutes, 60)
    told = f"{minutes} min" if not hours else f"{hours} h {rest:02}" if rest else f"{hours} h"
    return told.replace(" ", "\N{NO-BREAK SPACE}")


# --- Plans ---------------------------------------------------------------------------------------------------------

PLAN = re.compile(r"(<!-- plan: (?P<name>[^\n]+)\n(?P<lines>[^>]*?)-->\n)(?:.*?\n)??(<!-- /plan -->)", re.DOTALL)
PLANS = re.compile(r"(<!-- plans: (?P<name>\w+) -->\n)(?:.*?\n)??(<!-- /plans -->)", re.DOTALL)
MISTAKES = re.compile(r"(<!-- mistakes: (?P<numbers>[\d. ]+) -->\n)(?:.*?\n)??(<!-- /mistakes -->)", re.DOTALL)

NEARLY = re.compile(r"(<!-- nearly: (?P<points>\d+) -->\n)(?:.*?\n)??(<!-- /nearly -->)", re.DOTALL)


def plans(text: str) -> dict[str, dict[str, list[str]]]:
    """Name → label → names of things, of the plans on a page."""
    found = {}
    for plan in PLAN.finditer(text):
        lines = [line.partition(":") for line in plan["lines"].strip().splitlines()]
        found[plan["name"]] = {label.strip(): names.split() for label, _, names in lines}
    return found


def named(name: str, known: dict[str, Thing]) -> Thing:
    """What a name in a plan means; an exercise that nobody has written has neither title nor time."""
    if name.startswith("slides:"):
        return slides_as_a_thing(name)
    if name not in known and re.fullmatch(r"\d+\.\d+", name):
        return Thing(name, "reference/exercises.md", None)
    return known[name]


def entry(name: str, known: dict[str, Thing], page: str, beside: list[str]) -> str:
    """A thing as a plan shows it: a link and minutes, and the notebook of the same plan in which an exercise stands."""
    thing = named(name, known)
    link = posixpath.relpath(thing.place, posixpath.dirname(page) or ".")
    takes = f"{thing.minutes} + {thing.own}" if thing.own else thing.minutes or NOT_YET
    books = [f" (in {int(other)})" for other in beside if name in named(other, known).inside]
    return f"[{thing.title}]({link}) {takes}{''.join(books)}"


def total(names: list[str], known: dict[str, Thing]) -> int:
    """Minutes of those that have any."""
    return sum((thing.minutes or 0) + thing.own for thing in (named(name, known) for name in names))


def added(names: list[str], known: dict[str, Thing]) -> str:
    """Minutes in words, with a plus where something has none yet."""
    missing = any(named(name, known).minutes is None for name in names)
    return length(total(names, known)) + " +" * missing


def plan_table(plan: dict[str, list[str]], known: dict[str, Thing], page: str) -> str:
    """A row for each label, and a sum."""
    rows = ["| | minutes of each | together |", "|---|---|---|"]
    everything = sum(plan.values(), [])
    for label, names in plan.items():
        shown = "<br>".join(entry(name, known, page, everything) for name in names)
        rows.append(f"| {label} | {shown} | {added(names, known)} |")
    if len(plan) > 1:
        rows.append(f"| **All of it** | | **{added(sum(plan.values(), []), known)}** |")
    return "\n".join(rows)


def overview(name: str, found: dict[str, dict[str, list[str]]], known: dict[str, Thing]) -> str:
    """All plans of a name: a row each, a column for each label."""
    chosen = {key: plan for key, plan in found.items() if key.split()[0] == name}
    labels = list(dict.fromkeys(label for plan in chosen.values() for label in plan))
    rows = [f"| | {' | '.join(label.lower() for label in labels)} | together |", "|---|" + "---|" * (len(labels) + 1)]
    for key, plan in chosen.items():
        cells = [added(plan[label], known) if plan.get(label) else "" for label in labels]
        link = f"[{key[:1].upper()}{key[1:]}](#{re.sub(r'[^a-z0-9]+', '-', key).strip('-')})"
        rows.append(f"| {link} | {' | '.join(cells)} | {added(sum(plan.values(), []), known)} |")
    columns = [sum((plan.get(label, []) for plan in chosen.values()), []) for label in labels]
    sums = [f"**{added(names, known)}**" for names in (*columns, sum(columns, []))]
    rows.append(f"| **All** | {' | '.join(sums)} |")
    return "\n".join(rows)


def mistakes_table(numbers: list[str]) -> str:
    """What is typically handed in for an exercise whose answer is a number, and what it shows."""
    rows = ["| exercise | right | handed in | it looks as if |", "|---|---|---|---|"]
    for number in numbers:
        asked = EXERCISES[number]
        label = f"[{number}](../reference/exercises.md#e{number.replace('.', '-')})"
        right = figure(value(asked.solution))
        for mistake in asked.mistakes:
            rows.append(f"| {label} | {right} | {figure(value(mistake.source))} | {mistake.says} |")
            label = right = ""
    return "\n".join(rows)


@functools.cache
def graded() -> list[tuple[str, str, float, list[str]]]:
    """Each known mistake of each graded exercise: the points that it keeps, and the groups of cases that notice it."""
    found = []
    for number in MODULE:
        asked = EXERCISES[number]
        cases = list(asked.task.cases(np.random.default_rng(0)))
        for mistake in asked.mistakes:
            function = build(mistake.source, asked.task.function)
            mark = mark_task(number, cases, [run(function, case) for case in cases])
            noticed = [label for label, right in mark.groups.items() if not right]
            found.append((number, mistake.says, mark.points, noticed))
    return found


def nearly_table(points: float) -> str:
    """Mistakes that a few cases notice, those that keep most first."""
    rows = ["| exercise | what is wrong | keeps, of 10 | noticed only by |", "|---|---|---|---|"]
    for number, wrong, kept, groups in sorted(graded(), key=lambda row: -row[2]):
        if kept >= points:
            link = f"[{number}](../reference/exercises.md#e{number.replace('.', '-')})"
            rows.append(f"| {link} | {wrong} | {kept:g} | {', '.join(groups)} |")
    return "\n".join(rows)


def figure(x: float) -> str:
    """A number to four figures, whole ones in full.

    >>> figure(1.875), figure(293601280.0), figure(2.37137), figure(1.2e-7)
    ('1.875', '293,601,280', '2.371', '1.2e-07')
    """
    return f"{x:,.0f}" if x == int(x) and abs(x) >= 1 else f"{x:.4g}"


def filled(page: str, text: str, known: dict[str, Thing]) -> str:
    """A page with its plans made."""
    found = plans(text)
    text = PLAN.sub(lambda m: f"{m[1]}{plan_table(found[m['name']], known, page)}\n{m[4]}", text)
    text = PLANS.sub(lambda m: f"{m[1]}{overview(m['name'], found, known)}\n{m[3]}", text)
    text = NEARLY.sub(lambda m: f"{m[1]}{nearly_table(float(m['points']))}\n{m[3]}", text)
    return MISTAKES.sub(lambda m: f"{m[1]}{mistakes_table(m['numbers'].split())}\n{m[3]}", text)


def pages_with_plans() -> list[str]:
    """Those that have something to fill."""
    files = [file for pages in sections().values() for file in pages if file.endswith(".md")]
    return [file for file in files if re.search(r"^<!-- (plans?|mistakes|nearly): ", source(file), re.MULTILINE)]


# --- How long it takes to read ---------------------------------------------------------------------------------------

WORDS, LINES = 150, 8  # a minute
LOW, HIGH = 0.4, 4  # times the estimate: what is plausible


def split(text: str) -> tuple[str, str]:
    """The prose of a page, and its code; what is folded away, plans and figures are neither."""
    text = re.sub(r"^<!-- plan: .*?^<!-- /plan -->", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\?\?\? .*\n(?:(?: {4}.*)?\n)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    code = "\n".join(block for _, block in re.findall(r"^( *)```.*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL))
    prose = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"<[^>]*>|\]\([^)]*\)|\]\[[^]]*\]|^[|: -]+$|\{[^}]*\}", "", prose, flags=re.MULTILINE)
    return prose, code


def estimate(text: str) -> float:
    """Minutes for its words, a formula counting as four, and its lines of code."""
    prose, code = split(text)
    formulas = len(re.findall(r"\$\$.*?\$\$", prose, re.DOTALL))
    words = len(re.sub(r"\$\$.*?\$\$", "", prose, flags=re.DOTALL).split()) + 20 * formulas
    return words / WORDS + sum(bool(line.strip()) for line in code.splitlines()) / LINES


# --- Every page and its proof -----------------------------------------------------------------------------------------

WAYS = {
    "examples": ("each is run and prints what the page shows", "tests/docs/test_pages.py"),
    "code": ("it is cut from the source", "tests/docs/test_pages.py"),
    "figure": ("it is drawn again and compared", "tests/docs/test_pages.py"),
    "widget": ("what moves computes what the reference computes", "tests/docs/test_widgets.py"),
    "table": ("it is made again from the code and compared", "tests/docs/test_tables.py"),
    "times": ("they are added up again", "tests/docs/test_times.py"),
    "runs": ("the notebook runs from top to bottom", "tests/notebooks/test_notebooks.py"),
    "exercises": ("a solution passes, a mistake is named", "tests/exercises/test_exercises.py"),
    "slides": ("what they say is computed, and they are made again", "tests/docs/test_teaching.py"),
    "list": ("the page is written by a script, which is run again and compared", "the test beside it"),
}
MADE = {
    "make_api.py": "tests/docs/test_pages.py",
    "make_exercises.py": "tests/exercises/test_exercises.py",
    "make_defects.py": "tests/peers/test_defects.py",
    "make_pages.py": "tests/docs/test_times.py",
    "make_bank.py": "tests/docs/test_teaching.py",
}


def says(text: str) -> str:
    """What a page answers: its first sentence in bold, else its first sentence; a notebook's question."""
    asked = re.search(r"^\*\*Question\.\*\* (.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    bold = re.search(r"^\*\*(.+?)\*\*", text, re.MULTILINE | re.DOTALL)
    below = ("\n" + text).partition("\n# ")[2].partition("\n")[2]
    plain = re.search(r"^(?![#<{`|>-]|\d+ min\b)(\S.+?)(?:\n\n|\n\{|\Z)", below, re.MULTILINE | re.DOTALL)
    told = (asked or bold or plain or [None, ""])[1]
    told = re.sub(r"\[([^]]+)\](\([^)]*\)|\[[^]]*\])", r"\1", re.sub(r"\s+", " ", told)).replace("|", "\\|")
    if asked:
        return told
    sentences = re.split(r"(?<=[.!?])\s+", told)
    while len(sentences) > 1 and len(sentences[0].split()) < 5:
        sentences[:2] = [" ".join(sentences[:2])]
    return sentences[0]


def is_ours(path: str) -> bool:
    """Other projects have tests, too."""
    return (ROOT / path).is_file()


def proofs(file: str, text: str) -> list[str]:
    """What shows that a page is true: the ways above, then tests by their names."""
    found = []
    if script := re.search(r"<!-- Written by (\w+\.py)", text):
        found.append(f"list: `{MADE[script[1]]}`")
    if file.endswith(".ipynb"):
        written = "{{ exercise" in text
        found += ["runs"] + ["exercises"] * written if minutes_of(file, text) else []
    marks = {
        "examples": r"^ *```pycon",
        "code": r'^ *```python.*title="minimax_',
        "figure": r"^--8<-- \"assets/figures",
        "widget": r"data-widget=",
        "table": r"^<!-- table: ",
        "times": r"^<!-- plans?: ",
        "slides": r"lecture\.html",
    }
    found += [way for way, mark in marks.items() if re.search(mark, text, re.MULTILINE)]
    if file.startswith("internals/"):
        return found  # they speak of tests, and are proved by none
    tests = []
    for block in re.findall(r'^ *```python.*title="(tests/\S+\.py)".*\n((?:.*\n)*?) *```', text, re.MULTILINE):
        tests += [(name, block[0]) for name in re.findall(r"def test_(\w+)\(", block[1])]
    spoken = re.sub(r"[^\w/.`]+", " ", text.lower())
    for path in filter(is_ours, dict.fromkeys(re.findall(r"`(tests/[\w/]+\.py)`", text))):
        names = re.findall(r"^def test_(\w+)\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        tests += [(name, path) for name in names if name.replace("_", " ") in spoken] or [("", path)]
    tests = list(dict.fromkeys(tests))
    if len(tests) > 6:
        return [*found, f"{len(tests)} tests, by name on the page"]
    return found + [f"{name.replace('_', ' ')}: `{path}`" if name else f"`{path}`" for name, path in tests]


LEAD = """\
<!-- Written by make_pages.py: change that, not this. -->

# Every page and its proof

**{count} pages and notebooks, in the order of the site: what each one answers, how long it takes, and the test that
fails when it is no longer true.** Reading all of it takes about {hours} hours, the {exercises} exercises about {more}.
{seconds}
## What the short words mean

| | | test |
|---|---|---|
{ways}

Where a test has a name, it stands there in words: `three forms one function` is `test_three_forms_one_function`. A page
without a proof is prose. A time is given by whoever wrote the page; a test asks that it lies between {low:g} and
{high:g} times what {words} words and {lines} lines of code a minute would give (`tests/docs/test_times.py`).
"""
RAN = "\nNotebooks run for {seconds} seconds on {where}, measured by `python docs/make_pages.py --time`.\n"


def measured() -> dict:
    """What `--time` left behind."""
    return json.loads(SECONDS.read_text(encoding="utf-8"))


def ran(stored: dict) -> dict[str, int]:
    """Notebook → the seconds for which it ran, of those that are still what they were."""
    return {file: it["seconds"] for file, it in stored["notebooks"].items() if it["digest"] == digest(file)}


def digest(file: str) -> str:
    """Eight letters of a notebook."""
    path = DOCS / file
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else ""


def page_of_pages() -> str:
    """The Markdown of pages.md."""
    known, stored = {thing.place: thing for thing in things().values()}, measured()
    seconds, where = ran(stored), stored["where"]
    read = {file: known[file] for pages in sections().values() for file in pages}
    ways = ((name, told, f"`{test}`" if "/" in test else test) for name, (told, test) in WAYS.items())
    span = f"{min(seconds.values())} to {max(seconds.values())}" if seconds else ""
    lead = LEAD.format(
        count=len(read),
        hours=round(sum(thing.minutes or 0 for thing in read.values()) / 60),
        exercises=len(EXERCISES),
        words=WORDS,
        lines=LINES,
        low=LOW,
        high=HIGH,
        more=round(sum(asked.minutes for asked in EXERCISES.values()) / 60),
        seconds=RAN.format(seconds=span, where=where) if seconds else "",
        ways="\n".join(f"| {' | '.join(way)} |" for way in ways),
    )
    parts = [lead]
    for section, pages in sections().items():
        rows = ["| page | min | what it answers | proof |", "|---|---|---|---|"]
        for file, title in pages.items():
            thing = known[file]
            told = says(thing.text) if file != "pages.md" else "What each page answers, and what proves it."
            takes = f"{thing.minutes} + {thing.own}" if thing.own else str(thing.minutes or "")
            if file in seconds:
                takes += f"<br>runs {seconds[file]} s"
            shown = "<br>".join(proofs(file, thing.text if file != "pages.md" else LEAD.partition("\n")[0]))
            rows.append(f"| [{title}]({file}) | {takes} | {told or NOT_YET} | {shown} |")
        parts.append(f"## {section}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


# --- For programs that read -------------------------------------------------------------------------------------------

INTRODUCED = """\
# minimax-twin

> MiniMax-Text-01 twice: once in pure NumPy, to be read and trusted, once in PyTorch, to be fast, and a cross-check that
> proves, part by part, that the two are the same model, and does the same for anybody's port or kernel.

Letters: B sequences, T positions, D channels, H heads of d channels, E experts of which K work, L layers.
Each page below answers one question; what it answers stands behind its link.
"""


def llms() -> str:
    """The text of llms.txt: what there is and where, for those who read by program."""
    known, parts = {thing.place: thing for thing in things().values()}, [INTRODUCED]
    for section, pages in sections().items():
        rows = []
        for file, title in pages.items():
            place = "" if file == "index.md" else f"{file.removesuffix('.md').removesuffix('.ipynb')}/"
            place = place.replace("/index/", "/")
            told = "What each page answers, and what proves it." if file == "pages.md" else says(known[file].text)
            rows.append(f"- [{title}]({place or './'}): {re.sub(r'[*`]', '', told)}")
        parts.append(f"## {section}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


# --- Seconds ---------------------------------------------------------------------------------------------------------


def measure() -> None:
    """Run every notebook and keep how long it took, in whole seconds."""
    import nbformat
    from nbclient import NotebookClient

    found = {}
    written = [thing.place for thing in things().values() if thing.place.endswith(".ipynb") and thing.minutes]
    for file in written:
        book, start = nbformat.read(DOCS / file, as_version=4), time.perf_counter()
        NotebookClient(book, timeout=600, resources={"metadata": {"path": str(DOCS / "notebooks")}}).execute()
        found[file] = {"seconds": math.ceil(time.perf_counter() - start), "digest": digest(file)}
        print(f"{file}: {found[file]['seconds']} s")
    told = {"where": f"a machine with {os.cpu_count()} cores", "notebooks": found}
    SECONDS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Write all of it."""
    if "--time" in sys.argv[1:]:
        measure()
    known = things()
    for file in pages_with_plans():
        (DOCS / file).write_text(filled(file, source(file), known), encoding="utf-8", newline="\n")
    (DOCS / "pages.md").write_text(page_of_pages(), encoding="utf-8", newline="\n")
    (DOCS / "llms.txt").write_text(llms(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
