r"""Generation: read the prompt, then one token at a time. Both twins choose their tokens here.

$$\mathrm{id}_{t+1} = \arg\max \mathrm{logits}_t \qquad\text{or}\qquad
\mathrm{id}_{t+1} = \min\Bigl\{i : \textstyle\sum_{j \le i} p_j > u\Bigr\},\quad u \sim U(0, 1),\quad
p = \mathrm{softmax}(\mathrm{logits}_t / \tau)$$

with the likeliest token first in the sum. All this is NumPy; a model of either package takes part with three methods of
[Generates][minimax_numpy.generate.Generates].
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .config import MiniMaxConfig
from .inputs import check_inputs, check_kind_of_cache
from .ops.attention import softmax
from .ops.losses import log_softmax
from .shapes import Mask, TokenIds

Choice = Callable[[Float[np.ndarray, "B V"]], Int[np.ndarray, "B"]]
"""Chooses a token for each row."""


class Generates:
    """What a language model of either package can do: continue a prompt."""

    config: MiniMaxConfig

    def empty_cache(self, rows: int) -> Any:
        """A cache of this model that has seen nothing."""
        raise NotImplementedError

    def show(self, ids: TokenIds, mask: Mask, cache: Any) -> Float[np.ndarray, "B V"]:
        """Show the model some tokens, arrays in either package; logits after the last column."""
        raise NotImplementedError

    def as_given(self, x: np.ndarray) -> Any:
        """An array as this package has it."""
        raise NotImplementedError

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        seed: int | None = None,
        cache: Any = None,
        prefill_chunk: int | None = None,
        output_logprobs: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Continue each row: with its likeliest tokens, with tokens drawn by chance, or with the best of several beams.

        Parameters
        ----------
        input_ids, attention_mask : (B, T)
            Prompts, padded on either side or within; each row gets the tokens that it would get alone.
        max_new_tokens : int
            At most this many tokens a row.
        do_sample : bool
            Draw each token, instead of taking the likeliest.
        temperature : float
            Logits are divided by it before drawing.
        top_k : int, optional
            Draw among the k likeliest only.
        top_p : float, optional
            Draw among the fewest of these whose probabilities reach p together.
        num_beams : int
            Keep the best n texts at every step, and return the best of all; see
            [search_beams][minimax_numpy.generate.search_beams].
        length_penalty : float
            A text of n tokens counts log p / n^length_penalty among beams.
        eos_token_id : int or several, optional
            A row ends with the first of these, and pads follow it. ``None`` takes the configuration's.
        seed : int, optional
            Row r draws its numbers from ``numpy.random.default_rng(seed + r)``: the same in both twins, and the same
            for a row alone.
        cache : Cache, optional
            Continue from it. In the end it has seen all but the last token; with beams, the prompt alone.
        prefill_chunk : int, optional
            Read the prompt so many columns at a time: memory is bounded, the result is the same.
        output_logprobs : bool
            Also return log p of each new token, whatever it was drawn by; 0 at pads.
        progress : function, optional
            Called with the columns read and their number, after each piece of the prompt.

        Returns
        -------
        ids : (B, T + new)
            Prompts as given, then what was generated. Among equals the lowest id wins.
        logprobs : (B, new)
            Only where asked for.

        Raises ValueError, one sentence long, on a prompt without a real token or an option that makes no sense.
        """
        check_beams(num_beams, do_sample, length_penalty)
        choose = chooser(do_sample, temperature, top_k, top_p, seed)
        session = Session(
            self, input_ids, attention_mask, max_new_tokens, choose, eos_token_id, cache, prefill_chunk, progress
        )
        if max_new_tokens == 0:
            columns = []
        elif num_beams > 1:
            columns = search_beams(session, num_beams, length_penalty)
        else:
            columns = list(session.tokens())
        empty = np.zeros((len(input_ids), 0))
        new, logprobs = (np.stack(x, axis=1) for x in zip(*columns, strict=True)) if columns else (empty, empty)
        ids = self.as_given(np.concatenate([session.prompt, new.astype(session.prompt.dtype)], axis=1))
        return (ids, self.as_given(logprobs)) if output_logprobs else ids

    def stream(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        seed: int | None = None,
        cache: Any = None,
        prefill_chunk: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Any]:
        """Generate as [generate][minimax_numpy.generate.Generates.generate] does, and yield each token as it comes.

        Yields
        ------
        tokens : (B,)
            One a row; a pad where the row has ended. Between two of them the cache is whole: stop when you like.
        """
        choose = chooser(do_sample, temperature, top_k, top_p, seed)
        session = Session(
            self, input_ids, attention_mask, max_new_tokens, choose, eos_token_id, cache, prefill_chunk, progress
        )
        return (self.as_given(token) for token, _ in session.tokens())


class Session:
    """One generation: a model and its cache, the prompt, how a token is chosen and when a row ends."""

    def __init__(
        self,
        model: Generates,
        input_ids: Any,
        attention_mask: Any,
        max_new_tokens: int,
        choose: Choice,
        eos_token_id: int | Sequence[int] | None,
        cache: Any,
        prefill_chunk: int | None,
        progress: Callable[[int, int], None] | None,
    ):
        check_inputs(model.config, input_ids, attention_mask, None, None, None)
        self.prompt = check_room(as_array(input_ids), model.config.vocab_size)
        mask = np.ones(self.prompt.shape, bool) if attention_mask is None else as_array(attention_mask).astype(bool)
        self.mask, some = mask, mask.any(axis=1)
        if not some.all():
            raise ValueError(f"Row {int(np.argmin(some))} of attention_mask has no real token: an empty prompt.")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more.")
        if prefill_chunk is not None and prefill_chunk < 1:
            raise ValueError(f"prefill_chunk is {prefill_chunk}; a piece of the prompt has at least one column.")
        eos = model.config.eos_token_id if eos_token_id is None else eos_token_id
        self.stops = check_stops(eos)
        self.model, self.choose, self.max_new_tokens = model, choose, max_new_tokens
        self.prefill_chunk, self.progress = prefill_chunk, progress
        self.cache = model.empty_cache(len(self.prompt)) if cache is None else check_kind_of_cache(cache)
        seen = as_array(self.cache.lengths)
        if len(seen) == len(mask):  # else the model refuses it
            warn_of_length(model.config, int((mask.sum(axis=1) + seen).max()) + max_new_tokens)

    @property
    def pad(self) -> int:
        """What follows the end of a row: the pad token, or else a stop. It is shown to the model, if behind a mask."""
        known = self.stops[(self.stops >= 0) & (self.stops < self.model.config.vocab_size)]
        if self.model.config.pad_token_id is not None:
            return self.model.config.pad_token_id
        return int(known[0]) if len(known) else 0

    def prefill(self) -> Float[np.ndarray, "B V"]:
        """Show the prompt, in pieces where asked: real tokens to the right, so that the last column is real."""
        order = np.argsort(self.mask, axis=1, kind="stable")
        ids, mask = (np.take_along_axis(x, order, axis=1) for x in (self.prompt, self.mask))
        T = ids.shape[1]
        for start in range(0, T, self.prefill_chunk or T):
            stop = min(start + (self.prefill_chunk or T), T)
            logits = self.model.show(ids[:, start:stop], mask[:, start:stop], self.cache)
            if self.progress:
                self.progress(stop, T)
        return logits

    def tokens(self) -> Iterator[tuple[Int[np.ndarray, "B"], Float[np.ndarray, "B"]]]:
        """Each step's tokens, and their log-probabilities."""
        if not self.max_new_tokens:
            return
        logits = self.prefill()
        running = np.ones(len(logits), bool)
        for left in reversed(range(self.max_new_tokens)):
            chosen = self.choose(check_logits(logits))  # (B,)
            logprob = np.take_along_axis(log_softmax(logits), chosen[:, None], axis=1)[:, 0]
            token = np.where(running, chosen, self.pad).astype(self.prompt.dtype)
            yield token, np.where(running, logprob, 0)
            running &= ~np.isin(token, self.stops)
            if not left or not running.any():
                return
            # a row that has ended is shown nothing
            logits = self.model.show(token[:, None], running[:, None], self.cache)


def chooser(do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, seed: int | None) -> Choice:
    """How tokens are chosen. Raises ValueError where an option is out of its range."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0, and without do_sample it is not used.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; at least one token must be left to draw.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1.")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more.")
    if not do_sample:
        return lambda logits: logits.argmax(axis=-1)
    generators: list[np.random.Generator] = []  # one a row, as soon as it is known how many there are

    def draw(logits: Float[np.ndarray, "B V"]) -> Int[np.ndarray, "B"]:
        for row in range(len(generators), len(logits)):
            generators.append(np.random.default_rng(None if seed is None else seed + row))
        return sample(logits, np.array([generator.random() for generator in generators]), temperature, top_k, top_p)

    return draw


def sample(
    logits: Float[np.ndarray, "B V"],
    uniforms: Float[np.ndarray, "B"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[np.ndarray, "B"]:
    r"""Draw a token a row by inverting the distribution function, likeliest token first.

    $$\min\Bigl\{i : \textstyle\sum_{j \le i} p_j > u \sum_j p_j\Bigr\}, \qquad
    p = \mathrm{softmax}(\mathrm{logits} / \tau)$$

    over the k likeliest, and of these over the fewest that reach ``top_p`` together. In float64.

    >>> logits = np.log(np.array([[0.1, 0.6, 0.3]]))
    >>> [int(sample(logits, np.array([u]))[0]) for u in (0.0, 0.59, 0.61, 0.89, 0.91)]
    [1, 1, 2, 2, 0]
    """
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]  # equals: the lowest id first
    chosen = np.take_along_axis(logits, order, axis=-1).astype(np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0 leaves the likeliest alone
        p = softmax((chosen - chosen[:, :1]) / temperature)
    if top_p is not None:
        p = np.where(np.cumsum(p, axis=-1) - p < top_p, p, 0)  # what comes before a token, so the first always stays
    reached = np.cumsum(p, axis=-1)
    drawn = (reached <= uniforms[:, None] * reached[:, -1:]).sum(axis=-1)
    return np.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]


class Beam(NamedTuple):
    """A text, under way or ended: its tokens, the log-probability of each, and what they come to."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0


class Search:
    """The beam search of one row: ``beams`` are its n best beginnings, ``ended`` its best texts so far."""

    def __init__(self, num_beams: int, length_penalty: float, stops: Int[np.ndarray, "stops"], longest: int):
        self.beams = [Beam()] + [Beam(score=-np.inf)] * (num_beams - 1)  # all begin alike: only one of them counts
        self.ended: list[Beam] = []
        self.penalty, self.stops, self.longest = length_penalty, stops, longest
        self.done = False

    def step(self, logprobs: Float[np.ndarray, "N V"]) -> list[int]:
        """Add a token; return which of the beams each new one continues."""
        N, V = logprobs.shape
        scores = (np.array([beam.score for beam in self.beams])[:, None] + logprobs).ravel()
        n = len(self.beams[0].tokens) + 1
        going: list[tuple[int, Beam]] = []
        for rank, i in enumerate(best(scores, (max(len(self.stops), 1) + 1) * N)):  # enough to go on, if some end
            b, token = divmod(int(i), V)
            tokens, known = (*self.beams[b].tokens, token), (*self.beams[b].logprobs, float(logprobs[b, token]))
            if token not in self.stops and n < self.longest:
                going.append((b, Beam(tokens, known, float(scores[i]))))
            elif rank < N:
                self.ended.append(Beam(tokens, known, float(scores[i]) / n**self.penalty))
        self.ended = sorted(self.ended, key=lambda beam: -beam.score)[:N]
        going = going[:N]
        full = len(self.ended) == N
        self.done = not going or (full and going[0][1].score / n**self.penalty <= self.ended[-1].score)
        self.beams = [beam for _, beam in going] or self.beams
        return [b for b, _ in going]


def search_beams(
    session: Session, num_beams: int, length_penalty: float
) -> list[tuple[Int[np.ndarray, "B"], Float[np.ndarray, "B"]]]:
    r"""Find a likely text rather than a text of likely tokens: keep the n best beginnings at every step.

    $$\mathrm{score} = \sum_t \log p(\mathrm{id}_t \mid \dots) \,/\, n^{\,\mathrm{penalty}}$$

    A text that ends among the n best is set aside. A row is done when n are, and its best beginning, scored at its
    present length, is no better than the worst of them; at ``max_new_tokens`` the beginnings end as they stand. Rows do
    not see each other. The model is shown the prompt once a row, then one token a beam.

    Returns each column's tokens (B,) and their log-probabilities, as many as the longest row has.
    """
    B, N = len(session.prompt), num_beams
    searches = [Search(N, length_penalty, session.stops, session.max_new_tokens) for _ in range(B)]
    logprobs = np.repeat(log_softmax(check_logits(session.prefill()).astype(np.float64)), N, axis=0)  # (B · N, V)
    cache = session.cache.fork()
    cache.reorder(np.repeat(np.arange(B), N))
    while True:
        rows, tokens, running = np.arange(B * N), np.full(B * N, session.pad), np.zeros(B * N, bool)
        for start, search in zip(range(0, B * N, N), searches, strict=True):
            if search.done:
                continue
            came_from = search.step(logprobs[start : start + N])
            if not search.done:
                beams = slice(start, start + N)
                rows[beams], running[beams] = start + np.array(came_from), True
                tokens[beams] = [beam.tokens[-1] for beam in search.beams]
        if not running.any():
            break
        cache.reorder(rows)
        shown = session.model.show(tokens[:, None].astype(session.prompt.dtype), running[:, None], cache)
        logprobs = log_softmax(check_logits(shown).astype(np.float64))
    chosen = [search.ended[0] for search in searches]
    width = max(len(beam.tokens) for beam in chosen)
    ids = np.array([beam.tokens + (session.pad,) * (width - len(beam.tokens)) for beam in chosen])
    known = np.array([beam.logprobs + (0.0,) * (width - len(beam.tokens)) for beam in chosen])
    return list(zip(ids.T, known.T, strict=True))


def best(scores: Float[np.ndarray, "n"], count: int) -> Int[np.ndarray, "count"]:
    """Indices of the highest scores, best first; among equals the lowest.

    >>> best(np.array([1.0, 3.0, 2.0, 3.0]), 3)
    array([1, 3, 2])
    """
    count = min(count, len(scores))
    enough = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return enough[np.argsort(-scores[enough], kind="stable")][:count]


def check_beams(num_beams: int, do_sample: bool, length_penalty: float) -> None:
    """Refuse a number of beams that is none, and what does not go with beams."""
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; there is at least one.")
    if num_beams > 1 and do_sample:
        raise ValueError("Beams look for the likeliest text and draw nothing; give num_beams or do_sample, not both.")
    if not abs(length_penalty) <= 50:  # beyond it, n^penalty of a long text is no float
        raise ValueError(f"length_penalty is {length_penalty}; it must be from −50 to 50.")


def check_logits(logits: Float[np.ndarray, "B V"]) -> Float[np.ndarray, "B V"]:
    """Refuse logits that are not numbers, or too large for their type: nothing can be chosen by them."""
    lost = ~np.isfinite(logits.max(axis=1))  # NaN comes through; a single −∞ is a token that has no chance
    if lost.any():
        raise ValueError(
            f"The logits of row {int(lost.argmax())} are NaN or infinite; its weights or its type are at fault."
        )
    return logits


def check_stops(eos: Any) -> Int[np.ndarray, "stops"]:
    """The stops, each once; refuses what is no whole number."""
    stops = np.unique(np.asarray(() if eos is None else eos))
    if stops.size and stops.dtype.kind not in "iu":
        raise ValueError(f"eos_token_id is {eos!r}; stops are whole numbers.")
    return stops.astype(np.int64)


def check_room(ids: TokenIds, vocab_size: int) -> TokenIds:
    """Refuse ids of a type in which not every id of the vocabulary has room: what is generated would wrap around."""
    if np.iinfo(ids.dtype).max < vocab_size - 1:
        raise ValueError(f"input_ids has dtype {ids.dtype}, which cannot hold every id of this model; give int64.")
    return ids


def warn_of_length(config: MiniMaxConfig, length: int) -> None:
    """Say so where positions go further than the model was made for."""
    if length > config.max_position_embeddings:
        warnings.warn(
            f"{length} tokens are more than max_position_embeddings ({config.max_position_embeddings}): softmax layers "
            "turn their keys further than in training (lightning layers have no positions).",
            stacklevel=4,
        )


def as_array(x: Any) -> np.ndarray:
    """An array as it is, a tensor as an array."""
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()
