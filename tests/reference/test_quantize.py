"""Weights in 8 and 4 bits, in NumPy: each at its nearest level, within the bound, and no more kept than that."""

from statistics import NormalDist

import numpy as np
import pytest
from close import assert_one_sentence
from hypothesis import given
from hypothesis.strategies import floats, integers
from minimax_numpy import MiniMaxConfig, ops, quantize
from minimax_numpy.counts import describe, quantized_bytes
from minimax_numpy.quantize import KINDS, NF4, Quantized, dynamic_levels, error_bound, layout

every_kind = pytest.mark.parametrize("kind", KINDS)
SHAPES = [(1, 1), (3, 21), (7, 9), (1, 64), (2, 65), (5, 64), (40, 33), (128, 256)]


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nearest(x: float, levels: np.ndarray) -> int:
    """The nearest level by trying all; of two equally near, the lower."""
    return int(np.argmin(np.abs(np.float64(x) - levels.astype(np.float64))))


def nibbles(q: Quantized) -> list[int]:
    return [half for byte in q.parts["codes"].tolist() for half in (byte >> 4, byte & 15)]


def test_the_levels_of_nf4_are_quantiles_of_a_normal_distribution():
    """QLoRA's construction: eight quantiles above 0, seven below, evenly spread on either side, and an exact 0."""
    end = 1 - (1 / 32 + 1 / 30) / 2  # half a step from the end, on the mean of both sides
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(end, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(end, 0.5, 8)[:-1]]
    levels = np.array(sorted([*above, 0, *below])) / above[0]
    np.testing.assert_allclose(NF4, levels, atol=5e-7)  # the published ones were computed in float32


def test_the_dynamic_levels_by_hand():
    """All 256 differ; a power of ten has a number of parts that is a power of two; 0 and 1 are exact."""
    levels = dynamic_levels()
    assert len(np.unique(levels)) == 256 and (np.diff(levels) > 0).all()
    for k in range(7):
        inside = (np.abs(levels) > 0.1 * 10.0**-k) & (np.abs(levels) < 10.0**-k)
        assert inside.sum() == 2 * 2 ** (6 - k)
    tenth = levels[(levels > 0.01) & (levels < 0.1)]
    np.testing.assert_allclose(tenth, 0.1 * (0.1 + 0.9 * (np.arange(32) + 0.5) / 32), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_weight_has_the_code_of_its_nearest_level(shape):
    """Block by block, by trying all sixteen; the first of two shares the upper half of a byte."""
    w = weights(*shape)
    q = quantize.quantize(w, "nf4")
    codes = nibbles(q)
    for i, x in enumerate(w.ravel()):
        block = w.ravel()[i // 64 * 64 : i // 64 * 64 + 64]
        assert q.parts["scales"][i // 64] == np.abs(block).max()
        assert codes[i] == nearest(x / np.abs(block).max(), NF4)
    if w.size % 2:
        assert codes[-1] == 7  # the half byte left over says 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_has_a_scale_for_each_row(shape):
    """127 steps up and 127 down, to the nearest; −128 is not used."""
    w = weights(*shape)
    q = quantize.quantize(w, "int8")
    for row, codes, scale in zip(w, q.parts["codes"], q.parts["scales"], strict=True):
        assert scale == np.abs(row).max() and np.abs(codes.astype(int)).max() == 127
        np.testing.assert_array_equal(codes, [nearest(x / scale, np.arange(-127, 128) / 127) - 127 for x in row])


@every_kind
@given(m=integers(1, 20), n=integers(1, 90), seed=integers(0, 99), power=floats(-30, 30), spread=floats(0, 4))
def test_no_weight_is_further_off_than_the_bound(kind, m, n, seed, power, spread):
    """Rows and blocks of all sizes, tails, sizes from 1e-30 to 1e30 and far outliers."""
    rng = np.random.default_rng(seed)
    w = (10**power * rng.standard_normal((m, n)) * 10 ** (spread * rng.standard_normal((m, 1)))).astype(np.float32)
    q = quantize.quantize(w, kind)
    assert (np.abs(w.astype(np.float64) - q.dequantize()) <= error_bound(q)).all()


@every_kind
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 3e-39, 1e-38, 2e-38, 3e38])
@pytest.mark.parametrize("shape", [(2, 64), (3, 50)], ids=str)
def test_no_size_is_too_small_or_too_large(kind, size, shape):
    """Zeros, numbers whose reciprocal overflows, and numbers near the end of float32: finite, and within the bound."""
    w = (size * np.random.default_rng(0).uniform(-1, 1, shape)).astype(np.float32)
    q = quantize.quantize(w, kind)
    assert np.isfinite(q.dequantize()).all()
    assert (np.abs(w.astype(np.float64) - q.dequantize()) <= error_bound(q)).all()


@pytest.mark.parametrize("kind, middle", [("nf4", (-1 + NF4[1]) / 2), ("int8", 100.5 / 127)])
def test_the_bound_is_attained(kind, middle):
    """A weight half way across the widest gap is off by all of it: a tighter bound would be false."""
    w = np.full((1, 64), middle, np.float32)
    w[0, 0] = 1
    q = quantize.quantize(w, kind)
    assert np.abs(w - q.dequantize())[0, 1] >= 0.9999 * error_bound(q)[0, 1]


def test_double_quantisation_moves_a_scale_by_at_most_its_share():
    """Scales that differ by a factor of a hundred: the small ones suffer most, and stay within the bound."""
    w = weights(64, 256) * 10 ** np.random.default_rng(1).uniform(-2, 0, (64, 1)).astype(np.float32)
    plain, double = (quantize.quantize(w, kind) for kind in ("nf4", "nf4-double"))
    np.testing.assert_array_equal(plain.parts["codes"], double.parts["codes"])
    moved = np.abs(quantize.block_scales(double) - plain.parts["scales"])
    assert 0 < moved.max() <= 0.0072 * double.parts["group_scales"].max()
    assert (np.abs(w - double.dequantize()) <= error_bound(double)).all()


@every_kind
def test_a_dequantised_matrix_is_quantised_to_the_same_codes(kind):
    """Nothing is lost the second time, where scales are kept as they are."""
    q = quantize.quantize(weights(33, 70), kind)
    again = quantize.quantize(q.dequantize(), kind)
    if kind == "nf4-double":  # its scales are not, so they may move again
        assert (np.abs(q.dequantize() - again.dequantize()) <= error_bound(again)).all()
        return
    for name, part in q.parts.items():
        np.testing.assert_array_equal(part, again.parts[name])


@every_kind
@pytest.mark.parametrize("value", [0.0, 0.37, -2.0])
def test_a_constant_matrix(kind, value):
    """All scales alike: there is nothing to compress, and one sign is exact. Zeros are zeros."""
    w = np.full((64, 64), value, np.float32)
    q = quantize.quantize(w, kind)
    np.testing.assert_allclose(q.dequantize(), w, rtol=1e-7)


@every_kind
@pytest.mark.parametrize("shape", [(3, 5, 13), (2, 8, 16), (1, 1, 1)], ids=str)
def test_each_matrix_of_a_stack_is_quantised_by_itself(kind, shape):
    """Also where 64 does not divide it: the last block of one expert takes nothing from the next."""
    w = weights(*shape) * np.arange(1, shape[0] + 1, dtype=np.float32)[:, None, None]
    stack = quantize.quantize(w, kind)
    assert stack.shape == shape and len(stack) == shape[0] == len(list(stack))
    for e, matrix in enumerate(w):
        alone = quantize.quantize(matrix, kind)
        for name, part in alone.parts.items():
            np.testing.assert_array_equal(stack[e].parts[name], part)
        np.testing.assert_array_equal(stack.dequantize()[e], alone.dequantize())


@every_kind
def test_pieces_do_not_show(kind, monkeypatch):
    """A matrix is worked on a million weights at a time; in pieces of two blocks the codes are the same."""
    w = weights(13, 70)
    whole = quantize.quantize(w, kind)
    monkeypatch.setattr(quantize, "AT_A_TIME", 128)
    for name, part in quantize.quantize(w, kind).parts.items():
        np.testing.assert_array_equal(part, whole.parts[name])


@every_kind
@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 13)], ids=str)
def test_the_layout_is_what_is_kept(kind, shape):
    """Shape and type of every part, so that bytes can be counted before there are any."""
    q = quantize.quantize(weights(*shape), kind)
    assert {name: (x.shape, x.dtype.name) for name, x in q.parts.items()} == layout(shape, kind)
    assert q.nbytes == sum(x.nbytes for x in q.parts.values()) and q.size == np.prod(shape)


@every_kind
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_it_dequantises_to_the_type_asked_for(kind, dtype):
    """Computed in float32 and rounded once; the codes do not depend on it."""
    w = weights(9, 20)
    q, wide = quantize.quantize(w, kind, np.dtype(dtype)), quantize.quantize(w, kind).dequantize()
    assert q.dtype == q.dequantize().dtype == np.asarray(q).dtype == dtype
    np.testing.assert_array_equal(q.dequantize(), wide.astype(dtype))


@every_kind
def test_it_stands_where_an_array_would(kind, monkeypatch):
    """Ops take it as it is, and make one matrix wide at a time, only those of experts that a token was sent to."""
    x, w = weights(5, 16).astype(np.float64), weights(24, 16)
    q = quantize.quantize(w, kind)
    np.testing.assert_array_equal(ops.linear(x, q), ops.linear(x, q.dequantize()))
    up, down = (quantize.quantize(weights(4, *shape), kind) for shape in ((12, 16), (16, 6)))
    indices, shares = np.array([[0, 2]] * 5), np.full((5, 2), 0.5)
    want = ops.mix_experts(x, shares, indices, up.dequantize(), down.dequantize())
    made, dequantize = [], Quantized.dequantize
    monkeypatch.setattr(Quantized, "dequantize", lambda self: made.append(self.shape) or dequantize(self))
    np.testing.assert_array_equal(ops.mix_experts(x, shares, indices, up, down), want)
    assert made == [(12, 16), (16, 6)] * 2
    with pytest.raises(TypeError) as error:
        q[0]
    assert_one_sentence(error.value, "dequantize()")


@pytest.mark.parametrize(
    "w, kind, error, told",
    [
        (np.ones((2, 2)), "nf3", ValueError, "'nf3'"),
        (np.ones((2, 2)), None, ValueError, "None"),
        (np.ones((2, 2), np.int32), "nf4", TypeError, "int32"),
        (np.ones((2, 2), np.uint16), "int8", TypeError, "uint16"),  # the bits of bfloat16 are not numbers
        (np.array([[1, np.nan]]), "int8", ValueError, "NaN"),
        (np.array([[1, -np.inf]]), "nf4", ValueError, "infinity"),
        (np.array([[1, 1e39]]), "nf4-double", ValueError, "beyond float32"),
        (np.ones((0, 2)), "nf4", ValueError, "(0, 2)"),
        (np.ones(64), "nf4", ValueError, "(64,)"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_bad_input_gets_one_sentence(w, kind, error, told):
    with pytest.raises(error) as raised:
        quantize.quantize(w, kind)
    assert_one_sentence(raised.value, told)


def test_streamed_weights_are_not_quantised():
    """One keeps all weights in few bits, the other keeps none: both cannot be had, and that is said first."""
    quantize.check_kind(None, stream=True)
    quantize.check_kind("nf4")
    with pytest.raises(ValueError) as error:
        quantize.check_kind("nf4", stream=True)
    assert_one_sentence(error.value, "quantization", "stream")


@pytest.mark.parametrize(
    "kind, total, told",
    [
        ("nf4", 260_140_675_072, ["260.1 GB", "231.8 GB", "228.0 GB"]),
        ("nf4-double", 238_988_286_952, ["239.0 GB", "231.8 GB", "228.0 GB"]),
        ("int8", 458_859_999_232, ["458.9 GB", "458.6 GB", "456.1 GB"]),
    ],
)
def test_the_released_model_in_few_bits(kind, total, told):
    """The figures people quote, told apart: with scales, without, and every parameter at half a byte."""
    assert quantized_bytes(MiniMaxConfig.text_01(), kind)[0] == total
    page = describe(MiniMaxConfig.text_01(), 1, quantization=kind)
    assert all(figure in page for figure in (*told, f"bytes in {kind}", f"{total:,}"))
