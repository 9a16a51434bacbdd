"""Where transformers' MiniMax differs from MiniMax-Text-01, at the released layout: each claim once, for all three.

A test here is a claim: a function from a model to an error, and what the error may be. Both twins must keep it.
transformers must fail it in the release that was measured, so that the list stays true; what another release does is
written down by docs/proof/make_defects.py and is otherwise its own affair.

All three read the same folder of weights: seven lightning layers, then softmax; slopes and rotary as transformers has
them, unless the claim is about these.
"""

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

    def with_guesses(self, ids) -> np.ndarray:
        """Show what followed last time, keep what was right of it, and take the rest back."""
        text, cache = ids, self.cache()
        self.logits(ids[:, :-1], cache=cache)
        while text.shape[1] < ids.shape[1] + NEW:
            before = np.flatnonzero(text[0, :-1] == text[0, -1])
            start = before[-1] + 1 if len(before) else 0
            shown = np.concatenate([text[:, -1:], text[:, start : start + 3]], axis=1)
            mark = cache.snapshot()
            likeliest = self.logits(shown, cache=cache).argmax(axis=-1)
            right = int((shown[0, 1:] == likeliest[0, :-1]).cumprod().sum())
            cache.restore(mark)
            self.logits(shown[:, : right + 1], cache=cache)
            text = np.concatenate([text, likeliest[:, : right + 1]], axis=1)
        return text[:, ids.shape[1] :][:, :NEW]

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

    def with_guesses(self, ids) -> np.ndarray:
        return self.generate(ids, cache=self.cache(), prompt_lookup_num_tokens=3)

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

    number: int  # several claims may have one
    differs: str  # what transformers does, in words
    unit: str  # of the error
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
LOGITS, TOKENS, WEIGHTS = "logits", "tokens", "weights"  # relative error, share that differs, share left wide


def name_of(system: Side | ModuleType) -> str:
    return "transformers" if system is transformers else repr(system)


def claim(number: int, differs: str, unit: str, within: float = 0.0, *, raises=None, sides=(NUMPY, TORCH)):
    """Make a measure a test: both twins keep to it, and transformers, as measured, does not."""

    def register(measure: Callable[[Maker], float]):
        asked = Claim(number, differs, unit, within, raises, sides, measure)
        CLAIMS.append(asked)

        @pytest.mark.parametrize("system", [*sides, transformers], ids=name_of)
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


@claim(1, "`rotary_dim` is not read: the whole of each head is rotated", LOGITS, ROUNDING)
def test_channels_beyond_rotary_dim_know_no_position(make):
    """With the rotated half of the queries set to 0, positions three times as far apart change nothing."""

    def silence(weights):
        weights["model.layers.7.self_attn.q_proj.weight"].reshape(4, 16, -1)[:, :8] = 0

    model = make(edit=silence, rotary_dim=8)
    ids, positions = prompts(model.config, 1, 21), np.arange(21)[None]
    return error(model.logits(ids, positions=3 * positions), model.logits(ids, positions=positions))


@claim(2, "a token that is decoded without `position_ids` stands at position 0", LOGITS, ROUNDING)
def test_a_token_stands_after_those_in_the_cache(make):
    """Nine tokens decoded one by one, without being told where they stand, are as in one call."""
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


@claim(3, "several tokens onto a cache are masked as if it were empty", LOGITS, ROUNDING)
def test_several_tokens_follow_a_cache(make):
    """A text in two calls, told where the second starts, is as in one call; by fused attention, the default."""
    return several_onto_a_cache(make)


@claim(
    3,
    "… and refused by eager attention",
    LOGITS,
    ROUNDING,
    raises="RuntimeError: The size of tensor",
    sides=(TORCH,),
)
def test_several_tokens_follow_a_cache_in_eager_attention(make):
    """The same, by attention with its equation written out."""
    return several_onto_a_cache(make, attn_implementation="eager")


@claim(4, "in a batch padded on the left, padded rows generate other tokens than alone", TOKENS)
def test_a_padded_row_generates_what_it_does_alone(make):
    """Greedy tokens of four padded rows are those of each row alone."""
    model = make()
    ids, padding = prompts(model.config, 4, 12), (1, 3, 6, 9)
    got = model.generate(ids, np.arange(12) >= np.array(padding)[:, None])
    return differing(got, np.concatenate([model.generate(ids[r : r + 1, n:]) for r, n in enumerate(padding)]))


@claim(5, "the sliding window is forgotten in decode", TOKENS)
def test_a_window_slides_in_decode(make):
    """Greedy tokens past the window's width are those of reading the whole text for each."""
    model = make(sliding_window=5)
    ids = want = prompts(model.config, 4, 9)
    for _ in range(NEW):
        want = np.concatenate([want, model.logits(want)[:, -1:].argmax(axis=-1)], axis=1)
    return differing(model.generate(ids), want[:, 9:])


@claim(6, "beams change places in the keys, not in the states of lightning layers", TOKENS)
def test_beams_remember_their_own_past(make):
    """Four beams find the same texts with a cache and without one."""
    model = make()
    ids = prompts(model.config, 4, 9)
    return differing(model.beams(ids, remembering=True), model.beams(ids, remembering=False))


@claim(
    7, "rows of a cache cannot be chosen or repeated", LOGITS, ROUNDING, raises="IndexError: list index out of range"
)
def test_rows_of_a_cache_can_be_chosen(make):
    """Of three rows one is left out and one taken twice; each goes on as it would have."""
    model = make()
    ids, rows, cache = prompts(model.config, 3, 9), [2, 0, 0], model.cache(3)
    model.logits(ids[:, :8], cache=cache)
    model.choose(cache, rows)
    got = model.logits(ids[rows, 8:], positions=np.full((3, 1), 8), cache=cache)
    return error(got, model.logits(ids)[rows, 8:])


@claim(8, "a second turn on the cache of the first goes astray", TOKENS)
def test_a_second_turn_goes_on_from_the_first(make):
    """A conversation whose beginning is in the cache goes on as without a cache."""
    model = make()
    ids, more, cache = prompts(model.config, 4, 9), prompts(model.config, 4, 5, seed=1), model.cache(4)
    talk = np.concatenate([ids, model.generate(ids, cache=cache), more], axis=1)
    return differing(model.generate(talk, cache=cache), model.generate(talk))


@claim(
    9,
    "in bfloat16 the state, its slopes and its decay are bfloat16, and errors pile up in decode",
    "errors of a prefill",
    2.0,
    sides=(TORCH,),  # NumPy has no bfloat16
)
def test_half_precision_leaves_the_state_alone(make):
    """The last 64 of 256 tokens are, decoded one by one, at most twice as wrong as read at once.

    All experts are chosen, so that none can be another one's by rounding.
    """
    all_chosen = {"num_local_experts": 2, "num_experts_per_tok": 2}
    model, judge = make("bfloat16", **all_chosen), make.other("float64", **all_chosen)
    ids, cache = prompts(model.config, 1, 256), model.cache()
    positions = np.arange(256)[:, None, None]
    decoded = [model.logits(ids[:, t : t + 1], positions=positions[t], cache=cache)[:, 0] for t in range(256)]
    truth, at_once = judge.logits(ids)[0, -64:], model.logits(ids)[0, -64:]
    return error(np.concatenate(decoded[-64:]), truth) / error(at_once, truth)


@claim(10, "padding on the right decays the state", LOGITS, ROUNDING)
def test_padding_on_the_right_leaves_the_state_alone(make):
    """A token after a prompt and eight pads is as without the pads.

    Softmax attention is silenced, so that the states alone can differ.
    """

    def silence(weights):
        weights["model.layers.7.self_attn.o_proj.weight"][:] = 0

    model = make(edit=silence)
    ids, pads, cache = prompts(model.config, 1, 21), np.zeros((1, 8), int), model.cache()
    model.logits(np.concatenate([ids[:, :-1], pads], axis=1), np.arange(28)[None] < 20, cache=cache)
    got = model.logits(ids[:, -1:], positions=np.array([[20]]), cache=cache)
    return error(got, model.logits(ids)[:, -1:])


@claim(11, "holes in a mask decay the state", LOGITS, ROUNDING)
def test_holes_in_a_mask_are_not_there(make):
    """With six of 21 tokens masked, and positions counted without them, the text is as without them."""
    model = make()
    ids, real = prompts(model.config, 1, 21), np.ones((1, 21), bool)
    real[0, [3, 4, 5, 9, 14, 15]] = False
    got = model.logits(ids, real, positions=np.maximum(real.cumsum(axis=1) - 1, 0))
    return error(got[real], model.logits(ids[real][None])[0])


@claim(11, "packed documents see each other in lightning layers", LOGITS, ROUNDING)
def test_packed_documents_do_not_see_each_other(make):
    """Two in one row are as each of them alone."""
    model = make()
    texts = prompts(model.config, 1, 12), prompts(model.config, 1, 9, seed=1)
    return error(model.packed(*texts), np.concatenate([model.logits(text) for text in texts], axis=1))


@claim(
    12,
    "in training, the router's jitter multiplies the residual and the experts' input, too",
    LOGITS,
    ROUNDING,
    sides=(TORCH,),  # NumPy does not train
)
def test_jitter_is_the_routers_alone(make):
    """A router of zeros chooses alike whatever it is shown, so that a jitter of a tenth changes nothing."""

    def blind(weights):
        for i in range(8):
            weights[f"model.layers.{i}.mlp.gate.weight"][:] = 0

    model = make(edit=blind, router_jitter_noise=0.1)
    ids = prompts(model.config, 1, 21)
    want = model.logits(ids)
    torch.manual_seed(0)
    return error(model.in_training(ids), want)


@claim(13, "float64 passes through float32 in norms, rotary, router and eager attention's softmax", LOGITS, SAME)
def test_float64_is_float64(make):
    """In float64, with eager experts, a prompt is as in a twin in float64."""
    ids = prompts(MiniMaxConfig.tiny(), 1, 21)
    return error(make("float64").logits(ids), make.other("float64").logits(ids))


@claim(
    13,
    "… and needs eager experts: the default refuses it",
    LOGITS,
    ROUNDING,
    raises="RuntimeError: Expected mat_a to be Float32, BFloat16 or Float16 matrix",
)
def test_float64_runs_by_default(make):
    """In float64, loaded without further options, a prompt is as in a twin in float32."""
    ids = prompts(MiniMaxConfig.tiny(), 1, 21)
    options = {"experts_implementation": None} if make.system is transformers else {}
    return error(make("float64", options=options).logits(ids), make.other().logits(ids))


@claim(
    14,
    "a cache cannot be cropped, so a wrong guess cannot be taken back",
    LOGITS,
    ROUNDING,
    raises="RuntimeError: MiniMaxCache does not support `crop`",
)
def test_a_cache_goes_back(make):
    """With a token read and taken back, another one in its place is as if it had been the first."""
    model = make()
    ids, cache = prompts(model.config, 1, 13), model.cache()
    model.logits(ids[:, :12], cache=cache)
    mark = model.mark(cache)
    model.logits(prompts(model.config, 1, 1, seed=1), positions=np.array([[12]]), cache=cache)
    model.crop(cache, 12, 13)
    del mark
    got = model.logits(ids[:, 12:], positions=np.array([[12]]), cache=cache)
    return error(got, model.logits(ids)[:, 12:])


@claim(
    14,
    "… and assisted decoding is refused",
    TOKENS,
    raises="RuntimeError: MiniMaxCache does not support `crop`",
)
def test_guesses_change_no_token(make):
    """Greedy tokens with guesses looked up in the text are those without.

    Our guesses are made above, in a few lines on a snapshot: generate has no option for it.
    """
    model = make()
    ids = prompts(model.config, 1, 9)
    return differing(model.with_guesses(ids), model.generate(ids))


@claim(14, "`reset()` of a cache leaves the states", LOGITS, ROUNDING)
def test_a_cache_can_be_emptied(make):
    """A second text on an emptied cache is as on a new one."""
    model = make()
    cache = model.cache()
    start = model.mark(cache)
    model.logits(prompts(model.config, 1, 21), cache=cache)
    model.empty(cache, start)
    ids = prompts(model.config, 1, 21, seed=1)
    return error(model.logits(ids, positions=np.arange(21)[None], cache=cache), model.logits(ids))


@claim(14, "a prompt read in pieces, by `prefill_chunk_size`, needs a cache given, and is another prompt", TOKENS)
def test_a_prompt_can_be_read_in_pieces(make):
    """A prompt read four columns at a time is continued as when read at once.

    In two groups of layers, since a mistake in the last layer's masks reaches no later token. transformers is given an
    empty cache, without which it refuses.
    """
    model = make(layer_types=HYBRID * 2)
    ids = prompts(model.config, 4, 9)
    return differing(model.in_pieces(ids, model.cache(4), 4), model.generate(ids))


def weights_left_wide(make, *theirs) -> float:
    """The share of a model's weights that a 4-bit load leaves in 16 bits or more; with 32 experts, as released."""
    options = {"quantization_config": theirs[0]} if make.system is transformers else {"quantization": "nf4"}
    model = make(options=options, num_local_experts=32, intermediate_size=48)
    shapes = model.config.parameter_shapes().values()
    return 1 - model.numbers_in_few_bits() / sum(int(np.prod(shape)) for shape in shapes)


@claim(15, "bitsandbytes' `load_in_4bit` passes over the stacked experts", WEIGHTS, 0.1)
def test_four_bits_reach_the_experts(make):
    """The share of the weights left in 16 bits or more is no more than a tenth.

    That is room for embeddings, norms and routers.
    """
    return weights_left_wide(make, transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))


@claim(
    15,
    "… and the documentation's `quantization_config=True` is refused",
    WEIGHTS,
    0.1,
    raises="AttributeError: 'bool' object has no attribute 'quant_method'",
)
def test_four_bits_as_the_documentation_asks_for_them(make):
    """The same, loaded as the documentation says."""
    return weights_left_wide(make, True)


# --- The list itself -------------------------------------------------------------------------------------------------


def measured() -> list[tuple[Claim, float | str, float]]:
    """Each claim, what is found of transformers, and what of the worse of the twins."""
    return [
        (asked, asked.found(Maker(transformers)), max(asked.found(Maker(side)) for side in asked.sides))
        for asked in CLAIMS
    ]


FROM_LAYER_0 = [asked for asked in CLAIMS if asked.number in (2, 3, 4, 5, 7, 8)]


@pytest.mark.parametrize("asked", FROM_LAYER_0, ids=lambda asked: asked.measure.__name__)
def test_in_the_default_order_of_layers_these_do_not_appear(asked):
    """In transformers' own default, softmax first, its cache knows its length: it can pass these measures, and does."""
    found = asked.found(Maker(transformers, (SOFTMAX, LIGHTNING) * 4))
    assert asked.keeps(found) or not MEASURED


NUMBER = r"\d+(?:\.\d+)?(?:e-\d+)?"


def test_the_page_is_what_the_script_makes():
    """Word for word, and figures to a fifth: sums in another order choose other tokens here and there.

    Errors of rounding are whatever they are, if they are. Of another release than the measured one, its column is not
    compared.
    """
    made = runpy.run_path(str(PAGE.parent / "make_defects.py"))["page"](measured())
    texts = made, PAGE.read_text(encoding="utf-8")
    if not MEASURED:
        texts = tuple(re.sub(r"\| [^|]* \|(?=[^|]*\|$)", "||", text, flags=re.MULTILINE) for text in texts)
    mine, stored = ([float(x) for x in re.findall(NUMBER, text)] for text in texts)
    hint = "run python docs/proof/make_defects.py"
    assert re.sub(NUMBER, "#", texts[0]) == re.sub(NUMBER, "#", texts[1]), hint
    for a, b in zip(mine, stored, strict=True):
        assert abs(a - b) <= 0.2 * max(a, b) or max(a, b) <= ROUNDING, f"{b} on the page is {a}: {hint}"
