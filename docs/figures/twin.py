"""Draw one mistake as two judges see it: `python docs/figures/twin.py`.

The twin of the tiny model gates by a silu, once running alone and once with each part fed the reference's input. Both
errors are the cross-check's own, in float32.
"""

import minimax_numpy
import minimax_torch
import numpy as np
from kit import cell, sheet, text, write
from minimax_numpy.check import DEFECTS, crosscheck

PARTS = (
    *("input_layernorm", "self_attn.qkv_proj", "self_attn.state", "self_attn.norm.input", "self_attn.norm"),
    *("self_attn.output_gate", "self_attn.out_proj.input", "self_attn.out_proj", "post_attention_layernorm"),
    *("mlp.gate", "mlp"),
)
ALONE, FED, WIDE, HIGH = 190, 316, 112, 17


def judged():
    """Part → (error alone, error where fed the truth, whether that is too much)."""
    model = minimax_numpy.MiniMaxForCausalLM(minimax_numpy.MiniMaxConfig.tiny(), seed=0, dtype=np.float64)
    twin = minimax_torch.MiniMaxForCausalLM.from_reference(model)
    with minimax_torch.ops.using(**DEFECTS["gates_by_silu"].plant(minimax_torch.ops)):
        report = crosscheck(model, twin, dtype="float32", length=40, decode=0, layers=[0])
    rows = {row.part.removeprefix("model.layers.0."): row for row in report.rows if row.phase == "prefill"}
    return {part: (rows[part].free, rows[part].error, rows[part].wrong) for part in PARTS}


def figures():
    """File name → content."""
    parts = [text(0, 14, "parts of layer 0, in order", "soft")]
    parts += [text(ALONE, 14, "the twin alone", "bold"), text(FED, 14, "fed the truth", "bold")]
    found = judged()
    for n, (part, (alone, fed, wrong)) in enumerate(found.items()):
        y = 26 + 21 * n
        parts.append(text(ALONE - 14, y + 13, part, "end" if wrong else "soft end"))
        for x, error, off in ((ALONE, alone, alone > 1e-3), (FED, fed, wrong)):
            parts.append(cell(x, y, WIDE, HIGH, "hot" if off else "none grid", 0.36 if off else 1.0))
            parts.append(text(x + WIDE / 2, y + 13, f"{error:.2f}" if off else "same", "mid" if off else "soft mid"))
    first = next(part for part, (_, _, wrong) in found.items() if wrong)
    late = sum(alone > 1e-3 for alone, _, _ in found.values())
    label = (
        f"One mistake in the twin: its gate is a silu. Running alone, {late} of the {len(found)} parts shown differ, "
        f"from {first} to the end of the layer. Fed the truth's input, only {first} does."
    )
    return {"twin.svg": sheet(440, 34 + 21 * len(found), label, parts)}


if __name__ == "__main__":
    write(figures())
