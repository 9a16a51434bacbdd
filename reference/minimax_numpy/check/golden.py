"""Golden vectors: inputs and answers as safetensors, for programs that share no Python with us.

A folder holds three files.

| file | holds |
|---|---|
| ``inputs.safetensors`` | ``0.q``, ``0.k`` … the arrays of case 0, in float64; or a model's ``input_ids`` |
| ``expected.safetensors`` | the answers, ``0.out`` …; with each its ``.magnitude`` and ``.plain.float32`` … |
| ``golden.json`` | what it is, who made it, and each case's numbers that are not arrays |

The other program writes its answers under the names of ``expected.safetensors``, in whichever type it computes in.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import ops
from ..checkpoint import read_header, read_tensors, save_tensors, write_whole
from ..model import MiniMaxForCausalLM
from ..trace import UNIT_ROUNDOFF
from .crosscheck import Runs, rounded
from .judge import SAME_NUMBERS, first_wrong, judge, rms
from .report import MISSING, Report, Row
from .single import CASES, MAGNITUDES, Case, Projection, answers, judge_answer, nearest_mistake, outputs
from .targets import Call, NumpyTarget

SCHEMA = 1
NARROW_AS_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
NARROW = tuple(NARROW_AS_STORED.values())


def write_op(folder: str | os.PathLike, name: str, seed: int = 0) -> Path:
    """Write golden vectors of one op, a case for each of `check_op`'s sweep.

    Raises ValueError where there is no such op.
    """
    if name not in CASES:
        raise ValueError(f"There is no op {name!r}; there are {', '.join(sorted(CASES))}.")
    right, inputs, expected, told = getattr(ops, name), {}, {}, []
    for i, case in enumerate(CASES[name](np.random.default_rng(seed))):
        numbers: dict[str, Any] = {}
        for key, x in case.arguments.items():
            for place, item in enumerate(x) if isinstance(x, list) else [(None, x)]:
                label = f"{i}.{key}" if place is None else f"{i}.{key}.{place}"
                if isinstance(item, Projection | np.ndarray):
                    inputs[label] = item.weight if isinstance(item, Projection) else item
                else:
                    numbers[key] = item
        told.append({"case": case.label, **numbers})
        exact = answers(right, case)
        sizes = answers(MAGNITUDES[name], case) if name in MAGNITUDES else exact
        plain = {dtype: answers(right, case, right, dtype) for dtype in NARROW}
        for n, output in enumerate(outputs(name)):
            key = f"{i}.{output}"
            expected[key] = exact[n]
            expected[f"{key}.magnitude"] = np.array(rms(sizes[n]))
            for dtype in NARROW:
                expected[f"{key}.plain.{dtype}"] = np.array(rms(plain[dtype][n] - exact[n]))
    return _write(folder, inputs, expected, {"op": name, "seed": seed, "cases": told})


def write_model(folder: str | os.PathLike, model: MiniMaxForCausalLM, length: int = 40, seed: int = 0) -> Path:
    """Write golden vectors of a whole model's prefill: every part by name."""
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (2, length))
    calls = [Call("prefill", ids, start=True)]
    expected: dict[str, np.ndarray] = {}
    for dtype in NARROW:
        runs = Runs(model, NumpyTarget(model), dtype, calls)
        alone = runs.run(rounded(model, dtype), round_to=dtype)
        for part, x in runs.true[0].items():
            expected[part] = x
            expected[f"{part}.magnitude"] = np.array(rms(runs.sizes[0][part]))
            expected[f"{part}.plain.{dtype}"] = np.array(rms(alone[0][part] - x))
    parts = [name for name in expected if name.split(".")[-1] not in ("magnitude", *NARROW)]
    return _write(folder, {"input_ids": ids}, expected, {"model": model.head, "seed": seed, "parts": parts})


def judge_golden(folder: str | os.PathLike, against: str | os.PathLike) -> Report:
    """Judge a file of answers by the golden vectors in a folder; each tensor by the type that it is stored in.

    Raises FileNotFoundError or ValueError where either is not what it should be.
    """
    report, name, outcomes = compare(Path(folder), against)
    if report.first and name:
        report.looks_like, report.cure = nearest_mistake(name, by_case(name, outcomes))
    return report


def compare(folder: Path, against: str | os.PathLike) -> tuple[Report, str | None, list]:
    """The report without its guess, the op's name, and what was found of each answer of an op that is there."""
    told = read_story(folder)
    inputs, expected = (read_tensors(folder / f"{name}.safetensors") for name in ("inputs", "expected"))
    found = read_tensors(against)
    stored = read_header(Path(against))
    name = told.get("op")
    cases = [rebuild(i, numbers, inputs) for i, numbers in enumerate(told.get("cases", []))]
    report = Report(
        f"{Path(against).name} against golden vectors of {name or told['model']}", each="case" if name else "phase"
    )
    outcomes = []
    keys = [f"{i}.{output}" for i in range(len(cases)) for output in outputs(name)] if name else told["parts"]
    absent = [key for key in keys if key not in expected]
    if absent:
        raise ValueError(f"{folder} lacks the expected {absent[0]!r}; make the folder again with minimax-twin golden.")
    for key in keys:
        exact = expected[key].astype(np.float64)
        case = cases[int(key.split(".")[0])] if name else None
        row = Row(key.split(".", 1)[1] if name else key, case.label if case else "prefill", exact.shape)
        report.rows.append(row)
        if key not in found:
            row.verdict = MISSING
            optional = "mask" in case.arguments if case else key != "lm_head"  # not all know padding
            report.lacking = report.lacking or (None if optional else key)
            continue
        dtype = NARROW_AS_STORED.get(stored[key].dtype, "float64")
        allowed = SAME_NUMBERS * rms(exact)
        if dtype != "float64":
            allowed = float(
                2 * expected[f"{key}.plain.{dtype}"] + 4 * UNIT_ROUNDOFF[dtype] * expected[f"{key}.magnitude"]
            )
        x = found[key].astype(np.float64)
        if name and case:
            judge_answer(row, name, case, x, exact, allowed)
            outcomes.append((case, [row], [x], [exact], row.part))
            continue
        judge(row, x, exact, allowed)
        if row.wrong and x.shape == exact.shape:
            row.where = first_wrong(np.abs(x - exact), allowed, " ".join("BTHd"[: exact.ndim]))
    unknown = [key for key in found if key not in expected and key != "input_ids"]
    if unknown:
        report.notes.append(f"not compared, for there is no such answer: {', '.join(unknown[:4])}")
    return report, name, outcomes


def read_story(folder: Path) -> dict:
    """Read golden.json, or say how to make the folder again."""
    file = folder / "golden.json"
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}; minimax-twin golden {folder} --op NAME writes such a folder.")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        whole = told["op"] in CASES and all("case" in case for case in told["cases"]) if "op" in told else told["parts"]
        if told["schema"] != SCHEMA or not whole:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file} is not of schema {SCHEMA}; make the folder again with minimax-twin golden.") from None
    return told


def rebuild(i: int, numbers: dict, inputs: dict[str, np.ndarray]) -> Case:
    """A case from its files."""
    arguments = {key: x for key, x in numbers.items() if key != "case"}
    for key, x in inputs.items():
        case, name, *place = key.split(".")
        if case == str(i):
            if place:
                arguments.setdefault(name, []).append(x)
            else:
                arguments[name] = Projection(x) if name == "project" else x
    return Case(numbers["case"], arguments)


def by_case(name: str, outcomes: list) -> list:
    """Outcomes of those cases of which every answer is there."""
    merged: dict[str, tuple[Case, dict]] = {}
    for case, rows, found, exact, part in outcomes:
        merged.setdefault(case.label, (case, {}))[1][part] = (rows[0], found[0], exact[0])
    return [
        (case, *(list(column) for column in zip(*(parts[o] for o in outputs(name)), strict=True)))
        for case, parts in merged.values()
        if all(o in parts for o in outputs(name))
    ]


def _write(folder: str | os.PathLike, inputs: dict, expected: dict, told: dict) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    told = {"schema": SCHEMA, "made_by": "minimax-twin golden", "numpy": np.__version__, **told}
    for name, tensors in (("inputs", inputs), ("expected", expected)):
        arrays = {key: np.asarray(x) for key, x in tensors.items()}
        write_whole(folder / f"{name}.safetensors", partial(save_tensors, tensors=arrays))
    write_whole(folder / "golden.json", lambda file: file.write_text(json.dumps(told, indent=1) + "\n"))
    return folder
