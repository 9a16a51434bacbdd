r"""Errors and what is allowed of them.

In float64, two programs that compute the same thing agree to $10^{-11}$ relative: structure is judged there.
In a narrower type the error of a part is the RMS of its difference from float64, and allowed is

$$2 \cdot \text{error of the same form in NumPy, rounded to that type}
\;+\; 4u \cdot \text{RMS of the op on } |\text{inputs}|$$

with u the unit roundoff. The first term is what the type costs anybody. The second is what it costs to sum in
another order: without it right kernels fail by chance at small shapes.
"""

import math

import numpy as np

from ..trace import UNIT_ROUNDOFF
from .report import DIFFERENT, SAME, SHAPE, Row

SAME_NUMBERS = 1e-11
LIKENESS = 0.35  # a mistake further than this from what was found is not named
FLOOR = 1e-300  # no error is divided by zero


def rms(x: np.ndarray | np.number) -> float:
    """Root of the mean square, 0 for an empty array."""
    return float(np.sqrt(np.mean(np.square(np.abs(x), dtype=np.float64)))) if x.size else 0.0


def allowance(dtype: str, exact: np.ndarray, plain: np.ndarray, magnitude: np.ndarray) -> float:
    """Largest RMS difference from ``exact`` that rounding to ``dtype`` excuses."""
    if dtype == "float64":
        return SAME_NUMBERS * rms(exact)
    return 2 * rms(plain - exact) + 4 * UNIT_ROUNDOFF[dtype] * rms(magnitude)


def judge(row: Row, found: np.ndarray, exact: np.ndarray, allowed: float, letters: str = "") -> Row:
    """Fill in a row: error, verdict, and the first wrong position along ``letters``, the names of the axes."""
    if found.shape != exact.shape:
        row.verdict, row.note = SHAPE, f"it has shape {list(found.shape)}, not {list(exact.shape)}"
        return row
    scale = max(rms(exact), FLOOR)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(found.astype(np.float64) - exact)
        row.error, row.allowed = rms(difference) / scale, allowed / scale
        if row.error <= row.allowed:  # False for NaN
            row.verdict = SAME
            return row
        row.verdict = DIFFERENT
        row.where = first_wrong(difference, allowed, letters)
        row.note = obvious(found, exact)
    return row


def first_index(difference: np.ndarray | np.number, allowed: float, letters: str) -> tuple[int, ...] | None:
    """The first index in time whose own difference is beyond what is allowed on average."""
    wrong = ~(difference <= 4 * allowed)  # 4: a single number may err more than the RMS does
    names = letters.split()
    if not wrong.any() or len(names) != difference.ndim:
        return None
    order = sorted(range(len(names)), key=lambda axis: names[axis] != "T")  # time first
    found = np.argwhere(np.transpose(wrong, order))[0]
    return tuple(int(found[order.index(axis)]) for axis in range(len(names)))


def first_wrong(difference: np.ndarray | np.number, allowed: float, letters: str) -> str | None:
    """Name the first position in time whose own difference is beyond what is allowed on average."""
    names, index = letters.split(), first_index(difference, allowed, letters)
    if not names or index is None:
        return None
    time_first = sorted(zip(names, index, strict=True), key=lambda pair: pair[0] != "T")
    return "first wrong at " + ", ".join(f"{name} = {i}" for name, i in time_first)


def obvious(found: np.ndarray, exact: np.ndarray) -> str | None:
    """Say in words what needs no planted defect to be seen."""
    if not np.isfinite(found).all():
        return "it holds NaN or infinity"
    if not found.any():
        return "it is all zeros"
    factor = float((found * exact).sum() / max(float((exact * exact).sum()), FLOOR))
    if exact.size > 1 and abs(factor - 1) > 1e-3 and rms(found - factor * exact) < 1e-3 * rms(found):
        return f"it is the right answer times {factor:.4g}"
    return None


def resemblance(found: np.ndarray, exact: np.ndarray, mistaken: np.ndarray, noise: float = 0.0) -> float:
    """How far a result lies from a mistake's, in units of its own and the mistake's distance from the truth.

    0 is the very mistake, up to ``noise``, an RMS that rounding may have added; 1 and more is no likeness.
    """
    if not found.shape == exact.shape == mistaken.shape or not (
        np.isfinite(found).all() and np.isfinite(mistaken).all()
    ):
        return 1.0
    apart = max(rms(found - exact), rms(mistaken - exact))
    return math.sqrt(max(rms(found - mistaken) ** 2 - noise**2, 0.0)) / apart if apart > 0 else 0.0
