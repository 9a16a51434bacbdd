"""What lies between the matmuls, fused, is the layer; and a whole model of such layers is the model.

The interpreter walks through the kernels on a CPU, and a GPU runs them compiled where there is one.
"""

from functools import lru_cache

import pytest
import torch
from close import TORCH, array, assert_same, edited, error, every_configuration, lively, prompts, small
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.trace import UNIT_ROUNDOFF
from minimax_torch import MiniMaxForCausalLM, ops
from minimax_torch.kernels import choose, layer
from minimax_torch.kernels import experts as by_sort

fused = pytest.importorskip("minimax_torch.kernels.fused", reason="Triton exists for Linux only")

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
every_device = pytest.mark.parametrize("device", DEVICES)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- Residual and norm -----------------------------------------------------------------------------------------------

KINDS = ["an update", "one with a factor a token", "what experts said"]


def a_sum(kind, B=2, T=5, D=24, K=2, dtype=torch.float64):
    """Arguments of add_norm, and the same in ops."""
    carried, gain = numbers(B, T, D, dtype=dtype), numbers(D, seed=1, dtype=dtype)
    more = {}
    if kind == "what experts said":
        back = torch.randperm(B * T * K, generator=torch.Generator().manual_seed(2))
        update, shares = numbers(B * T * K, D, seed=3, dtype=dtype), numbers(B, T, K, seed=4).abs().to(gain.dtype)
        more = {"back": back, "shares": shares}
    else:
        update = numbers(B, T, D, seed=3, dtype=dtype)
        if kind == KINDS[1]:
            more = {"square": numbers(B, T, seed=5).square().to(torch.promote_types(dtype, torch.float32)), "width": 7}
    return (carried, update, 1.5, 0.25, gain, 1e-5), more


def one_by_one(carried, update, alpha, beta, gain, eps, *, square=None, width=1, back=None, shares=None):
    """Add, then norm."""
    if back is not None:
        heard = update[back].unflatten(0, shares.shape)  # (B, T, K, D)
        update = (shares[..., None] * heard).sum(dim=2)
    elif square is not None:
        update = update / (square[..., None] / width + 1e-6).sqrt()
    x = ops.add_residual(carried, carried, update.to(carried.dtype), alpha, beta)
    return x, ops.rms_norm(x, gain, eps)


def there(device, values, named):
    give = lambda x: x.to(device) if isinstance(x, torch.Tensor) else x  # noqa: E731
    return [give(x) for x in values], {name: give(x) for name, x in named.items()}


@every_device
@pytest.mark.parametrize("D", [1, 24, 96])
@pytest.mark.parametrize("kind", KINDS)
def test_residual_and_norm(kind, D, device):
    values, named = a_sum(kind, D=D)
    moved, more = there(device, values, named)
    for mine, theirs in zip(fused.add_norm(*moved, **more), one_by_one(*values, **named), strict=True):
        assert_same(mine.cpu(), theirs)


@every_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_residual_and_norm_round_no_worse_than_one_by_one(kind, dtype, device):
    values, named = a_sum(kind, D=64, dtype=getattr(torch, dtype))
    wide = [x.double() if isinstance(x, torch.Tensor) else x for x in values]
    exact = one_by_one(*wide, **{n: x.double() if n in ("square", "shares") else x for n, x in named.items()})
    plain = one_by_one(*values, **named)
    moved, more = there(device, values, named)
    for mine, theirs, want in zip(fused.add_norm(*moved, **more), plain, exact, strict=True):
        off, theirs_off = (error(array(x.cpu().double()), array(want)) for x in (mine, theirs))
        assert off <= 2 * theirs_off + 4 * UNIT_ROUNDOFF[dtype] * float(want.square().mean() ** 0.5)


# --- Experts ---------------------------------------------------------------------------------------------------------


@every_device
def test_silu_times_up(device):
    hidden = numbers(5, 2 * 1030)
    gate, up = hidden.chunk(2, dim=1)
    assert_same(fused.silu_up(hidden.to(device)).cpu(), ops.silu(gate) * up)


CHOSEN = {
    "each once": [0, 1, 2, 3],
    "none of some": [3, 1, 3, 1, 3, 3],
    "one gets forty": [2] * 40 + [0, 0],
    "fewer than experts": [2, 1],
    "fewer, and all of one": [3, 3],
    "more than a block": [3, 0, 1, 0, 2, 3] * 30,
}


@every_device
@pytest.mark.parametrize("sort", [by_sort.sort, fused.sort], ids=["of many", "of few"])
@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN)
def test_sorting_puts_every_choice_where_it_is_found_again(chosen, sort, device):
    chosen = torch.tensor(chosen)
    order, back, ends = (y.cpu() for y in sort(chosen.to(device), 4))
    spread = chosen.repeat_interleave(3).to(device)[::3]  # a view
    assert torch.equal(sort(spread, 4)[0].cpu(), order)
    assert torch.equal(order, chosen.argsort(stable=True))
    assert torch.equal(order[back], torch.arange(len(chosen)))
    assert torch.equal(ends.long(), chosen.bincount(minlength=4).cumsum(0))
    assert torch.equal(chosen[order], chosen.sort().values)


@every_device
@pytest.mark.parametrize("n, m", [(24, 10), (130, 40)])
@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN)
def test_few_rows_through_a_stack(chosen, n, m, device):
    """Both products of an expert: gate and up with SiLU, from tokens; and down, from choices."""
    chosen, K = torch.tensor(chosen), 2
    order, _, ends = by_sort.sort(chosen, 4)
    x, up, down = numbers(len(chosen) // K, n), numbers(4, 2 * m, n, seed=1), numbers(4, n, m, seed=2)
    hidden = fused.few(*(y.to(device) for y in (x, up, ends, order)), K).cpu()
    gates = torch.stack([up[e] @ x[c // K] for c, e in zip(order.tolist(), chosen[order].tolist(), strict=True)])
    want = ops.silu(gates[:, :m]) * gates[:, m:]
    assert_same(hidden, want)
    said = fused.few(*(y.to(device) for y in (hidden, down, ends))).cpu()
    assert_same(said, torch.stack([down[e] @ y for e, y in zip(chosen[order].tolist(), want, strict=True)]))


@pytest.mark.parametrize("tokens", [1, 33])
def test_all_experts_at_once_have_the_ops_gradient(tokens, monkeypatch):
    """As on a GPU, where one grouped product takes the place of a product an expert."""
    x, logits = numbers(1, tokens, 8), numbers(1, tokens, 6, seed=1)
    weights, indices = ops.route(logits, 2)
    asked = [y.requires_grad_() for y in (x, weights, numbers(6, 24, 8, seed=2), numbers(6, 8, 12, seed=3))]
    scale = numbers(*x.shape, seed=4)

    def both(form):
        y = form(asked[0], asked[1], indices, asked[2], asked[3])
        return [y, *torch.autograd.grad((y * scale).sum(), asked)]

    with choose.plain():
        want = both(ops.mix_experts)
    monkeypatch.setattr(by_sort, "groups", lambda x, *stacks: len(stacks) == 2)
    for mine, theirs in zip(both(ops.mix_experts), want, strict=True):
        assert_same(mine, theirs)


# --- Whole models ----------------------------------------------------------------------------------------------------


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The interpreter stands for the GPU; counts the layers that are fused."""
    calls = []
    real = layer.decoder_layer
    monkeypatch.setattr(layer, "decoder_layer", lambda *a: calls.append(1) or real(*a))
    monkeypatch.setattr(layer, "on_gpu", lambda x: True)
    monkeypatch.setattr(layer, "TYPES", (torch.float64, torch.float32, torch.bfloat16))
    monkeypatch.setattr(choose, "has_triton", lambda *a: True)
    return calls


REAL = torch.arange(26).reshape(2, 13) % 5 != 1
CALLS = {
    "plain": lambda m, ids: m(ids, output_hidden_states=True, output_router_logits=True),
    "padded": lambda m, ids: m(ids, REAL, use_cache=True),
    "packed": lambda m, ids: m(ids[:1], cu_seqlens=torch.tensor([0, 4, 13]), use_cache=True),
}


@pytest.mark.slow
@every_configuration
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_model_is_the_model(config, call, as_on_a_gpu):
    """Fused where the kernels know it, and else as it is."""
    judge(config, call, as_on_a_gpu)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_model_is_the_model(call, as_on_a_gpu):
    judge(small(LIGHTNING, SOFTMAX), call, as_on_a_gpu)


@torch.no_grad()
def judge(config, call, as_on_a_gpu):
    """In float64: logits, hidden states, router logits and what is remembered."""
    model, ids = TORCH.model(lively(config)), torch.tensor(prompts(config, 2, 13))
    got = call(model, ids)
    known = config.hidden_act == "silu" and not config.shared_intermediate_size
    assert len(as_on_a_gpu) == known * config.num_hidden_layers
    with choose.plain():
        want = call(model, ids)
    seen = REAL if call is CALLS["padded"] else slice(None)  # what stands at padding means nothing
    assert_same(got.logits[seen], want.logits[seen])
    for name in ("hidden_states", "router_logits"):
        for mine, theirs in zip(getattr(got, name) or [], getattr(want, name) or [], strict=True):
            assert_same(mine, theirs)
    if want.cache is not None:
        for mine, theirs in zip(got.cache.layers, want.cache.layers, strict=True):
            held = "state" if hasattr(theirs, "state") else "keys"
            assert_same(getattr(mine, held), getattr(theirs, held))


@torch.no_grad()
def test_decoding(as_on_a_gpu):
    """A prompt, then token after token from the cache."""
    config = small(LIGHTNING, SOFTMAX, LIGHTNING)
    model, ids = TORCH.model(lively(config)), torch.tensor(prompts(config, 3, 12))

    def decoded():
        cache, found = model.empty_cache(3), []
        for part in (slice(0, 7), *(slice(t, t + 1) for t in range(7, 12))):
            found.append(model(ids[:, part], cache=cache).logits)
        return torch.cat(found, dim=1)

    got = decoded()
    assert len(as_on_a_gpu) == 6 * 3
    with choose.plain():
        assert_same(got, decoded())


def test_it_steps_aside(as_on_a_gpu, tmp_path):
    """For gradients, hooks, other ops, jitter in training, the plain form, weights quantised or laid out otherwise."""
    config = small(LIGHTNING, SOFTMAX)
    reference = lively(config)
    model, ids = TORCH.model(reference).eval(), torch.tensor(prompts(config, 1, 5))

    def fuses(model=model):
        as_on_a_gpu.clear()
        model(ids)
        return bool(as_on_a_gpu)

    assert not fuses()  # gradients
    with torch.no_grad():
        assert fuses()
        with choose.plain():
            assert not fuses()
        with ops.using(rms_norm=lambda x, weight, eps=1e-5: ops.norms.rms_norm(x, weight, eps)):
            assert not fuses()
        hook = model.model.layers[1].mlp.register_forward_hook(lambda *a: None)
        assert not fuses()
        hook.remove()
        experts = model.model.layers[0].mlp.experts
        turned = torch.nn.Parameter(experts.down_proj.mT.contiguous().mT)
        kept, experts.down_proj = experts.down_proj, turned
        assert not fuses()
        experts.down_proj = kept
        model.model.layers[1].mlp.jitter = 0.1
        assert not fuses(model.train())
        assert fuses(model.eval())
        reference.save_pretrained(tmp_path)
        assert not fuses(MiniMaxForCausalLM.from_pretrained(tmp_path, torch.float64, quantization="int8"))


@torch.no_grad()
def test_not_a_number_stays_one(as_on_a_gpu):
    """In the row where it is, and in no other."""
    model = TORCH.model(lively(small(LIGHTNING, SOFTMAX)))
    x = numbers(2, 6, model.config.hidden_size)
    x[1, 3] = torch.nan
    out = model(inputs_embeds=x).logits
    assert out[0].isfinite().all() and out[1, 3:].isnan().all()


# --- Mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "the stream is not scaled": ("alpha * tl.load", "tl.load"),
    "every expert has the first one's share": ("shares + t * K + k", "shares + t * K"),
    "the first expert speaks twice": ("tl.load(back + t * K + k)", "tl.load(back + t * K)"),
    "the inner norm's factor is left out": ("if square is not None:", "if False:"),
    "the mean is over the block": ("plus) / D + eps", "plus) / BLOCK + eps"),
    "every token has the first one's experts": ("// K\n", "* 0\n"),
    "up is gate": ("w + M * N + at", "w + at"),
    "an expert's rows end at sixteen": ("range(first, last, ROWS)", "range(first, min(last, first + ROWS), ROWS)"),
    "every expert is the first": ("e.to(tl.int64) * (sides", "0 * (sides"),
    "of an expert's choices only the first is heard": ("first == p, last", "first == p, first + 1"),
    "the first expert is left out": ("<= p)", "< p)"),
    "equals go backwards": ("(i < r)", "(i > r)"),
    "only a block is looked at": ("range(0, n)", "range(0, min(n, BLOCK))"),
    "an expert ends where it begins": ("one <= r", "one < r"),
}  # fmt: skip


def answers(module):
    """What a module's kernels compute for a few inputs."""
    found = [y for kind in KINDS for y in module.add_norm(*a_sum(kind)[0], **a_sum(kind)[1])]
    found += module.sort(torch.tensor(CHOSEN["more than a block"]), 4)
    for name in ("one gets forty", "fewer, and all of one"):
        chosen = torch.tensor(CHOSEN[name])
        order, _, ends = by_sort.sort(chosen, 4)
        hidden = module.few(numbers(len(chosen) // 2, 24), numbers(4, 20, 24, seed=1), ends, order, 2)
        found += [hidden, module.few(hidden, numbers(4, 24, 10, seed=2), ends)]
    return found


@lru_cache(maxsize=1)
def right_answers():
    """The same of the module as it is."""
    return answers(fused)


@pytest.fixture
def unwritten_is_nan():
    """New tensors hold NaN, not what happened to lie there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


UNCHANGED = ("i = tl.arange(0, BLOCK)", "i = 0 + tl.arange(0, BLOCK)")


@pytest.mark.slow
@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_a_mistake_is_noticed(mistake, tmp_path):
    module = edited(tmp_path, fused, *(MISTAKES[mistake] if mistake else UNCHANGED))
    same = all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(answers(module), right_answers(), strict=True))
    assert same is (mistake is None)
