"""A cache is the past, whatever was done with it: cut, forked, gone back in, reordered, saved. In both packages."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace

import minimax_numpy.shipped
import numpy as np
import pytest
import torch
from close import NUMPY, TORCH, array, assert_one_sentence, assert_same, assert_same_cache, both, lively, prompts, small
from hypothesis import given, settings
from hypothesis.strategies import data, integers, lists, permutations, sampled_from
from minimax_numpy import MiniMaxConfig
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_torch.cache import SoftmaxMemory

RELEASED = {
    "7:1": lively(MiniMaxConfig.tiny(block_size=4)),
    "7:1 with a window": lively(MiniMaxConfig.tiny(block_size=4, sliding_window=5)),
}
SMALL = {
    "hybrid": lively(small(LIGHTNING, SOFTMAX, block_size=4)),
    "with a window": lively(small(LIGHTNING, SOFTMAX, block_size=4, sliding_window=3)),
}
at_the_released_layout = pytest.mark.parametrize("model", RELEASED.values(), ids=RELEASED.keys())
every_model = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL.keys())


def show(side, model, cache, ids, mask=None):
    return array(side.call(model, ids, mask, cache=cache).logits)


@both
@at_the_released_layout
@settings(max_examples=12)
@given(data=data(), seed=integers(0, 99))
def test_a_past_in_pieces_is_the_past(side, model, data, seed):
    """One token, many, none for some of the rows; with a fork, a rollback, a reorder or a file between them.

    Each row's logits, states, keys and values are those of its whole text in one call.
    """
    rng, cache = np.random.default_rng(seed), side.cache(model.config, 3)
    texts, said = [np.zeros(0, int)] * 3, [np.zeros((0, model.config.vocab_size))] * 3
    for _ in range(data.draw(integers(2, 5))):
        between = data.draw(sampled_from(["nothing", "fork", "rollback", "reorder"]))
        if between == "fork":
            other, cache = cache, cache.fork()
            show(side, model, other, prompts(model.config, 3, 2, seed=seed + 1))  # goes another way
        elif between == "rollback":
            moment = cache.snapshot()
            show(side, model, cache, prompts(model.config, 3, data.draw(integers(1, 7)), seed=seed + 2))
            cache.restore(moment)
        elif between == "reorder":
            rows = data.draw(lists(integers(0, 2), min_size=3, max_size=3) | permutations(range(3)))
            cache.reorder(rows)
            texts, said = [texts[row] for row in rows], [said[row] for row in rows]
        ids = prompts(model.config, 3, data.draw(integers(1, 9)), seed=int(rng.integers(1000)))
        mask = rng.random(ids.shape) < data.draw(sampled_from([0.5, 1.1]))
        logits = show(side, model, cache, ids, mask)
        texts = [np.append(text, ids[row, mask[row]]) for row, text in enumerate(texts)]
        said = [np.concatenate([before, logits[row, mask[row]]]) for row, before in enumerate(said)]
    for row, text in enumerate(texts):
        if not text.size:
            continue
        whole = side.call(model, text[None], use_cache=True)
        assert_same(said[row], whole.logits[0])
        alone = cache.fork()
        alone.reorder([row])
        assert_same_cache(alone, whole.cache)


@both
@every_model
def test_a_fork_costs_nothing_until_it_differs(side, model):
    """It shares all; the first to write goes on in place, the second gets its own; neither disturbs the other."""
    ids, more, other = (prompts(model.config, 2, 9, seed=seed) for seed in range(3))
    cache = side.cache(model.config, 2)
    show(side, model, cache, ids)
    fork = cache.fork()
    for mine, theirs in zip(fork.layers, cache.layers, strict=True):
        for name in ("state", "keys", "values"):
            if hasattr(mine, name):
                assert np.shares_memory(array(getattr(mine, name)), array(getattr(theirs, name)))
    got = show(side, model, fork, more), show(side, model, cache, other)
    for logits, last, end in zip(got, (more, other), (fork, cache), strict=True):
        whole = side.call(model, np.concatenate([ids, last], axis=1), use_cache=True)
        assert_same(logits, whole.logits[:, 9:])
        assert_same_cache(end, whole.cache)


@both
@every_model
def test_one_prefill_serves_many_continuations(side, model):
    """A prompt read once and repeated: each continuation is that of prompt and text read together."""
    prompt, texts = prompts(model.config, 1, 11), prompts(model.config, 5, 4, seed=1)
    cache = side.cache(model.config, 1)
    show(side, model, cache, prompt)
    many = cache.fork()
    many.reorder([0] * 5)
    got = show(side, model, many, texts)
    whole = side.call(model, np.concatenate([np.repeat(prompt, 5, axis=0), texts], axis=1), use_cache=True)
    assert_same(got, whole.logits[:, 11:])
    assert_same_cache(many, whole.cache)
    assert array(cache.lengths).tolist() == [11]  # and may be used again


@both
@pytest.mark.parametrize("w", [1, 2, 5])
def test_a_window_keeps_that_many_keys_and_no_more(side, w):
    """However the text comes, and when it is forked, too."""
    model = lively(small(SOFTMAX, LIGHTNING, sliding_window=w))
    c, cache = model.config, side.cache(model.config, 2)
    for T in (1, 3, 1, 8, 1, 2 * w):
        show(side, model, cache, prompts(c, 2, T))
        show(side, model, cache.fork(), prompts(c, 2, 2))
        memory = cache.layers[0]
        assert memory.keys.shape[2] == memory.values.shape[2] == min(w, int(cache.lengths[0]))
        assert memory.nbytes <= 2 * 2 * c.num_key_value_heads * w * c.head_dim * 8
    assert memory.nbytes == 2 * 2 * c.num_key_value_heads * w * c.head_dim * 8


@both
@every_model
def test_a_token_does_not_copy_the_cache(side, model):
    """Slots are reserved ahead: 200 tokens move what is held eight times, not 200; a state is of one size."""
    cache, moved, sizes = side.cache(model.config, 1), 0, set()
    where = None
    for t in range(200):
        show(side, model, cache, prompts(model.config, 1, 1, seed=t))
        slots = cache.layers[1]._slots
        moved, where = moved + (slots is not where), slots
        sizes.add(cache.layers[0].nbytes)
    assert moved <= 9
    assert sizes == {4 * 16 * 16 * 8}


@pytest.mark.parametrize(
    "positions",
    [[[0, 1, 2], [0, 1, 2]], [[-1, 0, 1], [-1, 0, 1]], [[0, 1, 2], [1, 2, 3]], [[0, 2, 3], [0, 2, 3]]],
    ids=["side by side", "padded", "one row further on", "one left out"],
)
def test_a_token_is_written_where_it_belongs(positions):
    k = torch.arange(1.0, 7).reshape(2, 1, 3, 1)
    keys, values = SoftmaxMemory().append(k, -k, torch.tensor(positions), None)
    want = torch.zeros(2, 1, max(map(max, positions)) + 1, 1)
    for row, places in enumerate(positions):
        for t, place in enumerate(places):
            if place >= 0:  # below is padding
                want[row, 0, place] = k[row, 0, t]
    assert torch.equal(keys, want) and torch.equal(values, -want)


@both
@every_model
def test_speculative_decoding(side, model):
    """Snapshot, guess, go back, show what was right: again and again, without copying a key where none is lost."""
    text, cache = prompts(model.config, 1, 40), side.cache(model.config, 1)
    show(side, model, cache, text[:, :8])
    buffers = set()
    for start in range(8, 40, 4):
        moment = cache.snapshot()
        show(side, model, cache, prompts(model.config, 1, 6, seed=start))
        cache.restore(moment)
        del moment
        show(side, model, cache, text[:, start : start + 4])
        buffers.add(id(cache.layers[1]._slots))
    assert_same_cache(cache, side.call(model, text, use_cache=True).cache)
    if model.config.sliding_window is None:
        assert len(buffers) <= 3  # moved by growth alone


@both
@every_model
def test_cropping_needs_a_snapshot(side, model):
    """To a length whose snapshot is held, a cache goes back; to any other it says why it cannot."""
    ids = prompts(model.config, 2, 12)
    cache = side.cache(model.config, 2)
    show(side, model, cache, ids[:, :5])
    moment = cache.snapshot()
    show(side, model, cache, ids[:, 5:])
    with pytest.raises(ValueError) as refused:
        cache.crop(7)
    assert_one_sentence(refused.value, "length 7", "snapshot")
    cache.crop(12)  # where it is
    cache.crop(5)
    assert_same_cache(cache, side.call(model, ids[:, :5], use_cache=True).cache)
    show(side, model, cache, ids[:, 5:])
    del moment
    gc.collect()
    with pytest.raises(ValueError, match="No snapshot of this cache at length 5"):
        cache.crop(5)


@both
@every_model
def test_cropping_stays_on_the_way_that_was_gone(side, model):
    """Two guesses of one length, both kept: a crop goes back to the one that is this past, never to the other."""
    ids, guesses = prompts(model.config, 1, 5), [prompts(model.config, 1, 3, seed=seed) for seed in (1, 2)]
    cache = side.cache(model.config, 1)
    show(side, model, cache, ids)
    start, kept = cache.snapshot(), []
    for guess in guesses:
        cache.restore(start)
        show(side, model, cache, guess)
        kept.append(cache.snapshot())
    ends = [side.call(model, np.concatenate([ids, guess], axis=1), use_cache=True).cache for guess in guesses]
    for i in (1, 0):
        cache.restore(kept[i])
        show(side, model, cache, prompts(model.config, 1, 2))
        cache.crop(8)
        assert_same_cache(cache, ends[i])
    cache.restore(start)
    with pytest.raises(ValueError, match="length 8"):
        cache.crop(8)


@both
@every_model
@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "pickled"])
def test_copies_share_nothing(side, model, through):
    """A cache, its fork and a fork of the copy are deep-copied or pickled together, and then go their own ways."""
    ids, cache = prompts(model.config, 1, 4), side.cache(model.config, 1)
    for part in (ids[:, :3], ids[:, 3:]):  # the second leaves room for more
        show(side, model, cache, part)
    first, second = through([cache, cache.fork()])
    for n, mine in enumerate([*(many := [first, second, first.fork(), cache]), *many]):
        show(side, model, mine, prompts(model.config, 1, 1, seed=n))
    for n, mine in enumerate(many):
        text = np.concatenate([ids, *(prompts(model.config, 1, 1, seed=seed) for seed in (n, n + 4))], axis=1)
        assert_same_cache(mine, side.call(model, text, use_cache=True).cache)


@every_model
def test_a_past_read_in_inference_mode_goes_on_outside_of_it(model):
    """Its tensors may not be written to there, so they are copied; and again inside."""
    twin, ids = TORCH.model(model), torch.tensor(prompts(model.config, 1, 9))
    cache = TORCH.cache(model.config, 1)
    modes = [torch.inference_mode] * 3 + [torch.no_grad, torch.inference_mode, torch.no_grad]
    for start, mode in enumerate(modes):  # at the fourth token there is room for it
        with mode():
            twin(ids[:, start : start + 1], cache=cache)
    assert_same_cache(cache, model(ids[:, : len(modes)].numpy(), use_cache=True).cache)


@both
def test_a_snapshot_of_another_cache_is_refused(side):
    model = SMALL["hybrid"]
    cache, other = side.cache(model.config, 1), side.cache(model.config, 1)
    for wrong in (other, cache.fork()):
        with pytest.raises(ValueError) as refused:
            cache.restore(wrong.snapshot())
        assert_one_sentence(refused.value, "another cache")


@both
@pytest.mark.parametrize("rows", [[], [0.5], [2], [-1], [[0, 1]]], ids=str)
def test_rows_that_are_not_there(side, rows):
    """Refused before anything moves."""
    cache = side.cache(SMALL["hybrid"].config, 2)
    show(side, SMALL["hybrid"], cache, prompts(cache.config, 2, 3))
    before = cache.fork()
    with pytest.raises(ValueError) as refused:
        cache.reorder(rows)
    assert_one_sentence(refused.value)
    assert_same_cache(cache, before, within=0)


@both
@every_model
def test_an_interrupted_call_leaves_no_half_written_past(side, model):
    """Interrupted between two layers, a cache is refused until it is restored; then it goes on as if nothing were."""
    ids, cache = prompts(model.config, 1, 9), side.cache(model.config, 1)
    show(side, model, cache, ids[:, :4])
    moment = cache.snapshot()

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), side.package.ops.using(softmax_attention=interrupted):
        show(side, model, cache, prompts(model.config, 1, 3, seed=5))
    for use in (
        lambda: show(side, model, cache, ids[:, 4:]),
        cache.fork,
        cache.snapshot,
        lambda: cache.save("nowhere"),
    ):
        with pytest.raises(ValueError) as refused:
            use()
        assert_one_sentence(refused.value, "interrupted")
    cache.restore(moment)
    show(side, model, cache, ids[:, 4:])
    assert_same_cache(cache, side.call(model, ids, use_cache=True).cache)


@both
def test_a_cache_of_other_weights_is_refused(side, tmp_path):
    """Nothing in a state would show it. From a file, too; the same weights in another object are welcome."""
    model, other = SMALL["hybrid"], lively(SMALL["hybrid"].config, seed=1)
    cache, ids = side.cache(model.config, 1), prompts(model.config, 1, 3)
    show(side, model, cache, ids)
    cache.save(tmp_path / "cache")
    for used in (cache, cache.fork(), side.package.Cache.load(tmp_path / "cache")):
        with pytest.raises(ValueError) as refused:
            side.call(other, ids, cache=used)
        assert_one_sentence(refused.value, "other weights")
        side.ask(side.model(lively(model.config)), ids, cache=used)
        assert array(used.lengths).tolist() == [6]


@both
def test_a_cache_that_does_not_fit_is_refused(side):
    """Of another configuration, batch, type or package: before any work, so the cache is as it was."""
    model = SMALL["hybrid"]
    cache = side.cache(model.config, 2)
    show(side, model, cache, prompts(model.config, 2, 3))
    before, narrow = cache.fork(), lively(model.config, dtype=np.float32)
    other = lively(replace(model.config, rms_norm_eps=1e-6))
    foreign = (TORCH if side is NUMPY else NUMPY).cache(model.config, 2)
    for wrong, used, rows, told in (
        (other, cache, 2, "another configuration"),
        (model, cache, 3, "2 rows but this call has 3"),
        (narrow, cache, 2, "float64"),
        (model, foreign, 2, "other package"),
    ):
        with pytest.raises(ValueError) as refused:
            side.call(wrong, prompts(model.config, rows, 2), cache=used)
        assert_one_sentence(refused.value, told)
    assert_same_cache(cache, before, within=0)
    with pytest.raises(ValueError, match="at least one row"):
        side.cache(model.config, 0)


def test_a_cache_on_another_device_is_refused():
    model = TORCH.model(SMALL["hybrid"])
    with pytest.raises(ValueError) as refused:
        model(torch.tensor([[3, 4]]), cache=TORCH.package.Cache(model.config, 1, "meta"))
    assert_one_sentence(refused.value, "on meta", "on cpu")


# --- On disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [NUMPY, TORCH], ids=repr)
@both
@every_model
def test_a_saved_cache_goes_on_in_either_package(side, model, reader, tmp_path):
    """Rows of unequal length; to the bit, and with the same logits after it."""
    ids, mask = prompts(model.config, 2, 9), np.array([[1] * 9, [0, 1, 1, 0, 1, 0, 0, 0, 0]])
    cache = side.cache(model.config, 2)
    show(side, model, cache, ids, mask)
    cache.save(tmp_path / "cache.safetensors")
    back = reader.package.Cache.load(tmp_path / "cache.safetensors")
    assert back.config == model.config
    assert_same_cache(back, cache, within=0)
    more = prompts(model.config, 2, 4, seed=1)
    assert_same(show(reader, model, back, more), show(side, model, cache, more))
    assert_same_cache(back, cache)


@both
def test_an_empty_cache_may_be_saved(side, tmp_path):
    side.cache(SMALL["hybrid"].config, 3).save(tmp_path / "empty")
    back = side.package.Cache.load(tmp_path / "empty")
    assert array(back.lengths).tolist() == [0, 0, 0] and back.nbytes == 0 and back.dtype is None
    show(side, SMALL["hybrid"], back, prompts(back.config, 3, 2))


def test_bfloat16_is_kept(tmp_path):
    """In the twin to the bit; NumPy, which has no such type, reads the same numbers in float32."""
    model = TORCH.model(SMALL["hybrid"]).to(torch.bfloat16)
    cache = TORCH.cache(model.config, 1)
    model(torch.from_numpy(prompts(model.config, 1, 5)), cache=cache)
    cache.save(tmp_path / "cache")
    back, wide = TORCH.package.Cache.load(tmp_path / "cache"), NUMPY.package.Cache.load(tmp_path / "cache")
    assert back.dtype == back.layers[1].keys.dtype == torch.bfloat16 and back.layers[0].state.dtype == torch.float32
    assert wide.dtype == wide.layers[1].keys.dtype == np.float32
    for found in (back, wide):
        assert_same_cache(found, cache, within=0)


@pytest.fixture
def saved(tmp_path):
    model = SMALL["hybrid"]
    cache = NUMPY.cache(model.config, 2)
    show(NUMPY, model, cache, prompts(model.config, 2, 5))
    cache.save(tmp_path / "cache")
    return tmp_path / "cache"


@both
def test_a_corrupt_file_is_refused(side, saved, tmp_path):
    """Cut short anywhere, filled with NaN, its shapes or its configuration altered, or another file altogether."""
    whole = saved.read_bytes()
    names = [b'"layers.0.state"', b'"lengths"', b"hidden_size", b"layer_types", b"rms_norm_eps"]
    damaged = [whole[:n] for n in (0, 4, 100, len(whole) // 2, len(whole) - 1)]
    damaged += [whole.replace(name, name[:2] + b"~" + name[3:]) for name in names]
    damaged += [whole[:-8] + np.array([np.nan]).tobytes(), whole.replace(b"[2,2,5,16]", b"[2,2,4,20]")]
    damaged += [whole.replace(b'"dtype":"float64"', b'"dtype":"' + name + b'"') for name in (b"float63", b"float32")]
    damaged += [whole.replace(np.array([5, 5]).tobytes(), np.array([-5, 5]).tobytes())]
    damaged += [whole.replace(b'{"dtype":"I64"', b'{"dtype":"F64"')]
    for content in damaged:
        assert content != whole
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(ValueError) as refused:
            side.package.Cache.load(tmp_path / "damaged")
        assert_one_sentence(refused.value, "damaged")
    with pytest.raises(FileNotFoundError):
        side.package.Cache.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a cache"):
        side.package.Cache.load(minimax_numpy.shipped.TINY / "model.safetensors")


def test_a_disk_that_fills_leaves_the_old_file(saved):
    """The old cache stays, to the byte, and nothing lies beside it. Tried for real, by a limit on the size of files."""
    before = saved.read_bytes()
    code = f"""
        import resource, signal
        import numpy as np
        from minimax_numpy import Cache, MiniMaxForCausalLM
        cache = Cache.load({str(saved)!r})
        MiniMaxForCausalLM(cache.config, dtype=np.float64)(np.ones((2, 50), int), cache=cache)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, resource.RLIM_INFINITY))
        try:
            cache.save({str(saved)!r})
        except OSError:
            print("refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert done.stdout == "refused\n", done.stderr
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]
