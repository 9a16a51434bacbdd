"""Write the question bank and its answers from bank.toml: `python docs/teach/make_bank.py`.

What an answer computes is run here, and stands on the page of answers as an example, which the tests run again.
"""

import ast
import re
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
KINDS = {"choice": "multiple choice", "short": "short answer", "essay": "essay"}
SETUP = """\
import math
import numpy as np
from minimax_numpy import MiniMaxConfig, ops
from minimax_numpy.check.exercises.chapter9 import examine
from minimax_numpy.counts import count
counts = count(MiniMaxConfig.text_01())
"""

QUESTIONS = """\
<!-- Written by make_bank.py: change bank.toml, not this. -->

# Question bank

**{count} questions in {topics} topics, with minutes and level: {kinds}. Answers stand
[apart](answers.md), with reasons, and with what a typical wrong answer shows.** They ask other things than the
[exercises](../reference/exercises.md), so both can be given to the same class. The answers are public: for an
examination change the numbers, and let the code beside an answer compute the new ones.

{table}

## Ready-made tests

{papers}
"""
ANSWERS = """\
<!-- Written by make_bank.py: change bank.toml, not this. -->

# Question bank: answers

**What is right and why; then what people answer instead, and what that shows. Where an answer is computed, the code
stands below it and is run by the tests.** The questions are [on their own page](questions.md). The wrong answers are
of the kind that the [exercises](../reference/exercises.md) know and that ports of this model give; how often a class
gives them was not measured.

```pycon
{setup}
```
"""


def bank() -> dict:
    """Questions and papers, each question with its number."""
    found = tomllib.loads((HERE / "bank.toml").read_text(encoding="utf-8"))
    for number, asked in enumerate(found["question"], 1):
        asked["number"] = number
    return found


def namespace() -> dict:
    """What code in the bank knows."""
    known: dict = {}
    exec(SETUP, known)
    return known


def session(code: str, known: dict) -> str:
    """Code as a console shows it, with what its last line gives."""
    body, lines, text = ast.parse(code.strip()).body, [], code.strip().splitlines()
    for statement in body:
        start, *rest = text[statement.lineno - 1 : statement.end_lineno]
        lines += [f">>> {start}", *(f"... {line}".rstrip() for line in rest)]
    *before, last = body
    exec(compile(ast.Module(before, []), "<bank>", "exec"), known)
    if isinstance(last, ast.Expr):
        lines.append(repr(eval(compile(ast.Expression(last.value), "<bank>", "eval"), known)))
    else:
        exec(compile(ast.Module([last], []), "<bank>", "exec"), known)
    return "\n".join(lines) + "\n"


def number(expression: str, known: dict) -> str:
    """What a wrong answer comes to, exactly where that is short, else to four figures.

    >>> number("1000**2", {}), number("1 + 2**-8", {}), number("1 / 3", {})
    ('1,000,000', '1.00390625', '0.3333')
    """
    x = float(eval(expression, dict(known)))
    if x == int(x) and abs(x) >= 1:
        return f"{x:,.0f}"
    return repr(x) if len(repr(x)) <= 12 else f"{x:.4g}"


def stars(level: int) -> str:
    return "●" * level + "○" * (3 - level)


def letters(asked: dict) -> list[tuple[str, str]]:
    """a, b, c … and the choices."""
    return list(zip("abcdef", asked.get("choices", [])))


def line(asked: dict, link: str) -> str:
    """Number, kind, minutes and level: the line that a question begins with."""
    return (
        f"**{asked['number']}** · {KINDS[asked['kind']]} · {asked['minutes']} min · {stars(asked['level'])} · {link}\n"
        f"{{ #{asked['id']} }}"
    )


def question(asked: dict) -> str:
    """A question as it is asked."""
    parts = [line(asked, f"[answer](answers.md#{asked['id']})"), asked["ask"]]
    if asked["kind"] == "choice":
        parts.append("\n".join(f"- **{letter}** {choice}" for letter, choice in letters(asked)))
    return "\n\n".join(parts)


def answer(asked: dict, known: dict) -> str:
    """What is right, the code, and what wrong answers show."""
    right = " ".join(asked["answer"].split())
    if asked["kind"] == "choice":
        choice = dict(letters(asked))[asked["right"]]
        right = f"**{asked['right']}: {choice}.** {right}"
    parts = [line(asked, f"[question](questions.md#{asked['id']})"), right]
    if "compute" in asked:
        parts.append(f"```pycon\n{session(asked['compute'], known)}\n```")
    rows = ["| answered | shows |", "|---|---|"]
    for given, shows in asked.get("wrong", []):
        rows.append(f"| {number(given[1:], known) if given.startswith('=') else given} | {shows} |")
    return "\n\n".join([*parts, "\n".join(rows)] if asked.get("wrong") else parts)


def by_topic(questions: list[dict], show) -> str:
    """Questions under the titles of their topics."""
    parts, topic = [], None
    for asked in questions:
        if asked["topic"] != topic:
            topic = asked["topic"]
            parts.append(f"## {topic}")
        parts.append(show(asked))
    return "\n\n".join(parts)


def table(questions: list[dict]) -> str:
    """How many there are of each topic and kind, and minutes."""
    rows = [f"| topic | {' | '.join(KINDS.values())} | minutes |", "|---" * (len(KINDS) + 2) + "|"]
    for topic in dict.fromkeys(asked["topic"] for asked in questions):
        of = [asked for asked in questions if asked["topic"] == topic]
        counts = [str(sum(asked["kind"] == kind for asked in of)) for kind in KINDS]
        anchor = re.sub(r"[^\w]+", "-", topic.lower())
        rows.append(f"| [{topic}](#{anchor}) | {' | '.join(counts)} | {sum(asked['minutes'] for asked in of)} |")
    return "\n".join(rows)


def papers(found: dict) -> str:
    """Ready-made tests: numbers and minutes."""
    by_id = {asked["id"]: asked for asked in found["question"]}
    rows = ["| | questions | minutes |", "|---|---|---|"]
    for paper in found["paper"]:
        chosen = [by_id[name] for name in paper["questions"]]
        links = ", ".join(f"[{asked['number']}](#{asked['id']})" for asked in chosen)
        rows.append(f"| {paper['name']} | {links} | {sum(asked['minutes'] for asked in chosen)} |")
    return "\n".join(rows)


def pages() -> dict[str, str]:
    """File name → Markdown."""
    found, known = bank(), namespace()
    questions = found["question"]
    kinds = [f"{sum(asked['kind'] == kind for asked in questions)} of {name}" for kind, name in KINDS.items()]
    lead = QUESTIONS.format(
        count=len(questions),
        topics=len({asked["topic"] for asked in questions}),
        kinds=f"{', '.join(kinds[:-1])} and {kinds[-1]}",
        table=table(questions),
        papers=papers(found),
    )
    setup = "".join(f">>> {line}\n" for line in SETUP.splitlines())
    answers = ANSWERS.format(setup=setup)
    return {
        "questions.md": f"{lead}\n{by_topic(questions, question)}\n",
        "answers.md": f"{answers}\n{by_topic(questions, lambda asked: answer(asked, known))}\n",
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8", newline="\n")
