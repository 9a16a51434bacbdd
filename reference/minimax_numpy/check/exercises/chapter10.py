"""10 · Port: one op in your own language, against golden vectors."""

import numpy as np

from .port import port
from .registry import Edit, planted


@port(
    "10.1",
    "A norm in your language",
    minutes=25,
    difficulty=2,
    hints=(
        "A safetensors file is 8 bytes with the length of a JSON header, the header, and the numbers, row by row.",
        "The header says of each tensor its type, its shape and where its bytes lie, counted from the header's end. "
        "eps stands in golden.json, and each case has its own.",
    ),
    reason="A norm is three lines in any language; most of a port is reading and writing the numbers as they lie.",
    outputs={"out": "B T D"},
    mistakes=(
        planted("subtracts_the_mean", "    size = np", "    x = x - x.mean(axis=-1, keepdims=True)\n    size = np"),
        Edit("eps is added outside the root", "sqrt(mean(x²) + eps).",
             "np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)",
             "np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps"),
        Edit("the sum of squares is taken, not their mean", "Divide by the number of channels.", "np.mean(", "np.sum("),
        Edit("the first case's eps is used for every case", "golden.json has an eps for each case.",
             "keepdims=True) + eps)", "keepdims=True) + 1e-5)"),
        Edit("numbers are read column by column", "They lie row by row: the last axis runs fastest. In Fortran, Julia "
             "and MATLAB reverse the shape.", "    size = np",
             "    x = x.ravel().reshape(x.shape, order=\"F\")\n    size = np"),
        Edit("the gain is left out", "Multiply by the weight.", "weight * (x / size)", "x / size"),
    ),
)  # fmt: skip
def rms_norm(x, weight, eps):
    """The op is the root-mean-square norm: out = weight ⊙ x / √(mean(x²) + eps).

    x is [B, T, D], weight [D]; the mean is over the last axis.
    """
    size = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return weight * (x / size)


@port(
    "10.2",
    "Rotary in your language",
    minutes=30,
    difficulty=2,
    hints=(
        "positions is int64, [B, T], and its rows differ; rotary_dim and base stand in golden.json.",
        "Form the angles in double precision: at position 100,000 a float32 angle is off by thousandths of a radian. "
        "rotary_dim may be 0.",
    ),
    reason="Four loops and one angle. A cosine is only as good as its argument, and every language has a single "
           "precision to trip over.",
    outputs={"out": "B H T d"},
    mistakes=(
        planted("rotates_the_whole_head", "half = rotary_dim // 2", "half = (rotary_dim := x.shape[-1]) // 2"),
        planted("takes_frequencies_of_the_whole_head", "/ max(rotary_dim, 1)", "/ x.shape[-1]"),
        planted("interleaves_the_pairs",
                "a, b = x[..., :half], x[..., half:rotary_dim]\n"
                "    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
                "a, b = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]\n"
                "    turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)"
                ".reshape(*x.shape[:-1], rotary_dim)"),
        planted("turns_backwards", "a * cos - b * sin, b * cos + a * sin", "a * cos + b * sin, b * cos - a * sin"),
        planted("starts_at_one", "positions[:, None, :, None]", "(positions[:, None, :, None] + 1)"),
        planted("has_base_ten_thousand", "base **", "1e4 **"),
        Edit("every row is turned by the first row's positions", "positions is [B, T]: one row for each sequence.",
             "positions[:, None, :, None]", "positions[:1, None, :, None]"),
        Edit("angles are formed in float32, too coarse at late positions",
             "Form them in double precision; only their sines and cosines may be narrower.", "    cos, sin =",
             "    angles = positions[:, None, :, None].astype(\"f4\") * np.float32(base) ** (\n"
             "        np.float32(-2) * np.arange(half, dtype=\"f4\") / np.float32(max(rotary_dim, 1)))\n"
             "    cos, sin ="),
    ),
)  # fmt: skip
def apply_rotary(x, positions, rotary_dim, base):
    """The op turns the first R = rotary_dim channels of x [B, H, T, d] by their positions [B, T].

    Pair i joins channels i and i + R/2, called a and b: (a cos θ − b sin θ, b cos θ + a sin θ) with
    θ = position · base^(−2i/R). Channels from R on pass through.
    """
    half = rotary_dim // 2
    angles = positions[:, None, :, None] * base ** (-2.0 * np.arange(half) / max(rotary_dim, 1))
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:rotary_dim]
    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return np.concatenate([turned, x[..., rotary_dim:]], axis=-1)


@port(
    "10.3",
    "A memory in your language",
    minutes=45,
    difficulty=3,
    hints=(
        "For each sequence and head: one d × e matrix, and one loop over t with decay, write and read in it.",
        "state is there only in some cases: else begin with zeros. mask is one byte a position; where it is 0, the "
        "state stays as it is. A program without masks may leave those cases out.",
    ),
    reason="No language makes this harder than three nested loops; a kernel is the same three, spread over a chip.",
    outputs={"out": "B H T e", "state": "B H d e"},
    mistakes=(
        planted("reads_before_writing",
                "S = new if mask is None else np.where(mask[:, t, None, None, None], new, S)\n"
                "        out[:, :, t] = np.einsum(\"bhd,bhde->bhe\", q[:, :, t], S)",
                "out[:, :, t] = np.einsum(\"bhd,bhde->bhe\", q[:, :, t], S)\n"
                "        S = new if mask is None else np.where(mask[:, t, None, None, None], new, S)"),
        planted("reads_between_decay_and_write", "q[:, :, t], S)", "q[:, :, t], S - np.nan_to_num(write))"),
        planted("decays_own_token", "keep * S + write", "keep * (S + write)"),
        planted("forgets_the_state", "if state is None else state", "if True else state"),
        planted("transposes_the_state", "return out, S", "return out, S.swapaxes(-1, -2)"),
        planted("scales_queries", "q[:, :, t], S)", "q[:, :, t] * q.shape[-1] ** -0.5, S)"),
        planted("padding_decays", "mask[:, t, None, None, None], new, S)",
                "mask[:, t, None, None, None], new, keep * S)"),
        Edit("every head forgets at the first head's rate", "slopes has one number for each head.",
             "np.exp(-slopes)", "np.exp(-slopes[:1])"),
        Edit("nothing is forgotten", "Multiply S by e^(−s) before the write.", "keep * S + write", "S + write"),
        Edit("the memory grows by e^(+s)", "The exponent is negative: e^(−s).", "np.exp(-slopes)", "np.exp(slopes)"),
    ),
)  # fmt: skip
def lightning_attention_recurrent(q, k, v, slopes, state=None, mask=None):
    """The op is lightning attention, position by position: S ← e^(−s) S + k vᵀ, then o = Sᵀ q.

    q, k [B, H, T, d], v [B, H, T, e], slopes [H], and in some cases a state [B, H, d, e] to begin with and a
    mask [B, T]. At padding (mask 0) the state stays as it is, and keys and values may hold NaN. The answers are
    out [B, H, T, e] and the last state.
    """
    S = np.zeros((*q.shape[:2], q.shape[3], v.shape[3])) if state is None else state
    keep = np.exp(-slopes)[:, None, None]
    out = np.zeros(v.shape)
    for t in range(q.shape[2]):
        write = k[:, :, t, :, None] * v[:, :, t, None, :]
        new = keep * S + write
        S = new if mask is None else np.where(mask[:, t, None, None, None], new, S)
        out[:, :, t] = np.einsum("bhd,bhde->bhe", q[:, :, t], S)
    return out, S
