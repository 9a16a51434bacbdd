"""Every exercise is a contract: its stub fails and teaches, its solution passes, a mistake is called by its name."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from exercises.answers import RIGHT, WRONG, in_float32
from exercises.programs import written
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.check import DEFECTS, broken, exercise
from minimax_numpy.check.exercises import CHAPTERS, EXERCISES, intact
from minimax_numpy.check.exercises.chapter9 import KEYS, examine, symptom
from minimax_numpy.check.exercises.functions import FLOAT32, answers, attempt
from minimax_numpy.check.exercises.registry import KINDS, build
from minimax_numpy.check.exercises.values import worth
from minimax_numpy.check.judge import rms

IMPLEMENTING = [e for e in EXERCISES.values() if e.task]
every_exercise = pytest.mark.parametrize("number", EXERCISES)
every_function = pytest.mark.parametrize("asked", IMPLEMENTING, ids=lambda asked: asked.number)
right_answers = pytest.mark.parametrize("number, function", RIGHT, ids=[f.__name__ for _, f in RIGHT])


def made(asked, source):
    """What a piece of source of an exercise is worth: its function, its value, or the file that it writes."""
    if asked.kind == "port":
        return written(source)
    return build(source, asked.task.function) if asked.task else worth(source)


@every_exercise
def test_an_exercise_is_whole(number):
    """Minutes, difficulty, two hints, a reason; and the statement does not give the solution away."""
    asked = EXERCISES[number]
    assert asked.number == number and asked.chapter in CHAPTERS
    assert 1 <= asked.minutes <= 60 and asked.difficulty in (1, 2, 3)
    assert all((asked.title, asked.statement, asked.reason, *asked.hints)) and asked.hints[0] != asked.hints[1]
    assert asked.solution.strip() not in asked.stub + asked.statement
    assert str(exercise(number)).endswith(asked.statement) and asked.title in exercise()


def test_there_are_exercises_of_every_kind():
    assert {asked.kind for asked in EXERCISES.values()} == set(KINDS)


@every_exercise
def test_a_stub_fails_and_shows_where_to_begin(number):
    asked = EXERCISES[number]
    verdict = exercise(number, made(asked, exercise.stub(number)) if asked.task else ...)
    assert not verdict.ok and asked.hints[0] in str(verdict)


@every_exercise
def test_a_solution_passes_and_says_why(number):
    asked = EXERCISES[number]
    verdict = exercise(number, made(asked, exercise.solution(number) if asked.task else asked.solution))
    assert verdict.ok and asked.reason in str(verdict), verdict


@right_answers
def test_a_correct_variant_is_not_refused(number, function):
    assert (verdict := exercise(number, function)).ok, verdict


COARSE = {"2.4", "4.2", "8.3"}  # numbers without arrays, angles at position 100,000, bits: float32 is another task
NARROW = [(number, f) for number, f in RIGHT if number not in COARSE]


@pytest.mark.parametrize("number, function", NARROW, ids=[f.__name__ for _, f in NARROW])
def test_a_correct_variant_in_float32_is_not_refused(number, function):
    assert (verdict := exercise(number, in_float32(function))).ok, verdict


def test_every_implementing_exercise_has_two_variants_and_three_mistakes():
    for asked in IMPLEMENTING:
        assert sum(number == asked.number for number, _ in RIGHT) >= 2, asked.number
        assert sum(number == asked.number for number, _, _ in WRONG) >= 3, asked.number
        assert len(asked.mistakes) >= 3, asked.number


def share_of_hints(bank):
    """How many of (number, name of the mistake, answer) are called by their name; the misses are listed."""
    verdicts = [(number, says, exercise(number, answer)) for number, says, answer in bank]
    misses = [f"{n}: {says} was called {v.mistake}" for n, says, v in verdicts if v.ok or v.mistake != says]
    return 1 - len(misses) / len(bank), "\n".join(misses)


def test_wrong_answers_get_the_hint_that_names_their_mistake():
    """Answers in other people's words, in float64 and in float32: at least 95 %."""
    narrow = [(number, says, in_float32(f)) for number, says, f in WRONG if number not in COARSE]
    share, misses = share_of_hints(WRONG + narrow)
    assert share >= 0.95, misses


def test_known_mistakes_are_called_by_their_names():
    """The mistakes that are kept with the exercises, numbers too: all of them."""
    bank = [(n, m.says, made(asked, m.source)) for n, asked in EXERCISES.items() for m in asked.mistakes]
    share, misses = share_of_hints(bank)
    assert share == 1, misses


@every_function
def test_every_mistake_is_far_beyond_what_float32_excuses(asked):
    """In some case its error is ten times what is allowed, so that the allowance hides no mistake."""
    cases = list(asked.task.cases(np.random.default_rng(0)))
    exact = [answers(asked.task.truth, case) for case in cases]
    for mistake in asked.mistakes:
        wrong = [attempt(made(asked, mistake.source), case.arguments)[0] for case in cases]
        assert any(
            m is None
            or any(x.shape != e.shape or not rms(1.0 * x - e) <= 10 * FLOAT32 * rms(e) for x, e in zip(m, right))
            for m, right in zip(wrong, exact)
        ), mistake.says


@every_function
@pytest.mark.parametrize("spoil", [np.zeros_like, lambda x: np.full(x.shape, np.nan), lambda x: x[..., :0]])
def test_garbage_never_passes(asked, spoil):
    def garbage(*arguments):
        made = asked.task.truth(*arguments)
        return tuple(map(spoil, made)) if isinstance(made, tuple) else spoil(made)

    assert not exercise(asked.number, garbage).ok


def test_a_message_says_where_and_by_how_much():
    """The last token of the fourth position is spoilt: that is what is told."""

    def nearly(q, k, v):
        out = made(EXERCISES["1.3"], EXERCISES["1.3"].solution)(q, k, v)
        out[3:, 1] += 0.25
        return out

    verdict = exercise("1.3", nearly)
    assert "First wrong: out, in the case “shapes” (q [6, 6], k [6, 6], v [6, 6])." in str(verdict)
    assert "At T = 3, e = 1 it is" in str(verdict) and verdict.mistake is None


@pytest.mark.parametrize(
    "answer, told",
    [
        (lambda *_: None, "It returns None; is there a return?"),
        (lambda q, *_: q, "It returns 1 array, not 2 (out, state)."),
        (lambda q: q, "It fails with TypeError"),
        (lambda *x: recurrent_in_place(*x), "It changes its argument state in place"),
        (3.5, "The answer is a function, recurrent; this is a float."),
    ],
)
def test_trouble_is_told_in_a_sentence(answer, told):
    assert told in str(exercise("2.3", answer))


def recurrent_in_place(q, k, v, slopes, state):
    out, state[:] = ops.lightning_attention_recurrent(q, k, v, slopes, state)
    return out, state


@pytest.mark.parametrize(
    "answer, told", [("many", "one number"), (-1, "a positive number"), (2.5, "too small, by less")]
)
def test_a_number_that_nobody_knows_is_too_large_or_too_small(answer, told):
    assert told in str(exercise("1.1", answer))


@pytest.mark.parametrize(
    "number, design",
    [("6.5", (112, 7, 2560)), ("6.5", [144, 9, 2048]), ("7.7", (15, 13_038)), ("7.7", (25, 8_232)),
     ("7.5", (["linear_attention"] * 20 + ["full_attention"]) * 3 + ["linear_attention"] * 17)],
)  # fmt: skip
def test_another_design_that_meets_the_budget_is_right(number, design):
    assert (verdict := exercise(number, design)).ok, verdict


@pytest.mark.parametrize(
    "number, design, told",
    [("6.5", (128, 8), "three whole numbers"), ("6.5", (128, 8, 2304.0), "three whole numbers"),
     ("6.5", (128, 8, 2300), "multiple of 256"), ("6.5", (96, 6, 3072), "927,048,304 sets. That is less"),
     ("6.5", (1024, 8, 2304), "too many"), ("7.7", 20, "two whole numbers"), ("7.7", (81, 9_000), "80 layers"),
     ("7.7", (14, 13_897), "back 194,544 tokens. That is not far enough"), ("7.7", (26, 8_192), "more than 1 GiB"),
     ("7.7", (15, 13_039), "more than 1 GiB")],
)  # fmt: skip
def test_a_design_that_does_not_is_told_why(number, design, told):
    assert told in str(exercise(number, design))


def test_the_page_of_exercises_is_up_to_date():
    script = Path(__file__).parents[2] / "docs/reference/make_exercises.py"
    stored = script.with_name("exercises.md").read_text(encoding="utf-8")
    assert stored == runpy.run_path(str(script))["page"](), f"run python {script.relative_to(script.parents[2])}"


def test_what_there_is_not_is_a_sentence():
    for ask in (lambda: exercise("0.0"), lambda: exercise.hint("1.1", 3), lambda: broken(9)):
        with pytest.raises(ValueError, match="There is no .*; .*[.]$"):
            ask()


@pytest.mark.parametrize("key", KEYS)
def test_a_broken_model_is_diagnosed_by_its_report(key):
    """The report differs and keeps its guess to itself; another defect has its own symptom laid beside."""
    number = KEYS.index(key) + 1
    report = str(broken(number))
    assert "first difference" in report and "looks like" not in report and key not in report
    assert exercise(f"9.{number}", DEFECTS[key].says).ok
    other = exercise(f"9.{number}", "subtracts_the_mean")
    assert not other.ok and symptom(examine(key)) in str(other) and "model.layers.0.input_layernorm" in str(other)
    assert "No mistake is called" in str(exercise(f"9.{number}", "elves"))


def test_a_broken_model_shows_its_parts():
    """Broken 8 turns the channels of layer 2 wrongly, and nothing before; at position 0 there is nothing to turn."""
    ids = np.arange(3, 12)[None]
    wrong, right = broken(8).parts(ids), broken(1).parts(ids)  # 1 is right until rows are padded
    np.testing.assert_allclose(wrong["model.layers.1"], right["model.layers.1"])
    key = "model.layers.2.self_attn.key"
    np.testing.assert_allclose(wrong[key][:, 0], right[key][:, 0])
    assert not np.allclose(wrong[key][:, 1:], right[key][:, 1:])
    np.testing.assert_allclose(broken(1)(ids).logits, intact()(ids).logits)


def test_a_students_function_generates_text_inside_the_whole_model():
    """The chunked form of exercise 3.4, in the reference's place."""
    mine = made(EXERCISES["3.4"], EXERCISES["3.4"].solution)

    def fits(q, k, v, slopes, state=None, *, chunk=256, mask=None):
        state = np.zeros((*q.shape[:2], q.shape[3], v.shape[3])) if state is None else state
        return mine(q, k, v, slopes, state, chunk)

    model = MiniMaxForCausalLM(MiniMaxConfig.tiny(), dtype=np.float64)
    ids = np.array([[5, 6, 7]])
    wanted = model.generate(ids, max_new_tokens=6)
    with ops.using(lightning_attention_chunked=fits):
        np.testing.assert_array_equal(model.generate(ids, max_new_tokens=6), wanted)
