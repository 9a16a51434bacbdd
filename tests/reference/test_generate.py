"""Generation: each row gets the tokens it would get alone, and ends where it should. In both packages."""

from dataclasses import replace

import numpy as np
import pytest
from close import NUMPY, assert_one_sentence, both, lively, prompts, small
from minimax_numpy.config import LIGHTNING, SOFTMAX

CONFIG = small(LIGHTNING, SOFTMAX, eos_token_id=None)
MODEL = lively(CONFIG)


def generate(side, ids, mask=None, model=MODEL, **options):
    return np.asarray(side.model(model).generate(side.wrap(ids), side.wrap(mask), **options))


@both
def test_each_token_is_the_likeliest(side):
    """As if the whole text were read again for every token, without a cache."""
    ids = prompts(CONFIG, 2, 6)
    got = generate(side, ids, max_new_tokens=8)
    want = ids
    for _ in range(8):
        want = np.concatenate([want, MODEL(want).logits[:, -1:].argmax(-1)], axis=1)
    assert got.tolist() == want.tolist()


@both
def test_padding_changes_no_row(side):
    """Padded left, right, or with holes, a row goes on as it does alone; the prompts come back as given."""
    texts = [prompts(CONFIG, n, seed=n) for n in (7, 3, 4, 2)]
    mask = np.array([[1] * 7, [0] * 4 + [1] * 3, [1] * 4 + [0] * 3, [0, 1, 0, 0, 1, 0, 0]])
    ids = np.full(mask.shape, 9)
    for row, text in enumerate(texts):
        ids[row, mask[row] == 1] = text
    got = generate(side, ids, mask, max_new_tokens=6)
    np.testing.assert_array_equal(got[:, :7], ids)
    for row, text in enumerate(texts):
        assert got[row, 7:].tolist() == generate(side, text[None], max_new_tokens=6)[0, len(text) :].tolist()


@both
def test_a_row_ends_at_its_stop_and_pads_follow(side):
    """The stop itself is kept; the other rows go on, and the batch ends when all have. The pads are shown to nobody."""
    ids = prompts(CONFIG, 3, 5)
    free = generate(side, ids, max_new_tokens=9)[:, 5:]
    stop = int(free[1, 3])
    firsts = [row.tolist().index(stop) if stop in row else 8 for row in free]
    cache = side.cache(CONFIG, 3)
    got = generate(side, ids, max_new_tokens=9, eos_token_id=stop, cache=cache)[:, 5:]
    assert got.shape[1] == max(firsts) + 1
    for row, first in enumerate(firsts):
        assert got[row, : first + 1].tolist() == free[row, : first + 1].tolist()
        assert set(got[row, first + 1 :]) <= {CONFIG.pad_token_id}
    assert np.asarray(cache.lengths).tolist() == [5 + first for first in firsts]


@both
def test_several_stops_and_the_configurations_own(side):
    """Any of several stops ends a row; where none is given, the configuration's count."""
    ids = prompts(CONFIG, 1, 5)
    free = generate(side, ids, max_new_tokens=9)[0, 5:].tolist()
    stops = (free[6], free[4])
    end = min(free.index(stop) for stop in stops)
    assert generate(side, ids, max_new_tokens=9, eos_token_id=stops)[0, 5:].tolist() == free[: end + 1]
    own = lively(replace(CONFIG, eos_token_id=stops))
    assert generate(side, ids, model=own, max_new_tokens=9)[0, 5:].tolist() == free[: end + 1]


@both
def test_without_a_pad_token_the_stop_pads(side):
    model = lively(replace(CONFIG, pad_token_id=None))
    ids = prompts(CONFIG, 3, 5)
    free = generate(side, ids, model=model, max_new_tokens=9)[:, 5:]
    stop = int(free[0, 0])
    got = generate(side, ids, model=model, max_new_tokens=9, eos_token_id=stop)[0, 5:]
    assert set(got.tolist()) == {stop}


@both
def test_a_stop_outside_the_vocabulary_is_no_pad(side):
    """The first stop that the model knows pads in its place."""
    model = lively(replace(CONFIG, pad_token_id=None))
    ids = prompts(CONFIG, 3, 5)
    stop = int(generate(side, ids, model=model, max_new_tokens=1)[0, 5])
    got = generate(side, ids, model=model, max_new_tokens=9, eos_token_id=(200_020, stop))
    assert set(got[0, 5:].tolist()) == {stop}


@both
def test_a_cache_goes_on_where_it_stopped(side):
    """Ten tokens at once are five and then five: the cache has seen all but the last token, which is shown next."""
    ids = prompts(CONFIG, 2, 6)
    at_once = generate(side, ids, max_new_tokens=10)
    cache = side.cache(CONFIG, 2)
    first = generate(side, ids, cache=cache, max_new_tokens=5)
    assert np.asarray(cache.lengths).tolist() == [10, 10]
    second = generate(side, first[:, -1:], cache=cache, max_new_tokens=5)
    assert np.concatenate([first, second[:, 1:]], axis=1).tolist() == at_once.tolist()


@both
def test_a_second_turn_after_padded_prompts(side):
    """Rows of different lengths are given more text, padded again, on the same cache; each goes on as alone."""
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1]])
    ids, more = prompts(CONFIG, 2, 4), prompts(CONFIG, 2, 3, seed=1)
    more_mask = np.array([[1, 0, 0], [1, 1, 1]])
    cache = side.cache(CONFIG, 2)
    first = generate(side, ids, mask, cache=cache, max_new_tokens=3)
    # the last token of the first turn has not been shown yet
    shown, shown_mask = np.concatenate([first[:, -1:], more], 1), np.concatenate([np.ones((2, 1), int), more_mask], 1)
    second = generate(side, shown, shown_mask, cache=cache, max_new_tokens=4)[:, -4:]
    for row in range(2):
        text = np.concatenate([ids[row, mask[row] == 1], first[row, 4:], more[row, more_mask[row] == 1]])
        assert second[row].tolist() == generate(side, text[None], max_new_tokens=4)[0, -4:].tolist()


@both
def test_no_new_tokens_is_the_prompt(side):
    ids = prompts(CONFIG, 2, 3)
    assert generate(side, ids, max_new_tokens=0).tolist() == ids.tolist()


@both
def test_among_equals_the_lowest_id_wins(side):
    model = lively(CONFIG)
    model.weights["lm_head.weight"] = np.zeros((256, 32))
    assert generate(side, prompts(CONFIG, 1, 3), model=model, max_new_tokens=3)[0, 3:].tolist() == [0, 0, 0]


def test_ids_keep_their_type():
    """int32 in, int32 out: what came in is what goes on."""
    ids = prompts(CONFIG, 1, 3).astype(np.int32)
    assert generate(NUMPY, ids, max_new_tokens=2).dtype == np.int32


@both
def test_ids_of_a_type_too_narrow_are_refused(side):
    """A token of 300 would come back as 44 in uint8. Where the whole vocabulary has room, any type will do."""
    wide, narrow = lively(replace(CONFIG, vocab_size=257)), prompts(CONFIG, 1, 3).astype(np.uint8)
    with pytest.raises(ValueError) as refused:
        generate(side, narrow, model=wide)
    assert_one_sentence(refused.value, "uint8")
    assert (
        generate(side, narrow, max_new_tokens=5).tolist()
        == generate(side, narrow.astype(int), max_new_tokens=5).tolist()
    )


@pytest.mark.parametrize("window", [1, 3])
@both
def test_a_window_slides_through_generation(side, window):
    """A sliding window in decode is the window of one long call, past its own width."""
    model = lively(replace(CONFIG, sliding_window=window))
    ids = prompts(CONFIG, 1, 5)
    got = generate(side, ids, model=model, max_new_tokens=8)
    for t in range(5, 13):
        assert got[0, t] == model(got[:, :t]).logits[0, -1].argmax()
