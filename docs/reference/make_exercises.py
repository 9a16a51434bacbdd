"""Write exercises.md from the exercises themselves: `python docs/reference/make_exercises.py`."""

from pathlib import Path
from textwrap import indent

from minimax_numpy.check.exercises import CHAPTERS, EXERCISES
from minimax_numpy.check.exercises.registry import KINDS
from minimax_numpy.check.grade import MODULE, POINTS

ASKED = {
    "predict": "what comes out, before you run it",
    "by hand": "a case small enough for paper",
    "implement": "a function, from its equation",
    "derive": "a formula, and what it gives here",
    "debug": "which mistake is in a broken model",
    "measure": "a few lines that find a number",
    "estimate": "bytes, parameters, work",
    "design": "a choice that meets a budget",
    "port": "one op in your own language",
}

LEAD = """\
<!-- Written by make_exercises.py: change that, not this. -->

# Exercises

**{count} exercises, about {hours} hours, each with two hints, a solution and a check that says what is wrong: the
first wrong position, by how much, the likely mistake and its cure. NumPy is all they need.**

```pycon
>>> from minimax_numpy.check import exercise
>>> exercise("2.1", 0.9375)
2.1 · Four steps: not yet.
0.9375 is a typical answer, but not the right one.
It looks as if a token's own contribution is decayed.
Cure: Decay what was there, then add k v.
Help: exercise.hint("2.1", 1), then 2, then exercise.solution("2.1").

```

`exercise()` lists them all, `exercise("2.3")` asks, `exercise.stub("2.3")` is where to begin, and
`exercise("2.3", mine)` gives the verdict. `broken(1)` to `broken(8)` are the models of chapter 9, and an answer to
chapter 10 is a file that your program wrote, in any language. Those with points are graded: see
[Grading](../teach/grading.md).

{kinds}
"""


def anchor(asked):
    """The id of an exercise's heading."""
    return f"e{asked.number.replace('.', '-')}"


def fold(kind, title, text):
    """A box that is closed until it is clicked."""
    return f'??? {kind} "{title}"\n\n{indent(text, "    ")}'


def code(text):
    return f"```python\n{text.rstrip()}\n```"


def entry(asked):
    """One exercise: what is asked, then hints, solution and typical mistakes, folded."""
    said = code(asked.stub) if asked.task else asked.statement
    mistakes = "\n".join(
        f"- {mistake.says[:1].upper()}{mistake.says[1:]}. {mistake.cure}" for mistake in asked.mistakes
    )
    blocks = [f"### {asked.number} · {asked.title} {{ #{anchor(asked)} }}", said]
    blocks += [fold("tip", title, hint) for title, hint in zip(("A hint", "Another hint"), asked.hints)]
    blocks.append(fold("success", "Solution", f"{code(asked.solution)}\n\n{asked.reason}"))
    return "\n\n".join([*blocks, fold("warning", "Typical mistakes", mistakes)] if mistakes else blocks)


def chapter(number):
    """A table of a chapter's exercises, then each of them."""
    inside = [asked for asked in EXERCISES.values() if asked.chapter == number]
    table = ["| | | kind | minutes | difficulty | points |", "|---|---|---|---|---|---|"]
    for asked in inside:
        stars = "●" * asked.difficulty + "○" * (3 - asked.difficulty)
        points = str(POINTS) if asked.number in MODULE else ""
        cells = asked.number, f"[{asked.title}](#{anchor(asked)})", asked.kind, str(asked.minutes), stars, points
        table.append(f"| {' | '.join(cells)} |")
    return "\n\n".join([f"## {number} · {CHAPTERS[number]}", "\n".join(table), *map(entry, inside)])


def kinds():
    """A table of the kinds and the exercises of each."""
    table = ["| kind | what is asked | exercises |", "|---|---|---|"]
    for kind in KINDS:
        links = [f"[{n}](#{anchor(asked)})" for n, asked in EXERCISES.items() if asked.kind == kind]
        table.append(f"| {kind} | {ASKED[kind]} | {' · '.join(links)} |")
    return "\n".join(table)


def page():
    """The Markdown of the page."""
    hours = round(sum(asked.minutes for asked in EXERCISES.values()) / 60)
    lead = LEAD.format(count=len(EXERCISES), hours=hours, kinds=kinds()).rstrip()
    return "\n\n".join([lead, *map(chapter, CHAPTERS)]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("exercises.md").write_text(page(), encoding="utf-8", newline="\n")
