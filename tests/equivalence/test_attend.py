"""Decode attention is softmax attention over the keys that a row has: whatever the stretches, the types, the strides.

As in `test_kernels`, the interpreter walks through the kernels on a CPU; a GPU runs them compiled where there is one.
"""

import warnings
from types import SimpleNamespace

import minimax_torch
import numpy as np
import pytest
import torch
from close import array, assert_one_sentence, assert_same, edited, error, lively, small
from hypothesis import given, settings
from hypothesis import strategies as st
from minimax_numpy import ops
from minimax_numpy.check.judge import allowance, rms
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.trace import round_to
from minimax_torch import MiniMaxForCausalLM
from minimax_torch.kernels import choose, layer
from minimax_torch.slots import Slots

kernels = pytest.importorskip("minimax_torch.kernels.attend", reason="Triton exists for Linux only")
decode = pytest.importorskip("minimax_torch.kernels.decode")
keeping = pytest.importorskip("minimax_torch.kernels.remember")
Tiles = kernels.Tiles

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
every_device = pytest.mark.parametrize("device", DEVICES)
BOTH = keeping.remember, kernels.attend
MANY = Tiles(keys=16, least=1, splits=4)


def drawn(lengths, H=4, G=2, capacity=70, d=16, e=16, dtype=torch.float64, device="cpu", seed=0):
    """q, keys, values and lengths; past a row's end stands NaN."""
    made, B = torch.Generator().manual_seed(seed), len(lengths)
    shapes = ((B, H, 1, d), (B, G, capacity, d), (B, G, capacity, e))
    q, keys, values = (torch.randn(shape, generator=made, dtype=torch.float64) for shape in shapes)
    lengths = torch.tensor(lengths)
    held = (torch.arange(capacity) < lengths[:, None])[:, None, :, None]
    keys, values = (torch.where(held, x, torch.nan) for x in (keys, values))
    return *(x.to(device, dtype) for x in (q, keys, values)), lengths.to(device)


def truth(q, keys, values, lengths) -> np.ndarray:
    """The reference's softmax attention in float64."""
    seen = np.arange(keys.shape[2]) < array(lengths)[:, None]
    q, keys, values = (array(x).astype(np.float64) for x in (q, keys, values))
    return ops.softmax_attention(q, *(np.where(seen[:, None, :, None], x, 0) for x in (keys, values)), seen[:, None])


# --- The op --------------------------------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("tiles", [None, MANY, MANY._replace(splits=1), MANY._replace(least=2, splits=3)], ids=str)
def test_it_is_the_op(tiles, device):
    """Rows of every length: none, one, a tile, a tile and one, all; and longer than there is room for."""
    inputs = drawn([0, 1, 16, 17, 70, 99], device=device)
    assert_same(kernels.attend(*inputs, tiles=tiles), truth(*inputs))


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    capacity=st.integers(1, 80),
    heads=st.sampled_from([(1, 1), (4, 4), (6, 2), (20, 1)]),
    d=st.integers(1, 40),
    e=st.integers(1, 40),
    cut=st.tuples(st.integers(1, 3), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_any_length_any_cut_any_heads(lengths, capacity, heads, d, e, cut, seed):
    inputs = drawn(lengths, *heads, capacity, d, e, seed=seed)
    got = kernels.attend(*inputs, tiles=Tiles(16, *cut))
    assert torch.isfinite(got).all()
    assert_same(got, truth(*inputs))


@every_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_rounds_honestly(dtype, device):
    """Twice what the same form costs in NumPy, rounded part by part, and what another order of the sums may cost."""
    inputs = drawn([70, 33, 1], dtype=getattr(torch, dtype), device=device)
    q, keys, values, lengths = (array(x) for x in inputs)
    exact, plain, magnitude = truth(*inputs), np.zeros((3, 4, 1, 16)), np.zeros((3, 4, 1, 16))
    for b, n in enumerate(lengths):
        for h in range(4):
            k, v = (x[b, h // 2, :n].astype(np.float64) for x in (keys, values))
            scores = round_to(k @ q[b, h, 0].astype(np.float64) * 0.25, dtype)
            p = round_to(np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum(), dtype)
            plain[b, h, 0], magnitude[b, h, 0] = round_to(p @ v, dtype), p @ np.abs(v)
    got = kernels.attend(*inputs, tiles=MANY)
    assert got.dtype == getattr(torch, dtype)
    assert rms(array(got) - exact) <= allowance(dtype, exact, plain, magnitude)


@every_device
@pytest.mark.parametrize("d, e", [(16, 256), (256, 16), (80, 48), (128, 128)])
def test_every_head_of_the_family(d, e, device):
    inputs = drawn([40, 9], 2, 1, 40, d, e, torch.float32, device)
    assert_same(kernels.attend(*inputs), truth(*inputs), within=1e-6)


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_many_small_weights_count(dtype, device):
    """A key at the top, a thousand e⁻¹⁸ below it: a weight that a float16 of a GPU's would round to nothing."""
    n = 1000
    q = torch.ones(1, 1, 1, 16, dtype=dtype, device=device)
    keys, values = (torch.zeros(1, 1, n + 1, 16, dtype=dtype, device=device) for _ in range(2))
    keys[0, 0, 0], values[0, 0, 1:] = 4.5, 1.0  # scores 18 and 0
    got = kernels.attend(q, keys, values, torch.tensor([n + 1], device=device), tiles=Tiles(64, 4, 4))
    assert_same(got, np.full((1, 1, 1, 16), n * np.exp(-18)), within=4e-3)  # 1.5e-5, where a float16 has few bits


@every_device
def test_large_scores_do_not_overflow(device):
    q, keys, values, lengths = drawn([70, 20], device=device)
    inputs = q * 1e4, keys, values, lengths
    assert_same(kernels.attend(*inputs, tiles=MANY), truth(*inputs))


# --- How it is laid out --------------------------------------------------------------------------------------------


@every_device
def test_strides_are_followed(device):
    """Every second channel, keys beside values, token before head, lengths out of a table: read where they lie."""
    q, keys, values, lengths = drawn([70, 33], dtype=torch.float32, device=device)
    spread = torch.stack([keys, values], dim=-1).transpose(1, 2).contiguous().transpose(1, 2)
    table = torch.stack([lengths, -lengths], dim=1)
    views = q.transpose(1, 3).contiguous().transpose(1, 3), spread[..., 0], spread[..., 1], table[:, 0]
    assert not any(x.is_contiguous() for x in views)
    got, want = (kernels.attend(*x, tiles=MANY) for x in (views, (q, keys, values, lengths)))
    assert torch.equal(got, want)


@every_device
def test_the_same_inputs_give_the_same_bits_and_stay_as_they_are(device):
    inputs = drawn([70, 33], dtype=torch.float32, device=device)
    before = [x.clone() for x in inputs]
    first, second = (kernels.attend(*inputs, tiles=MANY) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(inputs, before, strict=True))


def test_offsets_beyond_32_bits():
    """Keys 2³⁰ elements apart, of which only a few are ever touched."""
    q, keys, values, lengths = drawn([5], 1, 1, 5, dtype=torch.float16)
    far = torch.empty(4 * 2**30 + 16, dtype=torch.float16).as_strided((1, 1, 5, 16), (0, 0, 2**30, 1))
    far.copy_(keys)
    assert torch.equal(kernels.attend(q, far, values, lengths), kernels.attend(q, keys, values, lengths))


@every_device
@pytest.mark.parametrize("spoilt", [0, 1, 2], ids=["query", "key", "value"])
def test_a_row_of_nan_stays_alone(spoilt, device):
    *inputs, lengths = drawn([70, 33, 20], device=device)
    want = kernels.attend(*inputs, lengths, tiles=MANY)
    inputs[spoilt][1, :, 0] = torch.nan
    got = kernels.attend(*inputs, lengths, tiles=MANY)
    assert got[1].isnan().all() and torch.equal(got[::2], want[::2])


@pytest.mark.parametrize("pairs, capacity, splits", [
    (8, 8192, 32),  # one row of eight key heads: no stretch shorter than 256 keys
    (8, 2**20, 256),
    (256, 8192, 9),  # 32 rows: sixteen programs for each multiprocessor
    (2048, 8192, 2),
    (2048, 2**20, 128),  # a row alone among short ones is shared out nevertheless
    (1, 1, 1),
])  # fmt: skip
def test_there_are_as_many_stretches_as_keep_a_gpu_busy(pairs, capacity, splits, monkeypatch):
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    assert kernels.splits_for(Tiles(), pairs, capacity, torch.device("cuda")) == splits


# --- What is kept of a token ---------------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d, rotary_dim", [(16, 8), (10, 4), (16, 16), (6, 0)])
def test_a_token_is_turned_and_kept(d, rotary_dim, dtype, device):
    """Far out, past the end of a slot that goes round, out of a packed projection; nothing else is touched."""
    made, positions = torch.Generator().manual_seed(0), torch.tensor([0, 3, 12, 10**7], device=device)
    packed = torch.randn(4, 1, 8, d, generator=made, dtype=torch.float64).to(device, dtype).transpose(1, 2)
    q, k, v = packed[:, :4], packed[:, 4:6], packed[:, 6:]
    before = torch.randn(2, 4, 2, 7, d, generator=made, dtype=torch.float64).to(device, dtype)
    after, frequencies = before.clone(), minimax_torch.ops.rotary_frequencies(rotary_dim, 100.0, device=before.device)
    got = keeping.remember(q, k, v, after, positions, frequencies)
    want = before.clone()
    want[:, torch.arange(4), :, positions % 7] = torch.stack(
        [minimax_torch.ops.apply_rotary(k, positions[:, None], rotary_dim, 100.0), v]
    )[:, :, :, 0].transpose(0, 1)
    within = {torch.float64: 1e-14, torch.float32: 1e-7, torch.bfloat16: 4e-3}[dtype]  # the interpreter cuts off
    assert_same(got, minimax_torch.ops.apply_rotary(q, positions[:, None], rotary_dim, 100.0), within)
    assert_same(after, want, within)
    assert torch.equal(after[1], want[1])


def test_what_cannot_be_kept_is_refused(unchecked):
    made = torch.zeros
    q, k, slots, p, f = made(2, 4, 1, 6), made(2, 2, 1, 6), made(2, 2, 2, 9, 6), made(2).long(), made(1).double()
    for inputs, fragment in (
        ((q.expand(-1, -1, 2, -1), k, k, slots, p, f), "one token"),
        ((q, k, k[:, :1], slots, p, f), "(2, 1, 1, 6)"),
        ((q, k, k, slots[0], p, f), "slots are"),
        ((q, k, k, slots.half(), p, f), "float16"),
        ((q, k, k, slots, p, f.float()), "float64"),
    ):
        with pytest.raises(ValueError) as told:
            keeping.remember(*inputs)
        assert_one_sentence(told.value, fragment)


# --- In the whole model --------------------------------------------------------------------------------------------


def as_on_a_gpu(monkeypatch, fused: bool) -> list[str]:
    """Choose kernels as a GPU would, layer by layer or, where that is asked, fused; which were taken."""
    taken = []
    monkeypatch.setattr(choose, "softmax_step", lambda q, k: taken.append("keys") or BOTH)
    monkeypatch.setattr(choose, "lightning_step", lambda q, v: taken.append("state") or decode.lightning_step)
    if fused:
        real = layer.lightning
        monkeypatch.setattr(layer, "lightning", lambda *a, **b: taken.append("fused state") or real(*a, **b))
        monkeypatch.setattr(layer, "on_gpu", lambda x: True)
        monkeypatch.setattr(layer, "TYPES", (torch.float64,))
        monkeypatch.setattr(choose, "has_triton", lambda *a: True)
    return taken


def stepped(model, spoil=False, steps=4) -> torch.Tensor:
    """Logits of two rows of different lengths, while a third slot is not in use; the first row is spoilt if asked."""
    rows = Slots(model, 3, 20)
    for prompt in ([3, 4, 5], [6, 7, 8, 9, 10, 11, 12]):
        rows.put(torch.tensor(prompt))
    if spoil:
        rows.layers[0].state[0] = rows.layers[0].state[2] = rows.layers[1].slots[:, 0] = torch.nan
    return torch.stack([rows.step(torch.tensor([9, 3 + t, 0])) for t in range(steps)])[:, :2]


THREE = {"num_experts_per_tok": 3}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, *(pytest.param(c, marks=pytest.mark.slow) for c in ({"sliding_window": 6}, {"postnorm": False}, THREE))],
    ids=str,
)
def test_slots_decode_with_the_kernels(changes, fused, monkeypatch):
    """As on a GPU: states written over by one kernel, keys put down by another and read by a third."""
    model = MiniMaxForCausalLM.from_reference(lively(small(LIGHTNING, SOFTMAX, **changes)))
    want = stepped(model)
    with monkeypatch.context() as patched:
        taken = as_on_a_gpu(patched, fused)
        with torch.no_grad():
            assert_same(stepped(model), want)
    assert taken[-2:] == ["fused state" if fused else "state", "keys"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_spoilt_row_stays_alone_in_the_kernels(fused, monkeypatch):
    model = MiniMaxForCausalLM.from_reference(lively(small(LIGHTNING, SOFTMAX)))
    as_on_a_gpu(monkeypatch, fused)
    got, want = stepped(model, spoil=True, steps=2), stepped(model, steps=2)
    assert got[:, 0].isnan().all() and torch.equal(got[:, 1], want[:, 1])


def test_the_kernel_is_chosen(monkeypatch):
    """One warning, once, where it would have been expected."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    choose._softmax_step.cache_clear()
    choose.has_triton.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose._softmax_step(128, 8, device) == BOTH
        q, keys, _, _ = drawn([5])
        assert choose.softmax_step(q, keys) is choose.lightning_step(q, q) is None  # no GPU: nothing is missed
    for many in ((512, 1), (16, 200)):
        with pytest.warns(UserWarning) as told:
            assert choose._softmax_step(*many, device) is choose._softmax_step(*many, device) is None
        assert len(told) == 1
        assert_one_sentence(told[0].message, str(max(many)), "256", "128", "PyTorch")
    choose._softmax_step.cache_clear()
    choose.has_triton.cache_clear()


def test_what_it_cannot_do_it_says(unchecked):
    q, keys, values, lengths = drawn([5, 6])
    wrong = [
        ((q.expand(-1, -1, 2, -1), keys, values), "one query"),
        ((q[:, :3], keys, values), "G divides H"),
        ((q, keys[:, :, :9], values), "(2, 2, 9, 16)"),
        ((q[..., :1].expand(-1, -1, -1, 257), keys[..., :1].expand(-1, -1, -1, 257), values), "257"),
        ((q[:, :1].expand(-1, 258, -1, -1), keys, values), "129"),
    ]
    for inputs, fragment in wrong:
        with pytest.raises(ValueError) as told:
            kernels.attend(*inputs, lengths)
        assert_one_sentence(told.value, fragment)


# --- Mistakes ------------------------------------------------------------------------------------------------------

EACH = "each = tl.maximum((n + SPLITS * N - 1) // (SPLITS * N), LEAST) * N\n    first"
ROW = "n = tl.minimum(tl.load(lengths + b * length_stride), capacity).to(tl.int64)\n    "
MISTAKES = {  # what was planted: the line as it is, as it is then
    "keys past the end are seen": ("tl.where(exists[None, :], scores", "tl.where(j[None, :] < N, scores"),
    "the last key of a row is not seen": ("tl.minimum(first + each, n)", "tl.minimum(first + each, n - 1)"),
    "every row is as long as the first": (ROW + EACH, ROW.replace(" + b * length_stride", "") + EACH),
    "stretches are cut short": (EACH, "each = tl.maximum(n // (SPLITS * N), LEAST) * N\n    first"),
    "the sum below the line is not scaled with the maximum": ("total * shrink +", "total +"),
    "the sum above the line is not scaled with the maximum": ("mix * shrink[:, None]", "mix"),
    "scores are those of base e": ("LOG2E * d**-0.5", "d**-0.5"),
    "scores are not divided by the root of d": ("LOG2E * d**-0.5", "LOG2E"),
    "queries go with the wrong key head": ("(g * SHARED + r[:, None])", "(r[:, None] * G + g)"),
    "answers go with the wrong key head": ("h // SHARED) * SPLITS", "h % G) * SPLITS"),
    "every query reads the first one's answer": (" * SHARED + h % SHARED", " * SHARED"),
    "values are those of the first key head": (" + g * v_strides[1]", ""),
    "stretches are joined as if their maxima were one": ("tl.exp2(peak - highest)", "tl.exp2(peak * 0)"),
    "a stretch that was never read is joined": ("exists = s * each < n", "exists = s < SPLITS"),
    "the last stretch is not joined": ("exists = s * each < n", "exists = (s + 1) * each < n"),
    "every stretch reads the first one's keys": ("start * k_strides[2]", "(start - first) * k_strides[2]"),
}  # fmt: skip


TURNED = {
    "the other way": ("-tl.sin(angle), tl.sin(angle)", "tl.sin(angle), -tl.sin(angle)"),
    "with the neighbour": ("tl.where(i < half, i + half, i - half)  #", "i ^ 1  #"),
    "values too": ("            turns = i < 0\n", "            turns = i < R\n"),
    "by the first row's position": ("tl.load(positions + b)", "tl.load(positions)"),
    "a slot does not go round": ("p % capacity", "tl.minimum(p, capacity - 1)"),
    "values lie where keys do": ("            to += slots_strides[0]\n", ""),
    "each frequency twice": ("frequencies + tl.where(i < half, i, i - half)", "frequencies + i % half // 2"),
}  # fmt: skip


def furthest(function) -> float:
    """The largest error of rows that are short and long; NaN is as far as can be, and is where nobody has written."""
    inputs = drawn([0, 70, 33, 3])
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        with np.errstate(all="ignore"):
            return error(torch.nan_to_num(function(*inputs, tiles=MANY), nan=1e3), truth(*inputs))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake, tmp_path):
    assert furthest(edited(tmp_path, kernels, *MISTAKES[mistake]).attend) > 1e-6


def test_an_edit_that_changes_nothing_passes(tmp_path):
    """Else the mistakes above could be noticed for being edited."""
    assert furthest(edited(tmp_path, kernels, "exists = j < last - start", "exists = start + j < last").attend) < 1e-14


@pytest.mark.parametrize("mistake", TURNED)
def test_a_mistake_in_turning_is_noticed(mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "remember", edited(tmp_path, keeping, *TURNED[mistake]).remember)
    with pytest.raises(AssertionError, match="relative error"):
        test_a_token_is_turned_and_kept(16, 8, torch.float64, "cpu")
