"""However tokens are chosen, a row gets those that it would get alone, and both twins get the same ones."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from close import NUMPY, TORCH, array, assert_one_sentence, assert_same, assert_same_cache, both, lively, prompts, small
from hypothesis import given
from hypothesis.strategies import floats, integers, none
from minimax_numpy import MiniMaxConfig
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.generate import best, check_logits, sample

CONFIG = MiniMaxConfig.tiny(eos_token_id=None, block_size=4)
RELEASED = {"7:1": lively(CONFIG), "7:1 with a window": lively(replace(CONFIG, sliding_window=4))}
at_the_released_layout = pytest.mark.parametrize("model", RELEASED.values(), ids=RELEASED.keys())
SMALL = lively(small(LIGHTNING, SOFTMAX, eos_token_id=None))
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 5, "temperature": 0.7},
    "top k": {"do_sample": True, "seed": 6, "top_k": 7},
    "top p": {"do_sample": True, "seed": 7, "top_p": 0.6},
    "both": {"do_sample": True, "seed": 8, "top_k": 40, "top_p": 0.8, "temperature": 1.3},
    "beams": {"num_beams": 3},
    "beams, short texts favoured": {"num_beams": 4, "length_penalty": -1.0},
    "in pieces": {"prefill_chunk": 3},
    "several stops": {"eos_token_id": tuple(range(3, 60))},
    "beams with stops": {"num_beams": 3, "eos_token_id": tuple(range(3, 60))},
}


def generate(side, model, ids, mask=None, **options):
    out = side.model(model).generate(side.wrap(ids), side.wrap(mask), **options)
    return tuple(map(array, out)) if isinstance(out, tuple) else array(out)


def alone(options: dict, row: int) -> dict:
    """What a row of a batch is asked when it is alone: row r draws by seed + r."""
    return {**options, "seed": options["seed"] + row} if "seed" in options else options


@pytest.mark.parametrize("mode", MODES)
@at_the_released_layout
def test_a_padded_batch_is_each_row_alone(model, mode):
    """Eight rows of unequal length, padded on the left, right and within; each ends where it ends alone. Both twins."""
    lengths, T = [9, 1, 5, 7, 2, 9, 3, 6], 9
    mask = np.zeros((8, T), int)
    for row, n in enumerate(lengths):
        where = [slice(T - n, T), slice(0, n), np.linspace(0, T - 1, n).astype(int)][row % 3]
        mask[row, where] = 1
    ids = prompts(model.config, 8, T)
    options = {"max_new_tokens": 7, **MODES[mode]}
    got = generate(NUMPY, model, ids, mask, **options)
    np.testing.assert_array_equal(got[:, :T], ids)
    for row, n in enumerate(lengths):
        text = ids[row : row + 1, mask[row] == 1]
        want = generate(NUMPY, model, text, **alone(options, row))[0, n:]
        assert got[row, T : T + len(want)].tolist() == want.tolist()
        assert set(got[row, T + len(want) :]) <= {model.config.pad_token_id}
    assert generate(TORCH, model, ids, mask, **options).tolist() == got.tolist()


@both
@at_the_released_layout
def test_a_stream_is_the_whole(side, model):
    """Token by token, the same tokens; between two of them the cache is whole and the stream may be left."""
    ids, options = prompts(model.config, 2, 5), {"max_new_tokens": 8, "do_sample": True, "seed": 1}
    want, own = generate(side, model, ids, **options)[:, 5:], side.model(model)
    assert np.stack([array(t) for t in own.stream(side.wrap(ids), **options)], axis=1).tolist() == want.tolist()
    cache = side.cache(model.config, 2)
    stream = own.stream(side.wrap(ids), cache=cache, **options)
    first = [array(next(stream)) for _ in range(3)]
    stream.close()
    assert np.stack(first, axis=1).tolist() == want[:, :3].tolist()
    assert_same_cache(cache, side.call(model, np.concatenate([ids, want[:, :2]], axis=1), use_cache=True).cache)


@both
def test_a_stream_interrupted_within_a_call_is_refused_afterwards(side):
    """And a snapshot taken before it goes on as if it had not been."""
    ids, cache, own = prompts(CONFIG, 1, 5), side.cache(SMALL.config, 1), side.model(SMALL)
    side.call(SMALL, ids, cache=cache)
    moment, calls = cache.snapshot(), iter(range(99))

    def interrupted(*args, **options):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return right(*args, **options)

    right = side.package.ops.softmax_attention
    said = []
    with side.package.ops.using(softmax_attention=interrupted), pytest.raises(KeyboardInterrupt):
        said.extend(own.stream(side.wrap(ids[:, :1]), cache=cache, max_new_tokens=9))
    assert len(said) == 3
    with pytest.raises(ValueError, match="interrupted"):
        generate(side, SMALL, ids[:, :1], cache=cache)
    cache.restore(moment)
    whole = side.call(SMALL, np.concatenate([ids, ids[:, :1]], axis=1)).logits
    assert generate(side, SMALL, ids[:, :1], cache=cache, max_new_tokens=1)[0, 1] == array(whole)[0, -1].argmax()


# --- Drawing -------------------------------------------------------------------------------------------------------


@given(
    seed=integers(0, 999), top_k=none() | integers(1, 12), top_p=none() | floats(0.01, 1), temperature=floats(0.1, 3)
)
def test_drawing_is_its_definition(seed, top_k, top_p, temperature):
    """Sort, keep k, keep the fewest that reach p, walk along their sum until it passes u: written out for one row."""
    rng = np.random.default_rng(seed)
    logits, u = rng.integers(-4, 5, 10) * 0.7, rng.random()  # with equals among them
    likely = sorted(range(10), key=lambda i: (-logits[i], i))[:top_k]
    weights = [np.exp(logits[i] / temperature) for i in likely]
    weights = [w / sum(weights) for w in weights]
    if top_p is not None:
        kept = next((n for n in range(1, len(likely) + 1) if sum(weights[:n]) >= top_p * (1 - 1e-12)), len(likely))
        likely, weights = likely[:kept], weights[:kept]
    reached = np.cumsum(weights)
    want = likely[int(np.searchsorted(reached, u * reached[-1], side="right"))]
    assert sample(logits[None], np.array([u]), temperature, top_k, top_p)[0] == want


def test_the_largest_number_draws_the_last_token_that_may_be_drawn():
    """However near u is to 1, nothing lies beyond it."""
    logits = np.log(np.array([[0.7, 0.2, 0.1]])) + np.array([[3.3]])
    almost = np.array([np.nextafter(1, 0)])
    for top_p, last in ((None, 2), (0.8, 1), (0.5, 0)):
        assert sample(logits, almost, top_p=top_p)[0] == last


@pytest.mark.parametrize("temperature", [1e-300, 1e-320])
def test_a_temperature_next_to_none_is_greedy(temperature):
    """Logits divided by it are infinite, and still one of them is the largest."""
    logits = np.array([[1.0, 3.0, -2.0], [-5.0, -7.0, -6.0]])
    assert sample(logits, np.array([0.5, 0.999]), temperature).tolist() == [1, 0]


def test_those_that_reach_top_p_exactly_are_enough():
    """A half, a quarter and a quarter: the first reaches a half alone, two reach three quarters."""
    logits = np.log(np.array([[2.0, 1.0, 1.0]]))
    for top_p, last in ((0.5, 0), (0.75, 1), (0.76, 2)):
        assert sample(logits, np.array([0.999]), top_p=top_p).tolist() == [last]


def test_tokens_come_as_often_as_they_should():
    """20,000 draws: each frequency within five standard deviations of its probability."""
    p = np.array([0.5, 0.05, 0.25, 0.2])
    uniforms = np.random.default_rng(0).random(20_000)
    drawn = sample(np.repeat(np.log(p)[None], 20_000, axis=0), uniforms)
    found = np.bincount(drawn, minlength=4) / 20_000
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()


@both
def test_a_seed_is_a_text(side):
    """Twice the same, another seed another text, no seed another each time; rows of one prompt differ."""
    ids, options = np.repeat(prompts(CONFIG, 1, 4), 2, axis=0), {"do_sample": True, "max_new_tokens": 12}
    first = generate(side, SMALL, ids, seed=3, **options)
    assert first.tolist() == generate(side, SMALL, ids, seed=3, **options).tolist()
    assert first.tolist() != generate(side, SMALL, ids, seed=30, **options).tolist()
    assert generate(side, SMALL, ids, **options).tolist() != generate(side, SMALL, ids, **options).tolist()
    assert first[0].tolist() != first[1].tolist()


@both
def test_drawing_from_one_token_is_greedy(side):
    ids = prompts(CONFIG, 2, 4)
    want = generate(side, SMALL, ids, max_new_tokens=6).tolist()
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}):
        assert generate(side, SMALL, ids, max_new_tokens=6, do_sample=True, seed=0, **options).tolist() == want


@both
@pytest.mark.parametrize("mode", MODES)
def test_log_probabilities_are_the_models_own(side, mode):
    """Of the chosen tokens, as the whole text read at once has them, whatever they were drawn by; 0 at pads."""
    ids = prompts(CONFIG, 2, 4)
    options = {"max_new_tokens": 6, **MODES[mode]}
    got, logprobs = generate(side, SMALL, ids, output_logprobs=True, **options)
    assert got.tolist() == generate(side, SMALL, ids, **options).tolist()
    logits = array(side.call(SMALL, got).logits)[:, 3:-1]
    known = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = np.take_along_axis(known, got[:, 4:, None], axis=-1)[..., 0]
    ended = np.cumsum(np.isin(got[:, 4:], options.get("eos_token_id", ())), axis=1) - np.isin(
        got[:, 4:], options.get("eos_token_id", ())
    )
    assert_same(logprobs, np.where(ended > 0, 0, want))


# --- Beams ---------------------------------------------------------------------------------------------------------


def without_cache(model, ids, num_beams, length_penalty, stops, n):
    """The same search on whole texts, each read from its start at every step: no cache, no reordering."""
    going, ended = [((), 0.0)], []
    for length in range(1, n + 1):
        texts = np.array([[*ids, *text] for text, _ in going])
        logits = model(texts, logits_to_keep=1).logits[:, -1]
        known = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        options = [
            (score + known[b, token], (*text, token))
            for b, (text, score) in enumerate(going)
            for token in range(known.shape[1])
        ]
        options = sorted(options, key=lambda option: -option[0])[: (max(len(stops), 1) + 1) * num_beams]
        over = [len(text) == n or text[-1] in stops for _, text in options]
        ended += [(s / length**length_penalty, t) for (s, t), o in zip(options[:num_beams], over) if o]
        ended = sorted(ended, key=lambda option: -option[0])[:num_beams]
        going = [(t, s) for (s, t), o in zip(options, over) if not o][:num_beams]
        if not going or (len(ended) == num_beams and going[0][1] / length**length_penalty <= ended[-1][0]):
            break
    return list(ended[0][1])


@both
@at_the_released_layout
@pytest.mark.parametrize("stops", [(), (17,), tuple(range(3, 40))], ids=lambda stops: f"{len(stops)} stops")
def test_beams_with_a_cache_are_beams_without(side, model, stops):
    """The states and keys of every beam follow it."""
    ids = prompts(model.config, 2, 6)
    got = generate(side, model, ids, num_beams=3, length_penalty=0.8, eos_token_id=stops, max_new_tokens=7)[:, 6:]
    for row in range(2):
        want = without_cache(model, ids[row], 3, 0.8, stops, 7)
        assert got[row].tolist()[: len(want)] == want


@both
def test_enough_beams_find_the_best_text_of_all(side):
    """Seven tokens, three steps: no text of the 343 is likelier, and greedy misses it."""
    model = lively(small(LIGHTNING, SOFTMAX, vocab_size=7, eos_token_id=None), seed=1)
    ids = np.array([[3, 5, 4]])
    texts = np.array([[3, 5, 4, *text] for text in itertools.product(range(7), repeat=3)])
    logits = model(texts).logits[:, 2:5]
    known = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = np.take_along_axis(known, texts[:, 3:, None], axis=-1).sum(axis=(1, 2))
    got = generate(side, model, ids, num_beams=49, max_new_tokens=3)
    assert got.tolist() == texts[[scores.argmax()]].tolist()
    assert got.tolist() != generate(side, model, ids, max_new_tokens=3).tolist()


@both
def test_one_beam_is_greedy_and_the_cache_given_sees_the_prompt(side):
    ids, cache = prompts(CONFIG, 2, 5), side.cache(SMALL.config, 2)
    greedy = generate(side, SMALL, ids, max_new_tokens=5)
    assert generate(side, SMALL, ids, num_beams=1, max_new_tokens=5).tolist() == greedy.tolist()
    beams = generate(side, SMALL, ids, num_beams=2, max_new_tokens=5, cache=cache)
    assert beams.tolist() == generate(side, SMALL, ids, num_beams=2, max_new_tokens=5).tolist()
    assert_same_cache(cache, side.call(SMALL, ids, use_cache=True).cache)


@given(seed=integers(0, 999), count=integers(1, 12))
def test_the_best_are_sorted_and_the_lowest_of_equals_come_first(seed, count):
    scores = np.random.default_rng(seed).integers(0, 4, 9).astype(float)
    assert best(scores, count).tolist() == sorted(range(9), key=lambda i: (-scores[i], i))[:count]


# --- Long prompts, and what makes no sense --------------------------------------------------------------------------


@both
def test_a_prompt_in_pieces_bounds_what_is_read_at_once(side):
    """No call sees more columns than asked for, progress is told after each, and the cache is the same."""
    own, seen, told = side.model(SMALL), [], []
    ids, mask = prompts(CONFIG, 2, 17), np.array([[1] * 17, [0] * 12 + [1] * 5])
    show = own.show
    own.__dict__["show"] = lambda ids, mask, cache: (seen.append(ids.shape[1]), show(ids, mask, cache))[1]
    try:
        cache = side.cache(SMALL.config, 2)
        options = {"max_new_tokens": 1, "prefill_chunk": 5, "cache": cache, "progress": lambda *x: told.append(x)}
        own.generate(side.wrap(ids), side.wrap(mask), **options)
    finally:
        del own.__dict__["show"]
    assert seen == [5, 5, 5, 2] and told == [(5, 17), (10, 17), (15, 17), (17, 17)]
    assert_same_cache(cache, side.call(SMALL, ids, mask, use_cache=True).cache)


@both
def test_a_text_longer_than_the_model_was_made_for_is_told(side):
    """Cached tokens and new ones count; the text goes on."""
    model = lively(replace(SMALL.config, max_position_embeddings=10))
    cache = side.cache(model.config, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(side, model, prompts(CONFIG, 1, 5), cache=cache, max_new_tokens=3)
    with pytest.warns(UserWarning, match="11 tokens are more than max_position_embeddings") as told:
        got = generate(side, model, prompts(CONFIG, 1, 2), cache=cache, max_new_tokens=2)
    assert got.shape == (1, 4)
    assert_one_sentence(told[0].message)


@both
@pytest.mark.parametrize(
    "options, told",
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "do_sample": True}, "not both"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": 1e6}, "length_penalty"),
        ({"eos_token_id": 2.7}, "eos_token_id is 2.7"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5, "do_sample": True}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(side, options, told):
    """Refused before the model is shown anything; a stream refuses when it is asked for, not at its first token."""
    cache = side.cache(SMALL.config, 1)
    with pytest.raises(ValueError) as refused:
        generate(side, SMALL, prompts(CONFIG, 1, 3), cache=cache, **options)
    assert_one_sentence(refused.value, told)
    if not {"num_beams", "length_penalty"} & options.keys():
        with pytest.raises(ValueError):
            side.model(SMALL).stream(side.wrap(prompts(CONFIG, 1, 3)), cache=cache, **options)
    assert array(cache.lengths).tolist() == [0] and cache.nbytes == 0


@both
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_a_cache_of_another_batch_is_refused(side, options):
    with pytest.raises(ValueError) as refused:
        generate(side, SMALL, prompts(CONFIG, 2, 3), cache=side.cache(SMALL.config, 3), **options)
    assert_one_sentence(refused.value, "3 rows but this call has 2")


@both
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 0}, {"num_beams": 2}], ids=str)
def test_logits_that_are_no_numbers_choose_nothing(side, options):
    model = lively(SMALL.config)
    model.weights["lm_head.weight"] = model.weights["lm_head.weight"] * np.nan
    with pytest.raises(ValueError) as refused:
        generate(side, model, prompts(CONFIG, 2, 3), **options)
    assert_one_sentence(refused.value, "NaN")


@pytest.mark.parametrize("row", [[np.inf, 1.0], [np.inf, np.inf], [-np.inf, -np.inf], [np.nan, 1.0]], ids=str)
def test_logits_too_large_for_their_type_choose_nothing(row):
    """Of two that overflowed nobody knows the likelier. A single token without a chance is an honest number."""
    with pytest.raises(ValueError) as refused:
        check_logits(np.array([[0.0, 1.0], row]))
    assert_one_sentence(refused.value, "row 1")
    honest = np.array([[-np.inf, 1.0]])
    assert check_logits(honest) is honest
