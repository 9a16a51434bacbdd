"""Write defects-of-transformers.md from what the tests measure: `python docs/proof/make_defects.py`."""

import runpy
import sys
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[2]
LEAD = """\
<!-- Written by make_defects.py: change that, not this. -->

# Where transformers differs

**In transformers, a prompt, a prompt padded on the left, and greedy decoding without padding agree with this project
to float32’s rounding, if `layer_types` are given and the whole head rotates. Elsewhere the two differ: here is where,
and by how much.**

transformers is where most people meet MiniMax-Text-01, it gave this project its names, and wherever it is right it is
the peer that the twins are tested against: every part of every layer, losses, task heads, and files both ways
(`tests/peers/test_transformers.py`). Whoever compares a port with it should know where else it can be trusted.

Each row is a test (`tests/peers/test_defects.py`): one measure, asked of transformers and of both twins, on one small
model of seven lightning layers and a softmax layer, as released. Of logits the figure is a relative error, of tokens
the share that differs; a word in place of a figure is the exception that is raised. The last column is the worse of
the twins.
"""
TAIL = """\
Rows 2, 3, 4, 5, 7 and 8 are matters of order: the cache takes its length from layer 0, which has no keys if that layer
is a lightning layer, and looks for states behind the last lightning layer. In transformers’ own default order, softmax
first and lightning last, none of them appears, and a test sees to that, too.

Row 10 and the first row 11 have one cause: the mistake `padding_decays`, [planted](../reference/defects.md) in the
reference, gives the same figures to four digits.

Row 9, row 12 and the second row 3 are asked of the PyTorch twin alone: NumPy has no bfloat16, the reference does not
train, and its attention has one form. In rows 15 the model has 32 experts, as released; at the released sizes the
experts are 95.3 % of the weights.

The figures are those of the release that heads the column. A later one is welcome to mend them.
"""


def figure(found: float | str, unit: str) -> str:
    """A number as the page prints it; or the exception's name."""
    if isinstance(found, str):
        return f"`{found}`"
    if unit in ("tokens", "weights"):
        return f"{100 * found:.0f} %"
    if unit == "errors of a prefill":
        return f"{found:.1f} ×"
    return f"{found:.2f}" if found > 0.01 else f"{found:.0e}".replace("e-0", "e-") if found else "0"


def page(measured) -> str:
    """The Markdown of the page, from the claims and what was found of them."""
    head = f"| | in transformers; what is measured | of | transformers {transformers.__version__} | twins |"
    rows = [head, "|---|---|---|---|---|"]
    for claim, theirs, ours in measured:
        told = f"**{claim.differs}**<br>{claim.measure.__doc__.splitlines()[0]}"
        cells = claim.number, told, claim.unit, figure(theirs, claim.unit), figure(ours, claim.unit)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([LEAD, *rows, "", TAIL])


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests")]
    measured = runpy.run_path(str(ROOT / "tests/peers/test_defects.py"))["measured"]
    target = Path(__file__).with_name("defects-of-transformers.md")
    target.write_text(page(measured()), encoding="utf-8", newline="\n")
