"""Where transformers' MiniMax differs from MiniMax-Text-01, at the released layout: each claim once, asked of all three.

A test here is a claim: a function from a model to an error, and what the error may be. Both twins must keep it.
transformers must fail it in the release that was measured, so that the list stays true; what another release does is
written down by docs/proof/make_defects.py and is otherwise its own affair.

All three read the same folder of weights: seven lightning layers, then softmax; slopes and rotary as transformers has
them, unless the claim is about these.
"""

import json
import re
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from close import NUMPY, ROUNDING, SAME, TORCH, Side, array, error, lively, prompts
from minimax_numpy import MiniMaxConfig
from minimax_numpy.config import HYBRID, LIGHTNING, SOFTMAX
from minimax_numpy.generate import Generates
from transformers.models.minimax.modeling_minimax import MiniMaxCache

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

MEASURED = transformers.__version__.startswith("5.23.")
"""Whether this is the release that the list is about."""
PAGE = Path(__file__).parents[2] / "docs" / "proof" / "defects-of-transformers.md"
NEW = 16  # tokens generated
NO_STOP = 999  # outside the vocabulary

# --- Three models under one set of names -----------------------------------------------------------------------------


class Text:
    """In place of a cache: all that was read."""

    def __init__(self, rows: int):
        self.ids, self.mask = np.zeros((rows, 0), int), np.zeros((rows, 0), bool)

    @property
    def lengths(self) -> np.ndarray:
        return self.mask.sum(axis=1)

    def fork(self) -> "Text":
        other = Text(0)
        other.ids, other.mask = self.ids, self.mask
        return other

    def reorder(self, rows) -> None:
        self.ids, self.mask = self.ids[rows], self.mask[rows]


class Twin(Generates):
    """One of our packages. As a `Generates` it remembers nothing, and reads the whole text again for each token."""

    def __init__(self, side: Side, folder: Path, dtype: str, **options):
        kind = getattr(torch if side.is_torch else np, dtype)
        self.side, self.model = side, side.package.MiniMaxForCausalLM.from_pretrained(folder, kind, **options)
        self.config = self.model.config

    def cache(self, rows: int = 1):
        return self.side.cache(self.config, rows)

    def logits(self, ids, mask=None, positions=None, cache=None) -> np.ndarray:
        return array(self.side.ask(self.model, ids, mask, position_ids=positions, cache=cache).logits)

    def packed(self, *texts) -> np.ndarray:
        """Logits of several texts in one row."""
        ends = np.cumsum([0, *(text.shape[1] for text in texts)])
        return array(self.side.ask(self.model, np.concatenate(texts, axis=1), cu_seqlens=ends).logits)

    def in_training(self, ids) -> np.ndarray:
        self.model.train()
        return self.logits(ids)

    def generate(self, ids, mask=None, cache=None, **options) -> np.ndarray:
        """New tokens. With a cache, ``ids`` are the whole conversation."""
        unseen = self.side.wrap(ids[:, int(cache.lengths[0]) :] if cache else ids)
        options = {"max_new_tokens": NEW, "eos_token_id": NO_STOP, "cache": cache, **options}
        return array(self.model.generate(unseen, self.side.wrap(mask), **options))[:, unseen.shape[1] :]

    def in_pieces(self, ids, cache, columns: int) -> np.ndarray:
        return self.generate(ids, cache=cache, prefill_chunk=columns)

    def beams(self, ids, remembering: bool) -> np.ndarray:
        if remembering:
            return self.generate(ids, num_beams=4)
        return Generates.generate(self, ids, max_new_tokens=NEW, eos_token_id=NO_STOP, num_beams=4)[:, ids.shape[1] :]

    def empty_cache(self, rows: int) -> Text:
        return Text(rows)

    def show(self, ids, mask, cache: Text) -> np.ndarray:
        cache.ids, cache.mask = (np.concatenate(x, axis=1) for x in ((cache.ids, ids), (cache.mask, mask)))
        return self.logits(cache.ids, cache.mask)[:, -1]

    def as_given(self, x):
        return x

    def choose(self, cache, rows) -> None:
        cache.reorder(rows)

    def mark(self, cache):
        return cache.snapshot()

    def crop(self, cache, length: int, read: int) -> None:
        cache.crop(length)

    def empty(self, cache, start) -> None:
        cache.restore(start)

    def numbers_in_few_bits(self) -> int:
        """How many of the weights are held in 8 bits or fewer."""
        return sum(int(np.prod(x.shape)) for x in self.model.weights.values() if hasattr(x, "dequantize"))


class Peer:
    """transformers."""

    def __init__(self, folder: Path, dtype: str, experts_implementation: str | None = "eager", **options):
        options |= {"dtype": getattr(torch, dtype), "experts_implementation": experts_implementation}
        self.model = transformers.MiniMaxForCausalLM.from_pretrained(folder, **options).eval()
        self.config = MiniMaxConfig.from_pretrained(folder)

    def cache(self, rows: int = 1):
        return MiniMaxCache()

    def logits(self, ids, mask=None, positions=None, cache=None) -> np.ndarray:
        arrays = (None if x is None else torch.tensor(x) for x in (ids, mask, positions))
        with torch.no_grad():
            return array(self.model(*arrays, past_key_values=cache, use_cache=cache is not None).logits)

    def packed(self, *texts) -> np.ndarray:
        """Positions that start again are how transformers is told of packing."""
        positions = np.concatenate([np.arange(text.shape[1]) for text in texts])[None]
        return self.logits(np.concatenate(texts, axis=1), positions=positions)

    def in_training(self, ids) -> np.ndarray:
        self.model.train()
        return self.logits(ids)

    def generate(self, ids, mask=None, cache=None, **options) -> np.ndarray:
        mask = torch.tensor(np.ones_like(ids) if mask is None else mask)
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": NO_STOP, "pad_token_id": 0, **options}
        options |= {} if cache is None else {"past_key_values": cache}
        return array(self.model.generate(torch.tensor(ids), attention_mask=mask, **options))[:, ids.shape[1] :]

    def in_pieces(self, ids, cache, columns: int) -> np.ndarray:
        return self.generate(ids, cache=cache, prefill_chunk_size=columns)

    def beams(self, ids, remembering: bool) -> np.ndarray:
        return self.generate(ids, num_beams=4, use_cache=remembering)

    def choose(self, cache, rows) -> None:
        cache.batch_select_indices(torch.tensor(rows))

    def mark(self, cache) -> None:
        return None  # nothing of the kind

    def crop(self, cache, length: int, read: int) -> None:
        cache.crop(length - read)  # it is told how many to take away

    def empty(self, cache, start) -> None:
        cache.reset()

    def numbers_in_few_bits(self) -> int:
        return sum(2 * x.numel() for x in self.model.parameters() if x.dtype == torch.uint8)  # two to a byte


@dataclass(frozen=True)
class Maker:
    """Makes models of one of the three: each call writes a folder and lets the system read it."""

    system: Side | ModuleType
    layer_types: tuple[str, ...] = HYBRID

    def __call__(self, dtype: str = "float32", edit=lambda weights: None, options=None, **changes) -> Twin | Peer:
        """``edit`` alters the weights before they are written, ``options`` go to from_pretrained."""
        like_theirs = {"slope_rule": "transformers", "rotary_dim": 16, "layer_types": self.layer_types}
        reference = lively(MiniMaxConfig.tiny(**{**like_theirs, **changes}), dtype=np.float32)
        edit(reference.weights)
        with TemporaryDirectory() as folder:
            reference.save_pretrained(folder)
            if self.system is transformers:
                return Peer(Path(folder), dtype, **options or {})
            return Twin(self.system, Path(folder), dtype, **options or {})

    @property
    def other(self) -> "Maker":
        """Who may judge this one: one of the twins, and not itself."""
        return Maker(TORCH if self.system is NUMPY else NUMPY)


# --- Claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A measure, what it may come to, and what is said of it on the page."""

    number: int
    differs: str  # what transformers does
    unit: str  # what the error is
    within: float
    raises: str | None  # how transformers refuses, if it does
    sides: tuple[Side, ...]
    measure: Callable[[Maker], float]

    @cache  # noqa: B019  a handful, and the page asks again
    def found(self, make: Maker) -> float | str:
        """The error; of transformers also the name of what it raises, if that is what it is known to raise."""
        try:
            return float(self.measure(make))
        except Exception as refused:
            told = f"{type(refused).__name__}: {refused}"
            known = self.raises is not None and told.startswith(self.raises)
            if make.system is not transformers or (MEASURED and not known):
                raise
            return type(refused).__name__

    def keeps(self, found: float | str) -> bool:
        return isinstance(found, float) and found <= self.within


CLAIMS: list[Claim] = []
RELATIVE, TOKENS = "relative error of logits", "tokens that differ"


def claim(number: int, differs: str, unit: str, within: float = 0.0, *, raises=None, sides=(NUMPY, TORCH)):
    """Make a measure a test: both twins keep to it, and transformers, as measured, does not."""

    def register(measure: Callable[[Maker], float]):
        asked = Claim(number, differs, unit, within, raises, sides, measure)
        CLAIMS.append(asked)

        @pytest.mark.parametrize("system", [*sides, transformers], ids=lambda system: getattr(system, "__name__", None))
        def test(system):
            found = asked.found(Maker(system))
            if system is not transformers:
                assert asked.keeps(found), f"{unit} {found}, allowed {within}"
            elif MEASURED:
                assert not asked.keeps(found), f"{unit} {found}: transformers is right, and the list is not"

        test.__name__, test.__doc__ = measure.__name__, measure.__doc__
        return test

    return register


def differing(got, want) -> float:
    """The share of tokens that are not the same."""
    return float((got != want).mean())


@claim(1, "the whole of each head is rotated, whatever `rotary_dim` says", RELATIVE, ROUNDING)
def test_channels_beyond_rotary_dim_know_no_position(make):
    """With the rotated half of the queries set to 0, nothing is left that positions could turn."""

    def silence(weights):
        weights["model.layers.7.self_attn.q_proj.weight"].reshape(4, 16, -1)[:, :8] = 0

    model = make(edit=silence, rotary_dim=8)
    ids, positions = prompts(model.config, 1, 21), np.arange(21)[None]
    return error(model.logits(ids, positions=3 * positions), model.logits(ids, positions=positions))


@claim(2, "a token that is decoded without `position_ids` stands at position 0", RELATIVE, ROUNDING)
def test_a_token_stands_after_those_in_the_cache(make):
    """Token by token, without being told where: as in one call."""
    model = make()
    ids, cache = prompts(model.config, 1, 21), model.cache()
    model.logits(ids[:, :12], cache=cache)
    got = [model.logits(ids[:, t : t + 1], cache=cache) for t in range(12, 21)]
    return error(np.concatenate(got, axis=1), model.logits(ids)[:, 12:])


def several_onto_a_cache(make, **options) -> float:
    """A text in two calls, told where the second starts, against one call."""
    model = make(options=options)
    ids, cache = prompts(model.config, 1, 21), model.cache()
    model.logits(ids[:, :12], cache=cache)
    got = model.logits(ids[:, 12:], positions=np.arange(12, 21)[None], cache=cache)
    return error(got, model.logits(ids)[:, 12:])


@claim(3, "several tokens onto a cache are masked as if it were empty", RELATIVE, ROUNDING)
def test_several_tokens_follow_a_cache(make):
    """A text in two calls is the text in one, by the attention that is chosen by default."""
    return several_onto_a_cache(make)


@claim(
    3,
    "… and refused by eager attention",
    RELATIVE,
    ROUNDING,
    raises="RuntimeError: The size of tensor",
    sides=(TORCH,),
)
def test_several_tokens_follow_a_cache_in_eager_attention(make):
    """The same, with the equation written out."""
    return several_onto_a_cache(make, attn_implementation="eager")


@claim(4, "in a batch padded on the left, padded rows generate other tokens than alone", TOKENS)
def test_a_padded_row_generates_what_it_does_alone(make):
    """Greedy tokens of four padded rows, with a cache."""
    model = make()
    ids, padding = prompts(model.config, 4, 12), (1, 3, 6, 9)
    got = model.generate(ids, np.arange(12) >= np.array(padding)[:, None])
    return differing(got, np.concatenate([model.generate(ids[r : r + 1, n:]) for r, n in enumerate(padding)]))


@claim(5, "the sliding window is forgotten in decode", TOKENS)
def test_a_window_slides_in_decode(make):
    """Greedy tokens past the window's width, against reading the whole text for each."""
    model = make(sliding_window=5)
    ids = want = prompts(model.config, 4, 9)
    for _ in range(NEW):
        want = np.concatenate([want, model.logits(want)[:, -1:].argmax(axis=-1)], axis=1)
    return differing(model.generate(ids), want[:, 9:])


@claim(6, "beams change places in the keys, not in the states of lightning layers", TOKENS)
def test_beams_remember_their_own_past(make):
    """The same texts are found with a cache as without one."""
    model = make()
    ids = prompts(model.config, 4, 9)
    return differing(model.beams(ids, remembering=True), model.beams(ids, remembering=False))


@claim(7, "rows of a cache cannot be chosen or repeated", RELATIVE, ROUNDING, raises="IndexError: list index out of range")
def test_rows_of_a_cache_can_be_chosen(make):
    """One left out, one taken twice: each goes on as it would have."""
    model = make()
    ids, rows, cache = prompts(model.config, 3, 9), [2, 0, 0], model.cache(3)
    model.logits(ids[:, :8], cache=cache)
    model.choose(cache, rows)
    got = model.logits(ids[rows, 8:], positions=np.full((3, 1), 8), cache=cache)
    return error(got, model.logits(ids)[rows, 8:])


@claim(8, "a second turn on the cache of the first goes astray", TOKENS)
def test_a_second_turn_goes_on_from_the_first(make):
    """A conversation whose beginning is in the cache, against the same without a cache."""
    model = make()
    ids, more, cache = prompts(model.config, 4, 9), prompts(model.config, 4, 5, seed=1), model.cache(4)
    talk = np.concatenate([ids, model.generate(ids, cache=cache), more], axis=1)
    return differing(model.generate(talk, cache=cache), model.generate(talk))


@claim(
    9,
    "in bfloat16 the state, its slopes and its decay are bfloat16, and errors pile up in decode",
    "error of decoded logits, in errors of a prefill",
    2.0,
    sides=(TORCH,),  # NumPy has no bfloat16
)
def test_half_precision_leaves_the_state_alone(make):
    """The last 64 of 256 tokens, decoded one by one: no more than twice as wrong as read at once.

    All experts are chosen, so that none can be another one's by rounding.
    """
    all_chosen = {"num_local_experts": 2, "num_experts_per_tok": 2}
    model, judge = make("bfloat16", **all_chosen), make.other("float64", **all_chosen)
    ids, cache = prompts(model.config, 1, 256), model.cache()
    positions = np.arange(256)[:, None, None]
    decoded = [model.logits(ids[:, t : t + 1], positions=positions[t], cache=cache)[:, 0] for t in range(256)]
    truth, at_once = judge.logits(ids)[0, -64:], model.logits(ids)[0, -64:]
    return error(np.concatenate(decoded[-64:]), truth) / error(at_once, truth)


@claim(10, "padding on the right decays the state", RELATIVE, ROUNDING)
def test_padding_on_the_right_leaves_the_state_alone(make):
    """Eight pads after a prompt, then a token: its logits are those without the pads.

    Softmax attention is silenced, so that the states alone can differ.
    """

    def silence(weights):
        weights["model.layers.7.self_attn.o_proj.weight"][:] = 0

    model = make(edit=silence)
    ids, pads, cache = prompts(model.config, 1, 21), np.zeros((1, 8), int), model.cache()
    model.logits(np.concatenate([ids[:, :-1], pads], axis=1), np.arange(28)[None] < 20, cache=cache)
    got = model.logits(ids[:, -1:], positions=np.array([[20]]), cache=cache)
    return error(got, model.logits(ids)[:, -1:])


@claim(11, "holes in a mask decay the state", RELATIVE, ROUNDING)
def test_holes_in_a_mask_are_not_there(make):
    """Tokens left out by the mask, positions counted without them: the text without them."""
    model = make()
    ids, real = prompts(model.config, 1, 21), np.ones((1, 21), bool)
    real[0, [3, 4, 5, 9, 14, 15]] = False
    got = model.logits(ids, real, positions=np.maximum(real.cumsum(axis=1) - 1, 0))
    return error(got[real], model.logits(ids[real][None])[0])


@claim(11, "packed documents see each other in lightning layers", RELATIVE, ROUNDING)
def test_packed_documents_do_not_see_each_other(make):
    """Two in a row are each of them alone."""
    model = make()
    texts = prompts(model.config, 1, 12), prompts(model.config, 1, 9, seed=1)
    return error(model.packed(*texts), np.concatenate([model.logits(text) for text in texts], axis=1))


@claim(
    12,
    "in training, the router's jitter multiplies the residual and the experts' input, too",
    RELATIVE,
    ROUNDING,
    sides=(TORCH,),  # NumPy does not train
)
def test_jitter_is_the_routers_alone(make):
    """A router of zeros chooses the same experts whatever it is shown: jitter then changes nothing."""

    def blind(weights):
        for i in range(8):
            weights[f"model.layers.{i}.mlp.gate.weight"][:] = 0

    model = make(edit=blind, router_jitter_noise=0.1)
    ids = prompts(model.config, 1, 21)
    want = model.logits(ids)
    return error(model.in_training(ids), want)


@claim(13, "float64 passes through float32 in norms, softmax, rotary and router", RELATIVE, SAME)
def test_float64_is_float64(make):
    """Judged by the other twin in float64; with eager experts."""
    ids = prompts(MiniMaxConfig.tiny(), 1, 21)
    return error(make("float64").logits(ids), make.other("float64").logits(ids))


@claim(
    13,
    "… and needs eager experts: the default refuses it",
    RELATIVE,
    ROUNDING,
    raises="RuntimeError: Expected mat_a to be Float32, BFloat16 or Float16 matrix",
)
def test_float64_runs_by_default(make):
    """Loaded without an option, it answers; rounding apart, as in float32."""
    ids = prompts(MiniMaxConfig.tiny(), 1, 21)
    options = {"experts_implementation": None} if make.system is transformers else {}
    return error(make("float64", options=options).logits(ids), make.other().logits(ids))


@claim(
    14,
    "a cache cannot be cropped, so a wrong guess cannot be taken back",
    RELATIVE,
    ROUNDING,
    raises="RuntimeError: MiniMaxCache does not support `crop`",
)
def test_a_cache_goes_back(make):
    """To a length at which it was marked, with other tokens after it."""
    model = make()
    ids, cache = prompts(model.config, 1, 13), model.cache()
    model.logits(ids[:, :12], cache=cache)
    mark = model.mark(cache)
    model.logits(prompts(model.config, 1, 1, seed=1), positions=np.array([[12]]), cache=cache)
    model.crop(cache, 12, 13)
    del mark
    got = model.logits(ids[:, 12:], positions=np.array([[12]]), cache=cache)
    return error(got, model.logits(ids)[:, 12:])


@claim(14, "`reset()` of a cache leaves the states", RELATIVE, ROUNDING)
def test_a_cache_can_be_emptied(make):
    """Another text on an emptied cache: nothing of the first is left."""
    model = make()
    cache = model.cache()
    start = model.mark(cache)
    model.logits(prompts(model.config, 1, 21), cache=cache)
    model.empty(cache, start)
    ids = prompts(model.config, 1, 21, seed=1)
    return error(model.logits(ids, positions=np.arange(21)[None], cache=cache), model.logits(ids))


@claim(14, "a prompt read in pieces (`prefill_chunk_size`, onto a cache of its own) is another prompt", TOKENS)
def test_a_prompt_can_be_read_in_pieces(make):
    """Four columns at a time, onto an empty cache: the same tokens."""
    model = make()
    ids = prompts(model.config, 4, 9)
    return differing(model.in_pieces(ids, model.cache(4), 4), model.generate(ids))


# --- The list itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [c.measure for c in CLAIMS if c.number in (2, 3, 4, 5, 7, 8)], ids=lambda m: m.__name__)
def test_with_a_softmax_layer_first_these_do_not_appear(measure):
    """They come from taking the cache's length from layer 0; so the measures can be passed by transformers, too."""
    asked = next(c for c in CLAIMS if c.measure is measure)
    make = Maker(transformers, (SOFTMAX, *[LIGHTNING] * 6, SOFTMAX))
    assert not MEASURED or asked.keeps(asked.found(make))
