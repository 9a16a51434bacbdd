"""Packed documents are the documents: end to end in one row, each is what it is alone, and remembers what it would."""

import numpy as np
import pytest
from close import array, assert_same, assert_same_cache, both, every_configuration, lively, prompts, small
from hypothesis import given
from hypothesis.strategies import integers, lists
from minimax_numpy.config import LIGHTNING, SOFTMAX

MODEL = lively(small(LIGHTNING, SOFTMAX, LIGHTNING, block_size=4))
documents = lists(integers(1, 8), min_size=1, max_size=5)


def ends(lengths) -> np.ndarray:
    return np.cumsum([0, *lengths])


def alone(side, model, ids, cuts):
    """Each document in a call of its own."""
    return [side.call(model, ids[:, a:b], use_cache=True) for a, b in zip(cuts, cuts[1:])]


def assert_packed(side, packed, singles, cuts):
    """Outputs where each document stands; memory in a row for each."""
    for n, single in enumerate(singles):
        assert_same(array(packed.logits)[:, cuts[n] : cuts[n + 1]], single.logits)
        length = int(single.cache.lengths[0])
        assert int(packed.cache.lengths[n]) == length
        for mine, theirs in zip(packed.cache.layers, single.cache.layers, strict=True):
            if hasattr(mine, "state"):
                assert_same(mine.state[n], theirs.state[0])
            else:
                assert_same(mine.keys[n, :, :length], theirs.keys[0])
                assert_same(mine.values[n, :, :length], theirs.values[0])


@both
@given(lengths=documents, seed=integers(0, 99))
def test_packing_is_each_document_alone(side, lengths, seed):
    ids, cuts = prompts(MODEL.config, 1, sum(lengths), seed=seed), ends(lengths)
    packed = side.call(MODEL, ids, cu_seqlens=cuts, use_cache=True)
    assert_packed(side, packed, alone(side, MODEL, ids, cuts), cuts)


@both
@every_configuration
def test_packing_in_every_configuration(side, config):
    """Windows, shared experts, any heads, any slopes."""
    model, cuts = lively(config), np.array([0, 9, 10, 21])
    ids = prompts(config, 1, 21)
    packed = side.call(model, ids, cu_seqlens=cuts, use_cache=True)
    assert_packed(side, packed, alone(side, model, ids, cuts), cuts)


@both
@given(first=documents, more=lists(integers(1, 8), min_size=5, max_size=5))
def test_packed_documents_go_on(side, first, more):
    """More of every document, packed again, on the memory of the first call."""
    second = more[: len(first)]
    ids = [prompts(MODEL.config, 1, sum(lengths), seed=n) for n, lengths in enumerate((first, second))]
    cuts = ends(first), ends(second)
    cache = side.cache(MODEL.config, len(first))
    side.call(MODEL, ids[0], cu_seqlens=cuts[0], cache=cache)
    packed = side.call(MODEL, ids[1], cu_seqlens=cuts[1], cache=cache)
    singles = []
    for n in range(len(first)):
        text = side.cache(MODEL.config, 1)
        for tokens, cut in zip(ids, cuts):
            out = side.call(MODEL, tokens[:, cut[n] : cut[n + 1]], cache=text)
        singles.append(out)
    assert_packed(side, packed, singles, cuts[1])


@both
def test_packed_documents_go_on_as_a_batch(side):
    """The memory of a packed call is a batch of rows: what comes next may be padded instead."""
    ids, cuts = prompts(MODEL.config, 1, 12), np.array([0, 3, 4, 12])
    cache = side.cache(MODEL.config, 3)
    side.call(MODEL, ids, cu_seqlens=cuts, cache=cache)
    rows = [ids[0, a:b] for a, b in zip(cuts, cuts[1:])]
    padded, mask = np.full((3, 8), 9), np.zeros((3, 8), int)
    for n, row in enumerate(rows):
        padded[n, 8 - len(row) :], mask[n, 8 - len(row) :] = row, 1
    batch = side.cache(MODEL.config, 3)
    side.call(MODEL, padded, mask, cache=batch)
    assert_same_cache(cache, batch)
    assert_same(*(side.call(MODEL, ids[:, :6].reshape(3, 2), cache=c).logits for c in (cache, batch)))


@both
def test_one_document_is_no_packing(side):
    ids = prompts(MODEL.config, 1, 9)
    assert_same(side.call(MODEL, ids, cu_seqlens=np.array([0, 9])).logits, side.call(MODEL, ids).logits)


@both
def test_the_loss_of_packed_documents(side):
    """The mean over all documents' tokens but the firsts: no document is asked for the next one's beginning."""
    ids, cuts = prompts(MODEL.config, 1, 12), np.array([0, 3, 4, 12])
    got = side.call(MODEL, ids, cu_seqlens=cuts, labels=ids).loss
    first, last = (float(side.call(MODEL, text, labels=text).loss) for text in (ids[:, :3], ids[:, 4:]))
    assert_same(got, (2 * first + 7 * last) / (2 + 7))


@both
def test_packed_documents_are_classified_one_by_one(side):
    """A row of logits for each document, read at its last token."""
    model = lively(MODEL.config, "MiniMaxForSequenceClassification")
    ids, cuts = prompts(MODEL.config, 1, 12), np.array([0, 3, 4, 12])
    got = side.call(model, ids, cu_seqlens=cuts, labels=np.array([0, 2, 1]))
    want = [side.call(model, ids[:, a:b]).logits[0] for a, b in zip(cuts, cuts[1:])]
    assert_same(got.logits, np.stack(want))


@both
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ends_come_in_either_integer(side, dtype):
    """int32 is what kernels hand out."""
    ids, cuts = prompts(MODEL.config, 1, 12), np.array([0, 3, 4, 12])
    want = side.call(MODEL, ids, cu_seqlens=cuts, labels=ids)
    got = side.call(MODEL, ids, cu_seqlens=cuts.astype(dtype), labels=ids)
    np.testing.assert_array_equal(array(got.logits), array(want.logits))
    np.testing.assert_array_equal(array(got.loss), array(want.loss))
