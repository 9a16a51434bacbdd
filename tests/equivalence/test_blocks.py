"""Many tokens on a CPU go through a layer in blocks: it is the model, and steps aside when anybody looks."""

import pytest
import torch
from close import (
    ROUNDING,
    TORCH,
    assert_same,
    assert_same_cache,
    edited,
    error,
    every_configuration,
    lively,
    prompts,
    small,
)
from minimax_numpy.config import LIGHTNING
from minimax_torch import MiniMaxForCausalLM, ops
from minimax_torch.kernels import blocks
from minimax_torch.kernels.choose import plain
from minimax_torch.layers import RMSNorm


@pytest.fixture
def calls(monkeypatch):
    """Blocks of few tokens, whatever the text's length; what each call of a layer was given."""
    found, run = [], blocks.decoder_layer
    for name, size in (("TOKENS", 9), ("ROUTED", 7), ("FEWEST", 1)):
        monkeypatch.setattr(blocks, name, size)
    monkeypatch.setattr(blocks, "decoder_layer", lambda *given: found.append(given) or run(*given))
    return found


def both(model, ids, mask=None, caches=(None, None), **asked):
    """What the model gives in blocks, and as its ops are written; each goes on in a cache of its own."""
    with torch.no_grad():
        got = model(ids, mask, cache=caches[0], use_cache=True, **asked)
        with plain():
            return got, model(ids, mask, cache=caches[1], use_cache=True, **asked)


def compare(config, rows, calls):
    """Padded on either side, past a window's end; then more tokens after those."""
    model = TORCH.model(lively(config))
    ids = torch.tensor(prompts(config, rows, 37))
    mask = torch.ones_like(ids)
    mask[1:2, :4], mask[2:3, 29:] = 0, 0
    got, want = both(model, ids, mask)
    assert len(calls) == (0 if config.shared_intermediate_size else config.num_hidden_layers)
    assert_same(got.logits[mask.bool()], want.logits[mask.bool()])
    assert_same_cache(got.cache, want.cache)
    more = both(model, ids[:, :11], caches=(got.cache, want.cache))
    assert_same(more[0].logits, more[1].logits)


@every_configuration
@pytest.mark.parametrize("rows", [1, 3])
def test_it_is_the_model(config, rows, calls):
    compare(config, rows, calls)


@pytest.mark.parametrize("tokens, routed", [(1, 1), (8, 3), (20, 64), (64, 20), (2**20, 2**20)])
@pytest.mark.parametrize("T", [1, 7, 8, 9, 40])
def test_however_long_a_block_is(T, tokens, routed, calls, monkeypatch):
    """Shorter than a chunk, of several, longer than the text; and a text that ends within a chunk."""
    monkeypatch.setattr(blocks, "TOKENS", tokens)
    monkeypatch.setattr(blocks, "ROUTED", routed)
    model = TORCH.model(lively(small()))
    got, want = both(model, torch.tensor(prompts(model.config, 2, T)))
    assert len(calls) == 4
    assert_same(got.logits, want.logits)
    assert_same_cache(got.cache, want.cache)


def test_it_rounds_no_worse(calls):
    """float32: off from float64 by at most twice what the ops as written are off."""
    exact, fast = (TORCH.model(lively(small())) for _ in range(2))
    fast.float()
    ids = torch.tensor(prompts(exact.config, 2, 40))
    (got, plainly), (_, want) = both(fast, ids), both(exact, ids)
    assert error(got.logits, want.logits) <= 2 * error(plainly.logits, want.logits) <= ROUNDING


def test_what_others_hold_is_not_written_over(calls):
    """Embeddings given, embeddings looked at, and hidden states asked for; and a block's memory is nobody's result."""
    model = TORCH.model(lively(small()))
    ids, seen = torch.tensor(prompts(model.config, 2, 20)), []
    handle = model.model.embed_tokens.register_forward_hook(lambda m, given, x: seen.append((x, x.clone())))
    got, want = both(model, ids, output_hidden_states=True, output_router_logits=True)
    for name in ("hidden_states", "router_logits"):
        for mine, theirs in zip(getattr(got, name), getattr(want, name), strict=True):
            assert_same(mine, theirs)
    kept = [x.clone() for x in (*got.router_logits, got.cache.layers[0].state)]
    both(model, ids.flip(1))
    handle.remove()
    embeds = seen[0][1].clone()
    assert_same(both(model, None, inputs_embeds=embeds)[0].logits, want.logits)
    assert len(calls) == 12 and torch.equal(embeds, seen[0][1])
    assert all(torch.equal(x, before) for x, before in seen)
    assert all(torch.equal(x, y) for x, y in zip((*got.router_logits, got.cache.layers[0].state), kept, strict=True))


def test_what_padding_holds_reaches_nobody(calls):
    """NaN in a padded place: the real tokens have their numbers."""
    model = TORCH.model(lively(small()))
    embeds = torch.randn(2, 20, model.config.hidden_size, dtype=torch.float64)
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1, 12:] = 0
    _, want = both(model, None, mask, inputs_embeds=embeds)
    embeds[1, 12:] = torch.nan
    got, _ = both(model, None, mask, inputs_embeds=embeds)
    assert len(calls) == 8
    assert_same(got.logits[mask.bool()], want.logits[mask.bool()])
    assert_same_cache(got.cache, want.cache)


def test_nan_stays_nan(calls):
    """In a weight, it reaches every logit."""
    model = TORCH.model(lively(small()))
    model.model.layers[1].self_attn.output_gate.weight.data[0, 0] = torch.nan
    with torch.no_grad():
        assert model(torch.tensor(prompts(model.config, 2, 20))).logits.isnan().all() and len(calls) == 4


# --- It steps aside ------------------------------------------------------------------------------------------------


def ask(model, **asked):
    model(torch.tensor(prompts(model.config, 1, 20)), **asked)


@pytest.mark.parametrize("why", ["hooks", "a swapped op", "gradients", "chance", "autocast", "bfloat16", "packing"])
def test_it_steps_aside(why, calls):
    model, found = TORCH.model(lively(small())), []
    module = model.model.layers[1].mlp.gate
    with torch.set_grad_enabled(why == "gradients"):
        if why == "hooks":
            module.register_forward_hook(lambda *call: found.append(call))
            ask(model)
            assert len(found) == 1
        elif why == "a swapped op":
            with ops.using(mix_experts=lambda x, *rest: found.append(rest) or x):
                ask(model)
            assert len(found) == 4
        elif why == "gradients":
            ask(model)
        elif why == "chance":
            for layer in model.model.layers:
                layer.mlp.jitter = 0.1
            model.model.layers[3].train()
            ask(model)
        elif why == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                ask(model.float())
        elif why == "bfloat16":
            ask(model.bfloat16())
        else:
            ask(model, cu_seqlens=torch.tensor([0, 7, 20]))
    assert not calls


def test_weights_that_are_elsewhere_run_one_by_one(calls, tmp_path):
    """Quantised, read from disk as they are needed, or wrapped by something that is no weight."""
    reference = lively(small())
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        ask(MiniMaxForCausalLM.from_pretrained(tmp_path, quantization="int8"))
        ask(MiniMaxForCausalLM.from_pretrained(tmp_path, stream=True))
        model = TORCH.model(reference)
        torch.nn.utils.parametrize.register_parametrization(
            model.model.layers[0].self_attn.qkv_proj, "weight", torch.nn.Identity()
        )
        ask(model)
        assert not calls


class Doubled(torch.nn.Linear):
    """Another class, which computes something else with the same weight."""

    def forward(self, x):
        return 2 * super().forward(x)


class Wrapped(torch.nn.Module):
    """A part within another, under whose name its parts are not."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *given):
        return self.part(*given)


class Unlike(torch.Tensor):
    """A tensor that is not quite one."""


def linear(bias=True, kind=torch.nn.Linear):
    return lambda old: kind(old.in_features, old.out_features, bias, dtype=torch.float64)


CHANGED = {  # what was changed: which part of a lightning layer, and what stands there then
    "a bias": ("self_attn.qkv_proj", linear()),
    "another class": ("self_attn.out_proj", linear(False, Doubled)),
    "a wrapped attention": ("self_attn", Wrapped),
    "wrapped experts": ("mlp", Wrapped),
    "a wrapped norm": ("input_layernorm", Wrapped),
    "a norm of another kind": ("self_attn.norm", lambda old: RMSNorm(len(old.weight), 0.1).double()),
    "a state that is changed": ("self_attn.state", lambda old: torch.nn.Linear(16, 16, False, dtype=torch.float64)),
    "a sparse weight": ("self_attn.out_proj.weight", lambda w: torch.nn.Parameter(w.detach().to_sparse_csr())),
    "a weight of another class": (
        "self_attn.out_proj.weight",
        lambda w: torch.nn.Parameter(w.detach().as_subclass(Unlike)),
    ),
}


@pytest.mark.parametrize("part, change", CHANGED.values(), ids=CHANGED.keys())
def test_what_was_changed_runs(part, change, calls):
    model = TORCH.model(lively(small()))
    where, _, name = f"model.layers.1.{part}".rpartition(".")
    module = model.get_submodule(where)
    setattr(module, name, change(getattr(module, name)))
    got, want = both(model, torch.tensor(prompts(model.config, 1, 20)))
    assert not calls
    assert_same(got.logits, want.logits)


@pytest.mark.parametrize("of", ["a module", "its class"])
def test_a_forward_that_was_changed_runs(of, calls, monkeypatch):
    model = TORCH.model(lively(small()))
    attention = model.model.layers[1].self_attn
    run = attention.forward
    if of == "a module":
        attention.forward = lambda x, *rest: run(2 * x, *rest)
    else:
        plainly = type(attention).forward
        monkeypatch.setattr(type(attention), "forward", lambda self, x, *rest: plainly(self, 2 * x, *rest))
    got, want = both(model, torch.tensor(prompts(model.config, 1, 20)))
    assert not calls
    assert_same(got.logits, want.logits)


def test_settings_are_the_modules_own(calls):
    """An epsilon or an activation that was set after the model was built."""
    model = TORCH.model(lively(small()))
    layer = model.model.layers[1]
    layer.input_layernorm.eps, layer.post_attention_layernorm.eps = 0.5, 0.3
    layer.mlp.experts.hidden_act = "gelu"
    got, want = both(model, torch.tensor(prompts(model.config, 1, 20)))
    assert len(calls) == 4
    assert_same(got.logits, want.logits)


# --- As it is, without smaller blocks ------------------------------------------------------------------------------


@pytest.mark.parametrize("T, blocks_run", [(63, False), (64, True)])
def test_few_tokens_run_one_by_one(T, blocks_run, monkeypatch):
    found, run = [], blocks.decoder_layer
    monkeypatch.setattr(blocks, "decoder_layer", lambda *given: found.append(given) or run(*given))
    model = TORCH.model(lively(small()))
    with torch.no_grad():
        model(torch.tensor(prompts(model.config, 2, T)))
    assert bool(found) is blocks_run


def test_blocks_as_they_are():
    """Three rows of 700, padded on either side: several chunks of each in a block, and the last one short."""
    model = TORCH.model(lively(small()))
    ids, mask = torch.tensor(prompts(model.config, 3, 700)), torch.ones(3, 700, dtype=torch.int64)
    mask[1, :90], mask[2, 611:] = 0, 0
    got, want = both(model, ids, mask)
    assert_same(got.logits[mask.bool()], want.logits[mask.bool()])
    assert_same_cache(got.cache, want.cache)


@pytest.mark.slow
def test_a_compiled_model_runs_its_modules(calls):
    model = TORCH.model(lively(small(LIGHTNING)))
    ids = torch.tensor(prompts(model.config, 1, 20))
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager")(ids).logits
        assert not calls
        assert_same(compiled, model(ids).logits, ROUNDING)  # its slopes are float32


# --- Mistakes are seen ---------------------------------------------------------------------------------------------

MISTAKES = {
    "the state does not go on": ("out, S, _ = walk", "out, _, _ = walk"),
    "a state handed in is forgotten": ("if state is None else state.to(x.dtype)", ""),
    "padding is remembered": ("if step.mask is not None:", "if False:"),
    "the wrong epsilon": ("INNER_EPS, y)", "c.rms_norm_eps, y)"),
    "the norm before the gate is left out": ("y = norm(y, module.norm.weight, INNER_EPS, y)", "pass"),
    "the gate's sigmoid": ("gate.sigmoid_().mul_(y)", "gate.mul_(y)"),
    "the residual of the other kind": (
        "carried = n1.view(B, n * m, D) if c.postnorm else",
        "carried = n1.view(B, n * m, D) if not c.postnorm else",
    ),
    "heads in the other order": (".copy_(out.permute(0, 2, 3, 1, 4))", ".copy_(out.flip(1).permute(0, 2, 3, 1, 4))"),
    "attention's factors for experts": ("c.mlp_alpha_factor, c.mlp_beta_factor, here", "layer.alpha, layer.beta, here"),
    "beta is forgotten": ("update if beta == 1 else update.mul_(beta)", "update"),
    "a block's memory is shared by two": ('room("out", rows', 'room("gate", rows'),
}


UNCHANGED = ("out, S, _ = walk", "out, S, *_ = walk")


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_a_mistake_is_seen(mistake, calls, tmp_path, monkeypatch):
    """Each line that is changed must break the comparison, in one of two models; none, in no model."""
    module, caught = edited(tmp_path, blocks, *(MISTAKES[mistake] if mistake else UNCHANGED)), 0
    for size in ("TOKENS", "ROUTED"):
        setattr(module, size, getattr(blocks, size))
    monkeypatch.setattr(blocks, "decoder_layer", lambda *given: calls.append(given) or module.decoder_layer(*given))
    for config in (small(), small(postnorm=False)):
        calls.clear()
        try:
            compare(config, 3, calls)
        except AssertionError:
            caught += 1
    assert bool(caught) is bool(mistake)
