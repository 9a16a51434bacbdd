"""Padding is not there: it changes no real token's output, no state and no cached key, wherever it stands."""

import numpy as np
import pytest
from close import array, assert_same, assert_same_cache, both, lively, prompts, small
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, lists
from minimax_numpy.config import LIGHTNING, SOFTMAX

MODELS = {
    "hybrid": lively(small(LIGHTNING, SOFTMAX, LIGHTNING, block_size=4)),
    "with a window": lively(small(SOFTMAX, LIGHTNING, block_size=4, sliding_window=3)),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]],
    "holes": [[1, 0, 0, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0, 1]],
    "everything": [[0, 0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]],
    "a row of nothing": [[0] * 7, [1, 1, 0, 1, 1, 1, 1]],
}


def real_tokens(x, mask):
    """The rows of a padded batch, without their padding."""
    return [array(x)[row, real == 1] for row, real in enumerate(np.asarray(mask))]


def check_rows(side, model, ids, masks):
    """A padded batch, in as many calls as there are masks, against each row alone."""
    cache = side.cache(model.config, len(ids[0]))
    said = [real_tokens(side.call(model, tokens, mask, cache=cache).logits, mask) for tokens, mask in zip(ids, masks)]
    for row in range(len(ids[0])):
        texts = [tokens[row, mask[row] == 1] for tokens, mask in zip(ids, masks)]
        alone = side.cache(model.config, 1)
        want = [array(side.call(model, text[None], cache=alone).logits)[0] for text in texts if text.size]
        if want:
            assert_same(np.concatenate([part[row] for part in said]), np.concatenate(want))
            assert_same_cache(one_row(cache, row), alone)
        else:
            assert_empty(cache, row)


def one_row(cache, row):
    """A row of a batch's memory, as a cache of its own."""
    found = cache.fork()
    found.reorder([row])
    return found


def assert_empty(cache, row):
    """A row that has seen nothing remembers nothing."""
    assert cache.lengths[row] == 0
    for layer in cache.layers:
        if hasattr(layer, "state"):
            assert not array(layer.state)[row].any()


@both
@every_model
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_padding_is_not_there(side, model, mask):
    """Each row is what it is alone: outputs, states, cached keys, values and lengths."""
    check_rows(side, model, [prompts(model.config, 2, 7)], [np.array(mask)])


@both
@every_model
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_padding_after_a_cached_text(side, model, mask):
    """Upstream decays the old state by the pads; here they take no time. Rows of different lengths go on, and on."""
    ids = [prompts(model.config, 2, n, seed=n) for n in (7, 7, 1, 5)]
    masks = [np.array(MASKS["left"]), np.array(mask), np.array([[0], [1]]), np.array([[1] * 5] * 2)]
    check_rows(side, model, ids, masks)


masks = lists(lists(booleans(), min_size=6, max_size=6), min_size=3, max_size=3)


@both
@settings(max_examples=15)
@given(first=masks, second=masks, seed=integers(0, 99))
def test_any_padding_in_any_call(side, first, second, seed):
    """Any pattern, then any other pattern on the same cache."""
    model = MODELS["hybrid"]
    ids = [prompts(model.config, 3, 6, seed=seed + n) for n in (0, 1)]
    check_rows(side, model, ids, [np.array(first, int), np.array(second, int)])


@both
@every_model
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_what_stands_at_padding_does_not_matter(side, model, mask):
    """Another embedding there, even one that is not a number, changes nothing: it is left out, not multiplied by 0."""
    mask = np.array(mask)
    embeds, asked = (
        np.random.default_rng(0).standard_normal((2, 7, 32)),
        {"use_cache": True, "output_router_logits": True},
    )
    outs = []
    for fill in (0.0, 1e30, np.nan):
        x = np.where(mask[..., None] == 1, embeds, fill)
        with np.errstate(all="ignore"):
            outs.append(side.call(model, inputs_embeds=x, attention_mask=mask, labels=mask, **asked))
    for out in outs[1:]:
        for got, want in zip(real_tokens(out.logits, mask), real_tokens(outs[0].logits, mask)):
            assert_same(got, want)
        assert_same_cache(out.cache, outs[0].cache)
        assert_same(out.loss, outs[0].loss)
        assert_same(out.aux_loss, outs[0].aux_loss)


@both
@every_model
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_outputs_at_padding_are_finite(side, model, mask):
    """Nobody may use them, but they must not spoil a sum over the batch."""
    out = side.call(model, prompts(model.config, 2, 7), np.array(mask), output_hidden_states=True)
    for x in (out.logits, *out.hidden_states):
        assert np.isfinite(array(x)).all()


@both
@pytest.mark.parametrize("mask", list(MASKS.values())[:4], ids=list(MASKS)[:4])
def test_padding_costs_no_loss(side, mask):
    """The loss of a padded batch is the mean over the pairs of neighbours that are both real and side by side."""
    model, mask = MODELS["hybrid"], np.array(mask)
    ids = prompts(model.config, 2, 7)
    out = side.call(model, ids, mask, labels=ids)
    logits = array(out.logits)
    surprise = []
    for b, t in np.argwhere(mask[:, :-1] & mask[:, 1:]):
        surprise.append(np.log(np.exp(logits[b, t]).sum()) - logits[b, t, ids[b, t + 1]])
    assert_same(out.loss, np.mean(surprise))


@both
def test_a_mask_of_ones_is_no_mask(side):
    """In any type that a mask comes in, to the bit."""
    model = MODELS["hybrid"]
    ids = prompts(model.config, 2, 7)
    want = array(side.call(model, ids).logits)
    for dtype in (np.int64, np.int32, np.bool_):
        np.testing.assert_array_equal(array(side.call(model, ids, np.ones((2, 7), dtype)).logits), want)


@both
@every_model
def test_a_batch_is_each_row_alone(side, model):
    """Rows do not see each other, not even through the experts that they share."""
    ids = prompts(model.config, 4, 9)
    out = side.call(model, ids)
    for row in range(4):
        assert_same(side.call(model, ids[row : row + 1]).logits[0], out.logits[row])
