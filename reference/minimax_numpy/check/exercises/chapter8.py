"""8 · Rounding and tolerances."""

import numpy as np

from ...trace import round_to
from ..single import Case
from .functions import implement
from .registry import Edit, Mistake
from .values import number

number(
    "8.1",
    "How coarse is bfloat16",
    "by hand",
    "A bfloat16 has 8 significant bits, the hidden leading one included. What is its unit roundoff, the largest "
    "relative error of rounding to nearest?",
    minutes=3,
    difficulty=1,
    solution="2.0**-8",
    reason="Between 1 and 2 the spacing is 2^(−7), and rounding to nearest errs by at most half of it.",
    hints=("How far apart are neighbours between 1 and 2?", "Rounding errs by half the spacing at most."),
    mistakes=(
        Mistake("the spacing of numbers is given", "Rounding to nearest errs by half of it.", "2.0 ** -7"),
        Mistake("the hidden bit is counted twice", "Eight bits in all: spacing 2^(−7), half of it 2^(−8).",
                "2.0 ** -9"),
        Mistake("the roundoff of float16 is given", "float16 has 11 significant bits, bfloat16 8.", "2.0 ** -11"),
        Mistake("all 16 bits are taken for significant", "Eight of them are exponent and one is the sign.",
                "2.0 ** -16"),
    ),
)  # fmt: skip

number(
    "8.2",
    "A counter that stands still",
    "predict",
    "A bfloat16 counter starts at 0, and 1 is added to it again and again, rounding to nearest, ties to even. At what "
    "number does it stand still?",
    minutes=5,
    difficulty=2,
    solution="2**8",
    reason="At 256 the spacing is 2; 257 lies half-way and goes to the even neighbour, 256. A state must be float32.",
    hints=("At what size is the spacing of bfloat16 numbers 2?", "256 + 1 is half-way between 256 and 258."),
    mistakes=(
        Mistake("the spacing is taken for 2 too early", "From 128 to 256 the spacing is 1.", "2**7"),
        Mistake("it is thought to stop where the spacing is 4", "A tie goes to even: it stops where the spacing is 2.",
                "2**9"),
        Mistake("the counter is thought to be float16", "float16 stops at 2,048; bfloat16 has three bits less.",
                "2**11"),
        Mistake("the counter is thought to be float32", "float32 stops at 16,777,216.", "2**24"),
        Mistake("it is thought of as a 16-bit integer", "Only 8 of its bits are significant.", "2**16"),
    ),
)  # fmt: skip


def rounding_cases(rng):
    """Ordinary numbers, negative ones, ties, numbers that are there already, very large and small ones."""
    yield Case("shapes", {"x": rng.standard_normal((3, 50)).astype(np.float32)})
    ties = 1 + (2 * np.arange(16) + 1) * 2.0**-8
    yield Case("ties", {"x": np.concatenate([ties, -ties]).astype(np.float32)})
    yield Case("nothing to round", {"x": np.array([0.0, 1.0, -1.5, 256.0, 2.0**-100], np.float32)})
    yield Case(
        "large and small", {"x": (rng.standard_normal(40) * 10.0 ** rng.integers(-30, 30, 40)).astype(np.float32)}
    )


@implement(
    "8.3",
    "Round to bfloat16",
    minutes=15,
    difficulty=3,
    hints=(
        "A bfloat16 is the upper half of a float32: x.view(np.uint32) shows the bits.",
        "Add 0x7FFF, and 1 more where the last bit that is kept is odd; then clear the lower 16 bits.",
    ),
    reason="Adding just under half, and a little more for odd neighbours, carries over exactly where the nearest is "
           "above.",
    cases=rounding_cases,
    truth=lambda x: round_to(x, "bfloat16"),
    outputs={"rounded": ""},
    mistakes=(
        Edit("the lower bits are cut off, which rounds towards zero", "Add half before you cut.",
             "bits + np.uint32(0x7FFF) + odd", "bits"),
        Edit("ties go away from zero", "Ties go to the even neighbour: add 0x7FFF, and 1 where the kept bit is odd.",
             "np.uint32(0x7FFF) + odd", "np.uint32(0x8000)"),
        Edit("ties go towards zero", "Ties go to the even neighbour: add 1 more where the kept bit is odd.",
             "np.uint32(0x7FFF) + odd", "np.uint32(0x7FFF)"),
        Edit("ties go to the odd neighbour", "Add 1 where the kept bit is odd, not where it is even.",
             "(bits >> 16) & 1", "((bits >> 16) & 1) ^ 1"),
        Edit("it is rounded to float16", "bfloat16 keeps float32's exponent and 8 significant bits.",
             "bits = x.view(np.uint32)", "return x.astype(np.float16).astype(np.float32)\n    bits = "
                                         "x.view(np.uint32)"),
    ),
)  # fmt: skip
def to_bfloat16(x):
    """Round float32 numbers x [...] to the nearest bfloat16, ties to even, and return them as float32."""
    bits = x.view(np.uint32)
    odd = (bits >> 16) & 1
    rounded = bits + np.uint32(0x7FFF) + odd
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


number(
    "8.4",
    "A rounded factor, compounded",
    "measure",
    "The recurrent form multiplies by a factor that is rounded once. Round f = e^(−2^(−8)) to float32, raise it to the "
    "power 2,048 in float64, and compare with e^(−2048 · 2^(−8)). What is the relative error, as a positive number?",
    minutes=8,
    difficulty=2,
    solution="abs(float(np.float32(np.exp(-(2.0**-8)))) ** 2048 / np.exp(-8.0) - 1)",
    reason="The same small error 2,048 times: that is why decay tables exponentiate the rate anew and never compound "
           "a factor.",
    hints=("float(np.float32(...)) rounds and goes back to float64.", "abs(f ** 2048 / np.exp(-8.0) - 1)."),
    mistakes=(
        Mistake("the error of one factor is given", "Raise it to the power 2,048 first.",
                "abs(float(np.float32(np.exp(-(2.0**-8)))) / np.exp(-(2.0**-8)) - 1)"),
        Mistake("nothing is rounded but the answer", "Round the factor before you raise it.",
                "abs(float(np.float32(np.exp(-8.0))) / np.exp(-8.0) - 1)"),
        Mistake("the absolute error is given", "Divide by e^(−8).",
                "abs(float(np.float32(np.exp(-(2.0**-8)))) ** 2048 - np.exp(-8.0))"),
        Mistake("the rate is rounded, not the factor", "Round e^(−s), then raise it. (A power of two rounds exactly.)",
                "0.0"),
    ),
    within=0.02,
)  # fmt: skip


number(
    "8.5",
    "Where a rounded factor hurts most",
    "derive",
    "A head keeps e^(−s) of its memory at each token, s = 2^(−8). The factor is rounded once, to float32, with a "
    "relative error of at most u = 2^(−24), and then compounded. After n tokens, what is left of a written 1 is off by "
    "some amount, to first order in u. How large is that amount at most, over all n?",
    minutes=10,
    difficulty=3,
    solution="2.0**-24 / (2.0**-8 * math.e)",
    reason="(e^(−s)(1 + u))ⁿ ≈ e^(−s n)(1 + n u): off by n u e^(−s n), which is largest at n = 1/s = 256. The relative "
           "error grows for ever, but on less and less. The slower the head, the larger u/(s e).",
    hints=(
        "(1 + u)ⁿ is about 1 + n u: what does that make of e^(−s n)?",
        "n u e^(−s n): set its derivative by n to 0.",
    ),
    mistakes=(
        Mistake("the relative error is given", "Multiply it by what is left, e^(−1).", "2.0**-24 / 2.0**-8"),
        Mistake("the largest error is looked for where half is left", "n e^(−s n) is largest at n = 1/s.",
                "2.0**-24 * math.log(2) / 2.0**-8 / 2"),
        Mistake("the error of one step is given", "The factor is compounded: n u, not u.", "2.0**-24"),
        Mistake("the spacing of float32 numbers is taken for u", "Rounding to nearest errs by half of it: 2^(−24).",
                "2.0**-23 / (2.0**-8 * math.e)"),
        Mistake("the n is given, not the amount", "At n = 256, how much is it?", "256"),
    ),
    within=1e-2,
)  # fmt: skip

number(
    "8.6",
    "A type in which the mistake shows",
    "measure",
    "Take l/L for l/(L − 1) in the slopes of layer 3 of 80, 8 heads. Draw q, k, v with "
    "`np.random.default_rng(0).standard_normal((3, 1, 8, 256, 32))` and run `ops.lightning_attention_chunked` with the "
    "right slopes and with these: how far apart are the outputs, as RMS over RMS? Then round the right output to "
    "bfloat16, float16 and float32 (`minimax_numpy.trace.round_to`) and measure that in the same way. In which "
    "smallest type is rounding less than a tenth of the mistake? Answer with its significant bits: 8, 11, 24 or 53.",
    minutes=12,
    difficulty=2,
    solution="from minimax_numpy import ops\n"
             "from minimax_numpy.trace import round_to\n\n"
             "q, k, v = np.random.default_rng(0).standard_normal((3, 1, 8, 256, 32))\n"
             "rates = 2.0 ** -np.arange(1, 9)\n"
             "right = ops.lightning_attention_chunked(q, k, v, rates * (1 - 3 / 79 + 1e-5))[0]\n"
             "wrong = ops.lightning_attention_chunked(q, k, v, rates * (1 - 3 / 80 + 1e-5))[0]\n\n\n"
             "def error(x):\n"
             "    return np.sqrt(np.mean((x - right) ** 2) / np.mean(right**2))\n\n\n"
             "bits = {\"bfloat16\": 8, \"float16\": 11, \"float32\": 24, \"float64\": 53}\n"
             "answer = min(n for kind, n in bits.items() if error(round_to(right, kind)) < error(wrong) / 10)\n",
    reason="The mistake changes the output by 2.3e-4. bfloat16 rounds it by 1.7e-3, float16 by 2.1e-4, float32 by "
           "2.5e-8. In 16 bits a model with this mistake passes for a right one that rounds: structure is judged in "
           "float64, low precision for its rounding only.",
    hints=(
        "np.sqrt(np.mean((x - right) ** 2) / np.mean(right ** 2)) for the wrong output and for each rounded one.",
        "The mistake makes about 2e-4. Which roundings are below 2e-5?",
    ),
    mistakes=(
        Mistake("a type is taken whose rounding is as large as the mistake",
                "float16 rounds this output by 2.1e-4, the mistake changes it by 2.3e-4.", "11"),
        Mistake("bfloat16 is thought to show it", "bfloat16 rounds this output by 1.7e-3, seven times the mistake.",
                "8"),
        Mistake("the safest type is given", "float64 shows it, but so does a smaller one.", "53"),
        Mistake("the bits of a whole number are given", "The significant ones: 24 of a float32's 32.", "32"),
    ),
)  # fmt: skip

number(
    "8.7",
    "A number in two parts",
    "derive",
    "A multiplier takes bfloat16 numbers. A float32 number x is handed to it as two: high is x rounded, low is x − "
    "high rounded, and the products are added in float32. Each rounding errs by at most u = 2^(−8) of what it rounds. "
    "By how much is high + low at most off, relative to x?",
    minutes=4,
    difficulty=1,
    solution="2.0**-16",
    reason="x − high is at most u x, and exact in float32; rounding it errs by at most u of that: u² x. For one more "
           "product, eight bits have become sixteen. A third part would give all 24 of a float32.",
    hints=("How large is x − high at most?", "low errs by at most u of x − high, not of x."),
    mistakes=(
        Mistake("the error of one part is given", "low makes up for nearly all of it.", "2.0**-8"),
        Mistake("two parts are thought to halve the error", "low holds the next eight bits: u · u.", "2.0**-9"),
        Mistake("the errors of the parts are added", "What high lacks is what low rounds: u · u, not 2u.", "2.0**-7"),
        Mistake("two parts are taken for a whole float32", "Its 24 bits need three parts of 8.", "2.0**-24"),
    ),
)  # fmt: skip
