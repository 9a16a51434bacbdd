"""One sequence, one layer of experts, cut over several ranks: what they hand each other makes their work one machine's.

Ranks are pieces of one array here: nothing is sent. What is proved is the arithmetic that a parallel program rests on.
"""

import numpy as np
import pytest
from close import array, assert_same, both
from hypothesis import given
from hypothesis.strategies import composite, integers, lists, permutations
from minimax_numpy import ops as reference

# --- Lightning: a pair (decay, state) for each rank ------------------------------------------------------------------


def combine(first, second):
    """Two stretches of a text as one: the later one decays what the earlier one left."""
    (decay, state), (next_decay, next_state) = first, second
    return decay * next_decay, next_decay * state + next_state


def prefixes(pairs, start):
    """What each rank starts from: all pairs before its own, on the state before the whole."""
    before = [(1.0, start)]
    for pair in pairs[:-1]:
        before.append(combine(before[-1], pair))
    return [state for _, state in before]


def lightning_over_ranks(ops, q, k, v, slopes, cuts, start):
    """Each rank makes its own end state; all hand theirs round; each begins from what lies before it."""
    parts = [tuple(x[:, :, a:b] for x in (q, k, v)) for a, b in zip(cuts, cuts[1:])]
    pairs = []
    for part in parts:
        _, end = ops.lightning_attention_chunked(*part, slopes, chunk=4)  # of an empty memory
        decay = (np.e ** (-slopes * part[0].shape[2]))[:, None, None]
        pairs.append((decay, end))
    begins = prefixes(pairs, start)
    outs = [ops.lightning_attention_chunked(*part, slopes, S, chunk=4)[0] for part, S in zip(parts, begins)]
    return outs, combine((1.0, begins[-1]), pairs[-1])[1]


def drawn(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


@given(seed=integers(0, 99))
def test_pairs_of_decay_and_state_combine_in_any_grouping(seed):
    rng = np.random.default_rng(seed)
    a, b, c = ((rng.random((2, 1, 1)), rng.standard_normal((2, 3, 3))) for _ in range(3))
    for left, right in zip(combine(combine(a, b), c), combine(a, combine(b, c)), strict=True):
        assert_same(left, right)
    for same in (combine((1.0, np.zeros((2, 3, 3))), a), combine(a, (1.0, np.zeros((2, 3, 3))))):
        assert all(np.array_equal(x, y) for x, y in zip(same, a))


@both
@given(lengths=lists(integers(1, 9), min_size=1, max_size=6), seed=integers(0, 99))
def test_a_sequence_over_ranks_is_the_sequence(side, lengths, seed):
    """Any cuts, uneven ones too, and a state from before all of them."""
    ops, cuts = side.package.ops, np.cumsum([0, *lengths])
    q, k, v, start = map(side.wrap, drawn(seed, *[(2, 3, cuts[-1], 4)] * 3, (2, 3, 4, 4)))
    slopes = ops.decay_slopes(3, 1, 9)
    want, end = ops.lightning_attention_direct(q, k, v, slopes, start)
    outs, last = lightning_over_ranks(ops, q, k, v, slopes, cuts, start)
    assert_same(np.concatenate([array(out) for out in outs], axis=2), want)
    assert_same(last, end)


# --- Softmax: parts of a sum, each with its largest score ------------------------------------------------------------


def part_of_softmax(q, k, v, visible):
    """What one block of keys contributes: largest score, sum of powers, weighted values. q [T, d], k, v [J, d]."""
    scores = np.where(visible, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores - np.where(top == -np.inf, 0, top))  # a row that sees nothing here adds nothing
    return top, powers.sum(axis=-1, keepdims=True), powers @ v


def merge(first, second):
    """Two parts as one: both are brought to the larger of their largest scores."""
    top = np.maximum(first[0], second[0])
    a, b = (np.exp(part[0] - np.where(top == -np.inf, 0, top)) for part in (first, second))
    return top, a * first[1] + b * second[1], a * first[2] + b * second[2]


@composite
def rings(draw):
    """Documents end to end, ranks that cut them anywhere, and an order in which the blocks arrive."""
    lengths = draw(lists(integers(1, 8), min_size=1, max_size=4))
    T = sum(lengths)
    cuts = sorted({0, T, *draw(lists(integers(1, T), max_size=3))})
    return lengths, cuts, draw(permutations(range(len(cuts) - 1)))


@given(ring=rings(), seed=integers(0, 99))
def test_a_ring_over_packed_documents_is_softmax_attention(ring, seed):
    """Blocks of keys come round in any order; positions and documents say who may see whom, wherever the cuts are."""
    lengths, cuts, order = ring
    document = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    visible = (document[:, None] == document) & (position[:, None] >= position)
    q, k, v = (3 * x for x in drawn(seed, *[(sum(lengths), 4)] * 3))
    blocks = [slice(a, b) for a, b in zip(cuts, cuts[1:])]
    outs = []
    for mine in blocks:
        found = None
        for rank in order:
            theirs = blocks[rank]
            part = part_of_softmax(q[mine], k[theirs], v[theirs], visible[mine, theirs])
            found = part if found is None else merge(found, part)
        outs.append(found[2] / found[1])
    want = reference.softmax_attention(q[None, None], k[None, None], v[None, None], visible[None])[0, 0]
    assert_same(np.concatenate(outs), want)


# --- Experts: whose tokens go where ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("groups, shares", [(1, 1), (4, 1), (1, 3), (2, 3)])
def test_experts_over_ranks_are_the_experts(side, groups, shares):
    """E experts in groups, their matrices in shares of F: copies of tokens go out, answers come back and add up."""
    ops, (T, E, K, D, F) = side.package.ops, (17, 8, 2, 6, 12)
    logits, x, gate_up, down = drawn(0, (T, E), (T, D), (E, 2 * F, D), (E, D, F))
    weights, indices = map(array, ops.route(side.wrap(logits), K))
    want = ops.mix_experts(*map(side.wrap, (x, weights, indices, gate_up, down)))
    total = np.zeros((T, D))
    for group in np.split(np.arange(E), groups):
        token, choice = np.nonzero(np.isin(indices, group))  # the copies that this group is sent
        sent = x[token], weights[token, choice, None], indices[token, choice, None] - group[0]
        for share in np.split(np.arange(F), shares):
            rows = np.concatenate([share, F + share])  # of w1 and of w3
            matrices = gate_up[group][:, rows], down[group][:, :, share]
            np.add.at(total, token, array(ops.mix_experts(*map(side.wrap, (*sent, *matrices)))))
    assert_same(total, want)
