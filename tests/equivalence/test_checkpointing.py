"""Layers that are computed again in the backward: the same gradients, from less memory."""

import pytest
import torch
from close import TORCH, assert_same, lively, prompts, small
from minimax_numpy.config import LIGHTNING, SOFTMAX


def gradients(model, checkpointing: bool, call):
    """Of every weight, after a call that gives a loss."""
    (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
    model.zero_grad()
    call(model).backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


IDS = torch.tensor(prompts(small(), 2, 13))
CALLS = {
    "plain": lambda m: m(IDS, labels=IDS, output_router_logits=True).loss,
    "padded": lambda m: m(IDS, torch.arange(26).reshape(2, 13) % 5 != 1, labels=IDS).loss,
    "packed": lambda m: m(IDS[:1], cu_seqlens=torch.tensor([0, 4, 13]), labels=IDS[:1]).loss,
    "hidden states": lambda m: sum(x.square().sum() for x in m(IDS, output_hidden_states=True).hidden_states),
}


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_the_same_gradients(call, window):
    model = TORCH.model(lively(small(sliding_window=window)))
    got, want = (gradients(model, checkpointing, call) for checkpointing in (True, False))
    assert got.keys() == want.keys()
    for name in want:
        assert_same(got[name], want[name])


@pytest.mark.parametrize("window", [None, 4])
def test_through_a_cache(window):
    """Two calls on one cache: what the second one recomputes begins where the first one ended."""

    def in_two(model):
        cache = TORCH.cache(model.config, 2)
        logits = [model(IDS[:, part], cache=cache).logits for part in (slice(0, 8), slice(8, 9), slice(9, 13))]
        return torch.cat(logits, dim=1).square().sum()

    model = TORCH.model(lively(small(LIGHTNING, SOFTMAX, LIGHTNING, sliding_window=window)))
    got, want = (gradients(model, checkpointing, in_two) for checkpointing in (True, False))
    for name in want:
        assert_same(got[name], want[name])


def test_jitter_falls_the_same_way_twice():
    model = TORCH.model(lively(small(router_jitter_noise=0.3))).train()
    found = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        found.append(gradients(model, checkpointing, CALLS["plain"]))
    for name in found[1]:
        assert_same(found[0][name], found[1][name])


def test_what_is_kept_is_an_input_a_layer():
    """Numbers that autograd holds between forward and backward: fewer, and in a deep model by as much as it is deep."""
    ids = torch.tensor(prompts(small(), 1, 64))
    held = []
    for depth in (2, 6):
        model = TORCH.model(lively(small(*[LIGHTNING] * depth)))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        for checkpointing in (False, True):
            (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
            kept: dict[int, int] = {}

            def pack(x, kept=kept, own=own):
                if x.untyped_storage().data_ptr() not in own:
                    kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                loss = model(ids, labels=ids).loss
            held.append(sum(kept.values()))
            loss.backward()
    plain, saved = (b - a for a, b in zip(held[:2], held[2:], strict=True))
    assert saved < plain / 10


def test_without_gradients_nothing_is_different():
    model = TORCH.model(lively(small()))
    with torch.no_grad():
        want = model(IDS, use_cache=True)
        model.gradient_checkpointing_enable()
        got = model(IDS, use_cache=True)
    assert torch.equal(got.logits, want.logits)
