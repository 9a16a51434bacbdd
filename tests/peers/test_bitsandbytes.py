"""bitsandbytes on a CPU, to the bit: codes, scales, compressed scales, and the weights that come back.

Its mean of the scales is torch's float32 sum, whose last bit depends on the machine's vectors and threads; ours is
taken in float64 and rounded once. So the two are the same wherever float32 sums the scales exactly, as it does for
the bfloat16 matrices of the released model up to two million weights, and the last bit apart elsewhere. Given the
same mean all else is the same to the bit.
"""

from importlib import import_module

import numpy as np
import pytest
import torch
from bitsandbytes import functional as peer
from close import array, both
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats, integers
from minimax_numpy.quantize import NF4, dynamic_levels

SHAPES = [(1, 1), (1, 63), (3, 21), (7, 9), (5, 64), (2, 65), (32, 100), (40, 33), (300, 300), (128, 2048)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
BLOCKS = {
    "zeros": np.zeros(64),
    "all alike": np.full(64, 0.3),
    "half way between two levels": np.r_[1, (NF4[:-1] + NF4[1:]) / 2, NF4, np.zeros(32)],
    "subnormal": np.linspace(-1e-40, 1e-40, 64),
    "where reciprocals overflow": np.linspace(-2e-39, 2e-39, 64),
    "a little above": np.linspace(-2e-38, 1e-38, 64),
    "huge": np.linspace(-3.4e38, 3e38, 64),
    "one outlier": np.r_[1e30, np.ones(63)],
}


@pytest.fixture(autouse=True, scope="module")
def uncompiled():
    """They compile a function of ten lines where a row is odd, which takes longer than all tests here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def weights(shape, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    """Rows of sizes that differ a hundredfold, so that scales do."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape) * 10 ** rng.uniform(-2, 0, (shape[0], 1))
    return torch.tensor(w, dtype=torch.float32).to(dtype)


def ours(side, w: torch.Tensor, kind: str):
    """Our quantised matrix; NumPy has no bfloat16, and is given the float32 that it stands for."""
    module = import_module(f"{side.package.__name__}.quantize")
    return module, module.quantize(w if side.is_torch else array(w), kind)


def assert_equal(mine, theirs) -> None:
    """The same type and the same bits."""
    mine, theirs = array(mine), array(theirs)
    assert mine.dtype == theirs.dtype
    np.testing.assert_array_equal(mine, theirs.reshape(mine.shape))


def test_the_tables_are_theirs():
    assert_equal(NF4, peer.get_4bit_type("nf4", device="cpu"))
    assert_equal(dynamic_levels(), peer.create_dynamic_map())


@both
@every_shape
@every_type
def test_codes_scales_and_weights(side, shape, dtype):
    """Any shape, tails and odd sizes among them, from each type that they take."""
    w = weights(shape, dtype)
    codes, state = peer.quantize_4bit(w, quant_type="nf4")
    _, q = ours(side, w, "nf4")
    assert_equal(q.parts["codes"], codes)
    assert_equal(q.parts["scales"], state.absmax)
    wide = torch.tensor(array(q.dequantize())).to(dtype)  # NumPy's is float32 for bfloat16
    assert_equal(wide, peer.dequantize_4bit(codes, state).reshape(shape))  # they turn a single row over


@both
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("tail", [0, 3])
def test_the_corners_of_float32(side, block, tail):
    """Also where their scale has no reciprocal, and half way between levels; as a whole block and as the last one."""
    w = torch.tensor(np.r_[block, block[:tail]][None], dtype=torch.float32)
    codes, state = peer.quantize_4bit(w, quant_type="nf4")
    _, q = ours(side, w, "nf4")
    assert_equal(q.parts["codes"], codes)
    assert_equal(q.parts["scales"], state.absmax)


@both
@pytest.mark.parametrize("n", [16, 64])
def test_half_way_between_levels_the_roundings_are_theirs(side, n):
    """Half way is where it shows that a whole block is multiplied by a reciprocal, and the tail divided."""
    rng, middles = np.random.default_rng(0), (NF4[:-1] + NF4[1:]) / 2
    for scale in rng.uniform(0.01, 1, 200).astype(np.float32):
        w = torch.tensor(np.r_[scale, middles * scale, np.zeros(n - 16, np.float32)][None])
        assert_equal(ours(side, w, "nf4")[1].parts["codes"], peer.quantize_4bit(w, quant_type="nf4")[0])


@both
@given(w=arrays(np.float32, (3, 50), elements=floats(-10, 10, width=32)))
def test_anything_else_that_comes_to_mind(side, w):
    """Whatever hypothesis thinks of: repeated values, zeros, single bits."""
    codes, state = peer.quantize_4bit(torch.tensor(w), quant_type="nf4")
    _, q = ours(side, torch.tensor(w), "nf4")
    assert_equal(q.parts["codes"], codes)
    assert_equal(q.parts["scales"], state.absmax)


@both
@every_shape
@every_type
def test_compressed_scales_given_their_mean(side, shape, dtype):
    """The 8-bit codes, the scale of each 256, and the weights that come back."""
    w = weights(shape, dtype)
    codes, state = peer.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    module, q = ours(side, w, "nf4-double")
    assert_equal(q.parts["codes"], codes)
    scales = ours(side, w, "nf4")[1].parts["scales"]
    offset = state.offset if side.is_torch else np.float32(state.offset)
    parts = module.compress(scales, offset)
    for name, x in (("scales", state.absmax), ("group_scales", state.state2.absmax), ("offset", state.offset)):
        assert_equal(parts[name], x)
    arguments = (q.kind, q.shape, q.dtype, {**q.parts, **parts})
    wide = torch.tensor(array(module.Quantized(*arguments).dequantize())).to(dtype)
    assert_equal(wide, peer.dequantize_4bit(codes, state).reshape(shape))


@both
@every_shape
def test_their_mean_is_ours_but_for_the_last_bit(side, shape):
    """Torch's float32 sum of these scales is off by a few units in the last place at most."""
    w = weights(shape)
    _, state = peer.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    _, q = ours(side, w, "nf4-double")
    mean = np.float32(state.offset)
    assert abs(array(q.parts["offset"]) - mean) <= 4 * np.spacing(mean)


@both
@given(m=integers(1, 60), n=integers(1, 300), seed=integers(0, 99))
def test_bfloat16_matrices_are_compressed_alike(side, m, n, seed):
    """As released: initialised alike throughout, so that float32 adds the scales without rounding. Nothing is given."""
    w = torch.tensor(np.random.default_rng(seed).standard_normal((m, n)) * 0.02).to(torch.bfloat16)
    codes, state = peer.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    _, q = ours(side, w, "nf4-double")
    theirs = codes, state.absmax, state.state2.absmax, state.offset
    for name, x in zip(("codes", "scales", "group_scales", "offset"), theirs, strict=True):
        assert_equal(q.parts[name], x)


@both
@given(values=arrays(np.float32, 300, elements=floats(0, 1, width=32)))
def test_scales_of_any_kind_are_compressed_alike(side, values):
    """All alike, zeros, or a spread too small for a reciprocal among them."""
    offset = np.float32(values.mean())
    codes, state = peer.quantize_blockwise(torch.tensor(values - offset), blocksize=256)
    module = ours(side, torch.ones(1, 1), "nf4")[0]
    parts = module.compress(side.wrap(values), side.wrap(offset) if side.is_torch else offset)
    assert_equal(parts["scales"], codes)
    assert_equal(parts["group_scales"], state.absmax)


@both
def test_a_stack_is_not_what_they_make_of_it(side):
    """They would run blocks through from one expert to the next; ours are each expert's own, as theirs of it alone."""
    w = weights((6, 50)).reshape(2, 3, 50)
    _, stack = ours(side, w, "nf4")
    for e in range(2):
        codes, state = peer.quantize_4bit(w[e], quant_type="nf4")
        assert_equal(stack[e].parts["codes"], codes)
        assert_equal(stack[e].parts["scales"], state.absmax)
    through = peer.quantize_4bit(w, quant_type="nf4")[1].absmax
    assert len(through) != sum(len(matrix.parts["scales"]) for matrix in stack)
