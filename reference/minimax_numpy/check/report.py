"""What the judge says: a row for each part, and the verdict."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..checkpoint import write_whole

SAME, DIFFERENT, MISSING, SHAPE = "same", "different", "missing", "shape"


@dataclass
class Row:
    """One part in one phase. Errors are RMS differences from float64, relative to the part's RMS."""

    part: str
    phase: str
    shape: tuple[int, ...]
    error: float = math.nan
    allowed: float = math.nan
    verdict: str = SAME
    free: float | None = None
    where: str | None = None
    note: str | None = None

    @property
    def wrong(self) -> bool:
        """Whether the part is there and is not what it should be."""
        return self.verdict in (DIFFERENT, SHAPE)


@dataclass
class Report:
    """The outcome of a cross-check: ``print`` it, ask ``.ok``, or write it down."""

    title: str
    rows: list[Row] = field(default_factory=list)
    looks_like: str | None = None
    cure: str | None = None
    notes: list[str] = field(default_factory=list)
    lacking: str | None = None  # what must be there and is not: without it nothing is proved
    each: str = "phase"  # a part has a row for each of these; a table has a line a part, or a line a case

    @property
    def ok(self) -> bool:
        """True where something was compared, nothing differs, and nothing is lacking that must be there."""
        return (
            self.lacking is None
            and any(row.verdict == SAME for row in self.rows)
            and not any(row.wrong for row in self.rows)
        )

    @property
    def first(self) -> str | None:
        """The first part that differs, in the order in which the model computes them."""
        return next((row.part for row in self.rows if row.wrong), None)

    def __str__(self) -> str:
        return "\n".join([self.title, "", *self._table(), "", *self._verdict()])

    def raise_if_different(self) -> None:
        """Raise AssertionError with the verdict, unless `ok`."""
        if not self.ok:
            raise AssertionError("\n".join(self._verdict()))

    def to_json(self, path: str | os.PathLike) -> None:
        """Write everything as JSON."""
        values = {"title": self.title, "ok": self.ok, "first": self.first, "looks_like": self.looks_like}
        values |= {"cure": self.cure, "notes": self.notes, "rows": [asdict(row) for row in self.rows]}
        text = json.dumps(_without_nan(values), indent=1, allow_nan=False)
        write_whole(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))

    def plot(self, path: str | os.PathLike) -> None:
        """Draw error by depth, with what is allowed, to an SVG or PNG."""
        from .plot import plot_errors

        suffix = Path(path).suffix
        if suffix not in (".svg", ".png"):
            raise ValueError(f"{path} ends in {suffix!r}; plots are written as .svg or .png.")
        write_whole(path, lambda file: plot_errors(self, file, suffix[1:]))

    def _table(self) -> list[str]:
        lines_of: dict[str, list[Row]] = {}
        for row in self.rows:
            label = row.part if self.each == "phase" else f"{row.part} · {row.phase}"
            lines_of.setdefault(label, []).append(row)
        width = max([len(label) for label in lines_of] + [4])
        lines = [f"{'part':<{width}}  {'shape':<16} {'error':>9} {'allowed':>9}  verdict"]
        for label, rows in lines_of.items():
            row = max(rows, key=_badness)
            shape = "×".join(map(str, (row if row.wrong else rows[0]).shape)) or "()"
            error, allowed = (f"{x:9.1e}" if math.isfinite(x) else f"{'–':>9}" for x in (row.error, row.allowed))
            told = row.verdict.upper() if row.wrong else row.verdict
            told = f"{told} in {row.phase}" if row.wrong and self.each == "phase" else told
            told = f"{told} ({row.where})" if row.where else told
            told = f"{told} · {row.note}" if row.note else told
            lines.append(f"{label:<{width}}  {shape:<16} {error} {allowed}  {told}")
        return lines

    def _verdict(self) -> list[str]:
        lines = list(self.notes)
        compared = [row for row in self.rows if row.verdict != MISSING]
        missing = list(dict.fromkeys(row.part for row in self.rows if row.verdict == MISSING))
        if missing and compared:
            total = len({row.part for row in self.rows})
            lines.append(f"missing, so not judged, at least in part: {len(missing)} of {total} parts: {_some(missing)}")
        if self.ok:
            worst = max((r for r in compared if r.verdict == SAME), key=_badness)
            parts, phases = len({row.part for row in compared}), len({row.phase for row in compared})
            lines.append(
                f"the same: {parts} part{'s' * (parts != 1)} in {phases} {self.each}{'s' * (phases != 1)}; "
                f"nearest to its limit: {worst.part} ({worst.error:.1e} of {worst.allowed:.1e})"
            )
        elif self.first is None:
            lines.append(f"nothing is proved: {self.lacking or 'every part'} is missing")
        else:
            row = next(row for row in self.rows if row.wrong)
            lines.append(f"first difference: {self.first}, in {row.phase}" + (f", {row.where}" if row.where else ""))
            lines.append(f"looks like: {self.looks_like or 'none of the planted defects'}")
            lines += [f"cure: {self.cure}"] if self.cure else []
        return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _badness(row: Row) -> float:
    if row.wrong:
        return math.inf
    if row.verdict == MISSING or not math.isfinite(row.error):
        return -1.0
    return row.error / row.allowed if row.allowed else 0.0


def _without_nan(x):
    """NaN and infinity as null: JSON has neither."""
    if isinstance(x, dict):
        return {key: _without_nan(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_without_nan(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
