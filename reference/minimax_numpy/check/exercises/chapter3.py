"""3 · Chunks."""

import numpy as np

from ... import ops
from ..single import Case
from .chapter2 import lightning_cases
from .functions import implement
from .registry import Edit, Mistake, planted
from .values import number

number(
    "3.1",
    "The short chunk",
    "predict",
    "130 tokens are read in chunks of 64, and s = 0.5. By what factor is the state multiplied while the third chunk is "
    "read?",
    minutes=5,
    difficulty=1,
    solution="math.exp(-0.5 * 2)",
    reason="The third chunk holds 130 − 128 = 2 positions, so e^(−2 s). The full chunk's e^(−32) would wipe the "
           "memory.",
    hints=("How many positions does the third chunk hold?", "130 = 64 + 64 + 2."),
    mistakes=(
        Mistake("the short last chunk decays the state as a full one", "Decay by the m positions that the chunk holds.",
                "math.exp(-0.5 * 64)"),
        Mistake("the chunk counts as one step", "A chunk of two positions is two steps.", "math.exp(-0.5)"),
        Mistake("all 130 positions decay it again", "Earlier chunks have done their part.", "math.exp(-0.5 * 130)"),
        Mistake("the positions that are missing decay it", "Count those that are there: 2.", "math.exp(-0.5 * 62)"),
    ),
)  # fmt: skip

number(
    "3.2",
    "What is left of a key",
    "derive",
    "A chunk of full length C = 8 is cut short: it holds m = 5 positions, r = 1 … 5. With e^(−s) = 1/2, by what factor "
    "must the key at r = 3 be multiplied when it is written into the state after the chunk?",
    minutes=6,
    difficulty=2,
    solution="2.0 ** -(5 - 3)",
    reason="From r to the end of the chunk there are m − r steps, so e^(−s(m−r)); the last key is written undecayed.",
    hints=("How many decays come after position 3?", "Positions 4 and 5 each decay what was written before."),
    mistakes=(
        Mistake("the decay since the chunk began is taken, or the key decays at its own step, too",
                "Keys decay to the end and are written undecayed: e^(−s(m−r)).", "2.0 ** -3"),
        Mistake("the full chunk's length is counted", "m = 5, not C = 8.", "2.0 ** -(8 - 3)"),
        Mistake("positions are counted from 0 in one place only", "r = 3 is the third of five.", "2.0 ** -1"),
    ),
)  # fmt: skip


def matrix_cases(rng):
    """One head and several, one position and many."""
    for label, H, m in (("shapes", 3, 5), ("shapes", 2, 8), ("one head", 1, 4), ("one position", 2, 1)):
        yield Case(label, {"slopes": 0.1 + rng.random(H), "m": m})
    yield Case("fast heads, where e^(+s r) would overflow", {"slopes": np.array([40.0, 0.5]), "m": 30})


@implement(
    "3.3",
    "The decay matrix",
    minutes=8,
    difficulty=2,
    hints=(
        "Make a table of r − i first, [m, m]; its lower triangle is what you need.",
        "Clip r − i at 0 before the exponential, then multiply by np.tri(m).",
    ),
    reason="The exponent is never positive: what is above the diagonal is cut before it is exponentiated, and then "
           "zeroed.",
    cases=matrix_cases,
    outputs={"M": "H T i"},
    mistakes=(
        Edit("positions after the query are not zeroed", "M is 0 where i > r: multiply by the lower triangle.",
             " * np.tri(m)", ""),
        Edit("the diagonal decays", "M_rr = 1: a token sees itself undecayed.", "np.maximum(lag, 0)",
             "(np.maximum(lag, 0) + 1)"),
        Edit("rows and columns are exchanged", "Row r is the query, column i the key.", " * np.tri(m)",
             ".swapaxes(1, 2) * np.tri(m).T"),
        Edit("the diagonal is zero", "i ≤ r: a token sees itself.", "np.tri(m)", "np.tri(m, k=-1)"),
        Edit("it is built as e^(−s r) · e^(+s i), which overflows", "Exponentiate r − i at once, never e^(+s i).",
             "np.exp(-slopes[:, None, None] * np.maximum(lag, 0))",
             "(np.exp(-slopes[:, None, None] * r[:, None]) * np.exp(slopes[:, None, None] * r))"),
    ),
)  # fmt: skip
def decay_matrix(slopes, m):
    """The decay inside a chunk of m positions, [H, m, m]: M_ri = e^(−s (r−i)) for i ≤ r, else 0.

    Slopes [H] may be as large as 40.
    """
    r = np.arange(m)
    lag = r[:, None] - r
    return np.exp(-slopes[:, None, None] * np.maximum(lag, 0)) * np.tri(m)


def chunked_cases(rng):
    """Whole and short chunks, longer than the text, one position each."""
    yield from lightning_cases(rng, chunk=8)
    yield from (Case("a chunk longer than the text", {**c.arguments, "chunk": 64}) for c in cut(rng))
    yield from (Case("chunks of one", {**c.arguments, "chunk": 1}) for c in cut(rng))


def cut(rng):
    """One case with a state."""
    yield next(case for case in lightning_cases(rng, chunk=8) if case.label == "a state handed in")


@implement(
    "3.4",
    "Chunks of C, the last one short",
    minutes=30,
    difficulty=3,
    hints=(
        "Take one chunk: what comes from before it is (e^(−s r) q) S with r = 1 … m, what comes from inside ((q kᵀ) ⊙ "
        "M) v.",
        "Then S ← e^(−s m) S + (e^(−s (m−r)) k)ᵀ v, with the m positions that this chunk holds, and on to the next.",
    ),
    reason="m is the number of positions that the chunk holds: the last one may be short, and then nothing else "
           "changes.",
    cases=chunked_cases,
    truth=lambda q, k, v, slopes, state, chunk: ops.lightning_attention_chunked(q, k, v, slopes, state, chunk=chunk),
    outputs={"out": "B H T e", "state": "B H d e"},
    mistakes=(
        planted("decays_the_short_chunk_as_a_full_one", "np.exp(-s * m) * S", "np.exp(-s * chunk) * S"),
        Edit("the short chunk's keys decay to the end of a full one", "Keys decay by m − r, not C − r.",
             "np.exp(-s * (m - r))", "np.exp(-s * (chunk - r))"),
        Edit("r counts from 0 where the state is read", "The first position of a chunk has decayed once: r = 1 … m.",
             "np.exp(-s * r) * Q", "np.exp(-s * (r - 1)) * Q"),
        Edit("keys decay once too often on their way into the state",
             "e^(−s (m−r)): the last key is written undecayed.",
             "np.exp(-s * (m - r)) * K", "np.exp(-s * (m - r + 1)) * K"),
        Edit("what came before the chunk is not read", "Add (e^(−s r) q) S.", "(np.exp(-s * r) * Q) @ S + ", ""),
        planted("forgets_the_state", "S = state", "S = 0 * state"),
        Edit("the state is updated before it is read", "Read the state of before the chunk, then update it.",
             "out[:, :, a:b] = (np.exp(-s * r) * Q) @ S + (Q @ K.swapaxes(-1, -2) * M) @ V\n"
             "        S = np.exp(-s * m) * S + (np.exp(-s * (m - r)) * K).swapaxes(-1, -2) @ V",
             "S = np.exp(-s * m) * S + (np.exp(-s * (m - r)) * K).swapaxes(-1, -2) @ V\n"
             "        out[:, :, a:b] = (np.exp(-s * r) * Q) @ S + (Q @ K.swapaxes(-1, -2) * M) @ V"),
        Edit("there is no decay inside a chunk", "Multiply the scores by M, not by the bare triangle.",
             "np.exp(-s * np.maximum(lag, 0)) * np.tri(m)", "np.exp(0 * s * lag) * np.tri(m)"),
        planted("scales_queries", "Q, K, V = q[:, :, a:b],", "Q, K, V = q[:, :, a:b] * q.shape[-1] ** -0.5,"),
    ),
)  # fmt: skip
def chunked(q, k, v, slopes, state, chunk):
    """Lightning attention, ``chunk`` positions at a time: the same answers as 2.3, without a loop over positions.

    q, k [B, H, T, d], v [B, H, T, e], slopes [H], state [B, H, d, e] → (out [B, H, T, e], state).
    T need not be a multiple of ``chunk``. float32 in, float32 out.
    """
    s = slopes[:, None, None]
    S = state
    out = np.empty(v.shape, q.dtype)
    for a in range(0, q.shape[2], chunk):
        b = min(a + chunk, q.shape[2])
        m = b - a
        r = np.arange(1, m + 1, dtype=q.dtype)[:, None]
        lag = r - r.T
        M = (np.exp(-s * np.maximum(lag, 0)) * np.tri(m)).astype(q.dtype)
        Q, K, V = q[:, :, a:b], k[:, :, a:b], v[:, :, a:b]
        out[:, :, a:b] = (np.exp(-s * r) * Q) @ S + (Q @ K.swapaxes(-1, -2) * M) @ V
        S = np.exp(-s * m) * S + (np.exp(-s * (m - r)) * K).swapaxes(-1, -2) @ V
    return out, S.astype(q.dtype)


number(
    "3.5",
    "What chunks save",
    "estimate",
    "4,096 tokens, one head. The direct form fills a T × T square of scores; the chunked form fills a C × C square for "
    "each chunk of C = 256. How many times fewer scores is that?",
    minutes=4,
    difficulty=1,
    solution="4096 / 256",
    reason="T/C squares of C² are T C scores, against T²: T/C = 16 times fewer, and the ratio grows with the length.",
    hints=("How many chunks are there, and how many scores in each?", "16 chunks of 256² scores."),
    mistakes=(
        Mistake("only one chunk is counted, or its length is given", "There are T/C chunks.", "(4096 / 256) ** 2"),
        Mistake("the scores are given, not the ratio", "Divide T² by T C.", "4096 * 256"),
    ),
)


number(
    "3.6",
    "The best chunk",
    "derive",
    "One head, d = e = 128, chunks of C in the equations of 3.4, every product a full matrix product. Between chunks "
    "the state is read from memory and written back, and moving one number takes as long as 256 multiply-adds. Which "
    "C takes the least time a token? (Leave everything else out; C need not be whole.)",
    minutes=12,
    difficulty=3,
    solution="math.sqrt(256 * 128)",
    reason="A chunk takes 2 C² d multiply-adds inside, 2 C d² with the state, and 2 d² moves. By token: 2 C d + 2 d² + "
           "512 d²/C, least where 2 d = 512 d²/C². The middle term does not depend on C. A kernel that keeps the state "
           "on the chip has no such moves, and takes the C that its tiles like.",
    hints=(
        "Count a chunk: q kᵀ and its product with v inside, q S and kᵀ v with the state; then divide by C.",
        "2 C d + 2 d² + 512 d²/C multiply-adds a token: take the derivative by C.",
    ),
    mistakes=(
        Mistake("the state is moved one way only, or the products are balanced against each other",
                "It is read and written, 2 d² numbers; and the products with the state do not depend on C.", "128"),
        Mistake("only one of the two products inside a chunk is counted, or their triangles",
                "q kᵀ and its product with v are full squares: 2 C² d.", "math.sqrt(2 * 256 * 128)"),
        Mistake("only the multiply-adds are counted", "Then C = 1 is best; the moves are what chunks save.", "1"),
        Mistake("the root is left out", "2 d = 512 d²/C² gives C², not C.", "256 * 128"),
        Mistake("moves are taken to cost as much as a multiply-add", "Each takes as long as 256 of them.",
                "math.sqrt(128)"),
    ),
)  # fmt: skip

number(
    "3.7",
    "The tempting factorisation",
    "measure",
    "e^(−s(r−i)) is e^(−s r) · e^(+s i): two vectors in place of a table. Form both in float32 for r, i = 1 … 256 and "
    "s = 2^(−1/8), the fastest head of layer 0 (leave out the 1e-5). On the diagonal, r = i, the product should be 1. "
    "For how many of the 256 positions is it not even finite?",
    minutes=8,
    difficulty=2,
    solution="s, r = np.float32(2 ** (-1 / 8)), np.arange(1, 257, dtype=np.float32)\n"
             "with np.errstate(all=\"ignore\"):\n"
             "    diagonal = np.exp(-s * r) * np.exp(s * r)\n"
             "answer = np.count_nonzero(~np.isfinite(diagonal))\n",
    reason="e^x overflows float32 at x = 88.7, so from i = 97 on: infinity times a small number is infinity, times an "
           "underflowed 0 it is NaN. Subtract before you exponentiate, and no exponent is ever positive.",
    hints=(
        "np.exp(s * r) with both in float32; then np.isfinite.",
        "Where does e^(+s i) overflow? float32 ends near 3.4 · 10³⁸, which is e^88.7.",
    ),
    mistakes=(
        Mistake("only NaN is counted", "Infinity is not finite either.", "143"),
        Mistake("the finite ones are counted", "The question asks for the others.", "96"),
        Mistake("it is formed in float64, where nothing overflows yet", "float32 ends at e^88.7, float64 at e^709.",
                "0"),
        Mistake("the slope is taken for 1", "s = 2^(−1/8) = 0.917.", "256 - 88"),
        Mistake("the whole table below the diagonal is counted", "On the diagonal only.",
                "256 * 257 / 2 - 96 * (96 + 1) / 2 - 96 * 160"),
    ),
)  # fmt: skip

number(
    "3.8",
    "What a cut costs",
    "derive",
    "A kernel walks along a text and moves 4 units: q, k and v in, out out. Cut into G equal segments that walk at one "
    "time, all of them but the last must read k and v once more beforehand, to find the state that they end with. A "
    "GPU has 132 places and one sequence 64 heads, each head and segment a program that fills one place; so min(1, "
    "64 G / 132) of its bandwidth is used. Suppose that units moved, divided by that share, are the time. How many "
    "times faster is the best G than G = 1?",
    minutes=8,
    difficulty=2,
    solution="(4 / (64 / 132)) / (5 / (128 / 132))",
    reason="Moved are 4 + 2(G − 1)/G units. G = 1: 4 · 132/64 = 8.25; G = 2: 5 · 132/128 = 5.16; from G = 3 on all "
           "places are filled, and more segments only read more: 5.33, 5.5 … As few segments as nearly fill the GPU.",
    hints=(
        "k and v are two units, and (G − 1)/G of them are read once more.",
        "Write down the time for G = 1, 2 and 3. From where on does the share no longer grow?",
    ),
    mistakes=(
        Mistake("the second reading is forgotten", "It is what a cut costs: 2(G − 1)/G units.", "132 / 64"),
        Mistake("the last segment reads twice, too", "Nobody needs the state it ends with: (G − 1)/G of k and v.",
                "(4 * 132 / 64) / 6"),
        Mistake("two segments are thought to fill the GPU", "They are 128 programs for 132 places.",
                "(4 * 132 / 64) / 5"),
        Mistake("every place is filled, whatever it costs", "G = 3 fills all, and reads more than that is worth.",
                "(4 * 132 / 64) / (4 + 4 / 3)"),
        Mistake("only keys are read again", "The end of a segment is a sum over keys and values: two units.",
                "(4 * 132 / 64) / (4.5 * 132 / 128)"),
    ),
)  # fmt: skip
