"""Gradients of the twin: the three forms share one, every weight gets one, and padding has none."""

import numpy as np
import pytest
import torch
from close import TORCH, assert_same, every_head, lively, prompts, small
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_torch import MiniMaxForCausalLM, ops
from torch.autograd import gradcheck

FORMS = {
    "direct": ops.lightning_attention_direct,
    "recurrent": ops.lightning_attention_recurrent,
    "chunks of 1": lambda *x, **m: ops.lightning_attention_chunked(*x, chunk=1, **m),
    "chunks of 7": lambda *x, **m: ops.lightning_attention_chunked(*x, chunk=7, **m),
    "one chunk": lambda *x, **m: ops.lightning_attention_chunked(*x, chunk=256, **m),
}


def inputs(B=2, H=3, T=23, d=4, e=5):
    made = torch.Generator().manual_seed(0)
    shapes = (B, H, T, d), (B, H, T, d), (B, H, T, e), (B, H, d, e)
    return [torch.randn(shape, generator=made, dtype=torch.float64, requires_grad=True) for shape in shapes]


def gradients(form, mask):
    """Of a sum that weighs every output and every number of the returned state differently."""
    q, k, v, state = inputs()
    out, after = form(q, k, v, ops.decay_slopes(3, 1, 4), state, mask=mask)
    real = 1 if mask is None else mask[:, None, :, None]
    made = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=made, dtype=x.dtype) for x in (out, after)]
    return torch.autograd.grad((out * real * weights[0]).sum() + (after * weights[1]).sum(), (q, k, v, state))


MASKS = {"no padding": None, "padding": torch.rand(2, 23, generator=torch.Generator().manual_seed(3)) < 0.6}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_three_forms_one_gradient(form, mask):
    """Of q, k, v and the initial state, in float64."""
    for got, want in zip(gradients(FORMS[form], mask), gradients(FORMS["direct"], mask), strict=True):
        assert_same(got, want)


def test_padding_has_no_gradient():
    """What was not written and not read moves nothing."""
    mask = MASKS["padding"]
    for form in FORMS.values():
        for gradient in gradients(form, mask)[:3]:
            assert not gradient.transpose(1, 2)[~mask].any()


@pytest.mark.parametrize("form", ["recurrent", "chunks of 7"])
def test_the_gradient_is_the_slope_of_the_function(form):
    """Against finite differences, which know nothing of any formula."""
    q, k, v, state = (x.detach()[:1, :1, :9].requires_grad_() for x in inputs())
    slopes = ops.decay_slopes(1, 0, 4)
    assert gradcheck(lambda *x: FORMS[form](*x[:3], slopes, x[3]), (q, k, v, state))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_softmax_attention_gradients(implementation):
    """Shared key heads, a window, and a query that sees no key: finite differences agree, and nothing is NaN."""
    made = torch.Generator().manual_seed(0)
    shapes = (1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 2)
    q, k, v = (torch.randn(shape, generator=made, dtype=torch.float64, requires_grad=True) for shape in shapes)
    visible = torch.tensor([[[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]]).bool()
    assert gradcheck(lambda *x: ops.softmax_attention(*x, visible, implementation=implementation), (q, k, v))


def labels_for(head: str, ids):
    """Some labels of the right shape, made from the ids."""
    return {
        "MiniMaxForCausalLM": ids,
        "MiniMaxForSequenceClassification": ids[:, 0] % 3,
        "MiniMaxForTokenClassification": ids % 3,
        "MiniMaxForQuestionAnswering": ids[:, :2] % ids.shape[1],
    }[head]


@every_head
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_weight_learns(head, implementation, dtype):
    """A padded batch through each head: one backward, and every parameter has a gradient that is finite and not zero.

    But for one: the answer's ends are choices among positions, to which a constant added to all makes no difference.
    """
    config = small(sliding_window=4, shared_intermediate_size=8, num_experts_per_tok=5)  # so that no expert is left out
    twin = getattr(TORCH.package, head)
    model = twin.from_reference(lively(config, head), dtype=dtype, attn_implementation=implementation)
    ids = torch.tensor(prompts(config, 4, 17))
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, -6:], mask[2, 3:9] = 0, 0, 0
    if head == "MiniMaxModel":
        loss = model(ids, mask).last_hidden_state[mask.bool()].square().sum()
    else:
        loss = model(ids, mask, labels=labels_for(head, ids), output_router_logits=True).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name == "qa_outputs.bias", name


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_rows_and_padding_do_not_touch_each_other(side):
    """A loss of row 0 has no gradient at any other row, nor at row 0's padding."""
    model = TORCH.model(lively(small(LIGHTNING, SOFTMAX, LIGHTNING)))
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, {"left": slice(0, 4), "right": slice(8, 12), "holes": slice(3, 9, 2)}[side]] = 0
    embeds = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    logits = model(inputs_embeds=embeds, attention_mask=mask).logits
    logits[0][mask[0].bool()].square().sum().backward()
    assert not embeds.grad[1:].any() and not embeds.grad[0][mask[0] == 0].any()
    assert embeds.grad[0][mask[0] == 1].any(dim=-1).all()


@pytest.mark.parametrize("window", [None, 3])
def test_packed_documents_do_not_touch_each_other(window):
    """The embeddings' gradient of one document is that of the document alone, and 0 from all the others."""
    model = TORCH.model(lively(small(sliding_window=window)))
    ends = [0, 1, 9, 14]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 14, 32)))
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 14, 256)))
    for start, end in zip(ends, ends[1:]):
        packed, alone = x.clone().requires_grad_(), x[:, start:end].clone().requires_grad_()
        out = model(inputs_embeds=packed, cu_seqlens=torch.tensor(ends)).logits
        (out * weight)[:, start:end].sum().backward()
        (model(inputs_embeds=alone).logits * weight[:, start:end]).sum().backward()
        assert_same(packed.grad[:, start:end], alone.grad)
        assert not packed.grad[:, :start].any() and not packed.grad[:, end:].any()


def test_the_gradient_through_a_cache():
    """Four calls on one cache have the gradient of one long call: an earlier call's memory stays whole."""
    model = TORCH.model(lively(small(LIGHTNING, SOFTMAX)))
    ids = torch.tensor(prompts(model.config, 2, 12))
    weights = [p for p in model.parameters()]
    whole = torch.autograd.grad(model(ids).logits.square().sum(), weights)
    cache = TORCH.cache(model.config, 2)
    pieces = [model(ids[:, part], cache=cache).logits for part in (slice(0, 5), slice(5, 6), slice(6, 9), slice(9, 12))]
    parts = torch.autograd.grad(torch.cat(pieces, dim=1).square().sum(), weights)
    for got, want in zip(parts, whole, strict=True):
        assert_same(got, want)


def test_the_balance_loss_reaches_the_routers_alone():
    """Its gradient flows through probabilities, not through counts."""
    model = TORCH.model(lively(small(LIGHTNING)))
    ids = torch.tensor(prompts(model.config, 2, 12))
    model(ids, output_router_logits=True).aux_loss.backward()
    assert model.model.layers[0].mlp.gate.weight.grad.any()
    assert model.model.layers[0].mlp.experts.down_proj.grad is None


def test_a_step_of_training_lowers_the_loss():
    """The twin learns a text by heart, in a few steps."""
    config = small(LIGHTNING, SOFTMAX)
    model = MiniMaxForCausalLM(config, seed=0)
    ids = torch.tensor(prompts(config, 2, 12))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(ids, labels=ids, output_router_logits=True).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
