"""Whole models: the twin gives the reference's numbers in every configuration, head and way of calling."""

import sys
from types import SimpleNamespace

import minimax_torch
import numpy as np
import pytest
import torch
from close import (
    CONFIGURATIONS,
    NUMPY,
    TORCH,
    array,
    assert_one_sentence,
    assert_same,
    assert_same_cache,
    every_configuration,
    every_head,
    lively,
    prompts,
    small,
)
from minimax_numpy.config import HEADS, LIGHTNING, SOFTMAX
from minimax_numpy.trace import Trace, recording

MASK = np.array([[0] * 4 + [1] * 17, [1] * 21, [1, 1, 0, 1, 0, 0] + [1] * 10 + [0] * 5])


def labels_for(head: str, config, rng) -> dict:
    """Labels such as each head is trained on."""
    if head == "MiniMaxModel":
        return {}
    shape, high = {
        "MiniMaxForCausalLM": ((3, 21), config.vocab_size),
        "MiniMaxForSequenceClassification": ((3,), config.num_labels),
        "MiniMaxForTokenClassification": ((3, 21), config.num_labels),
        "MiniMaxForQuestionAnswering": ((3, 2), 21),
    }[head]
    return {"labels": rng.integers(0, high, shape)}


def assert_same_output(got, want) -> None:
    """Everything that a call returns."""
    for name in ("last_hidden_state", "logits", "loss", "aux_loss"):
        assert (getattr(got, name) is None) == (getattr(want, name) is None), name
        if getattr(want, name) is not None:
            assert_same(getattr(got, name), getattr(want, name))
    for name in ("hidden_states", "router_logits"):
        for mine, theirs in zip(getattr(got, name) or [], getattr(want, name) or [], strict=True):
            assert_same(mine, theirs)
    assert (got.cache is None) == (want.cache is None)
    if want.cache is not None:
        assert_same_cache(got.cache, want.cache)


@every_head
@every_configuration
def test_the_twin_is_the_reference(config, head):
    """Logits, losses, hidden states, router logits and what is remembered, for a padded batch of several chunks."""
    model = lively(config, head)
    rng = np.random.default_rng(0)
    asked = {"use_cache": True, "output_hidden_states": True, "output_router_logits": True}
    inputs = {"input_ids": prompts(config, 3, 21), "attention_mask": MASK, **labels_for(head, config, rng), **asked}
    want, got = NUMPY.call(model, **inputs), TORCH.call(model, **inputs)
    assert len(want.hidden_states) - 2 == len(want.router_logits) == config.num_hidden_layers
    assert_same_output(got, want)


@every_configuration
def test_ways_of_calling(config):
    """Plain, on a cache, with positions, with embeddings, packed, with the last logits only: the same every time."""
    model = lively(config)
    ids = prompts(config, 2, 13)
    embeds = np.random.default_rng(0).standard_normal((2, 13, config.hidden_size))
    shared = {side: side.cache(config, 2) for side in (NUMPY, TORCH)}
    for inputs in (
        {"input_ids": ids, "labels": ids},
        {"input_ids": ids, "cache": shared},
        {"input_ids": ids[:, :1], "cache": shared},
        {"input_ids": ids[:, :6], "attention_mask": MASK[:2, 3:9], "cache": shared},
        {"input_ids": ids[:, :3], "cache": shared},  # rows of different lengths, no mask
        {"input_ids": ids, "position_ids": np.arange(26).reshape(2, 13)[:, ::-1].copy()},
        {"inputs_embeds": embeds, "attention_mask": MASK[:2, :13]},
        {"input_ids": ids[:1], "cu_seqlens": np.array([0, 5, 6, 13]), "labels": ids[:1], "use_cache": True},
        {"input_ids": ids, "logits_to_keep": 2},
    ):
        calls = [{**inputs, "cache": inputs["cache"][s]} if "cache" in inputs else inputs for s in (NUMPY, TORCH)]
        assert_same_output(TORCH.call(model, **calls[1]), NUMPY.call(model, **calls[0]))


@pytest.mark.parametrize("labels", [np.array([0, 2, 1]), np.eye(3) * 0.7 + 0.1], ids=["classes", "shares"])
def test_a_row_may_have_one_class_or_shares_of_each(labels):
    model = lively(small(), "MiniMaxForSequenceClassification")
    inputs = {"input_ids": prompts(model.config, 3, 21), "attention_mask": MASK, "labels": labels}
    assert_same_output(TORCH.call(model, **inputs), NUMPY.call(model, **inputs))


def test_one_label_is_a_number_to_hit():
    model = lively(small(num_labels=1), "MiniMaxForSequenceClassification")
    inputs = {"input_ids": prompts(model.config, 3, 21), "labels": np.array([0.5, -1.0, 2.0])}
    assert_same_output(TORCH.call(model, **inputs), NUMPY.call(model, **inputs))


@every_configuration
def test_generation_token_for_token(config):
    """A padded batch, past the window and past a chunk."""
    model = lively(config)
    ids = prompts(config, 3, 21)
    want = model.generate(ids, MASK, max_new_tokens=8)
    got = TORCH.model(model).generate(torch.tensor(ids), torch.tensor(MASK), max_new_tokens=8)
    assert got.tolist() == want.tolist()


def test_flash_attention_is_asked_for_as_it_wants_to_be(monkeypatch):
    """Time before heads, grouped keys as they are, causal up to the last key; padding and windows stay with sdpa.

    The package needs a GPU, so its place is taken by its definition. Absent, it is one sentence.
    """
    config, calls = small(LIGHTNING, SOFTMAX), []
    build = minimax_torch.MiniMaxForCausalLM
    with pytest.raises(ModuleNotFoundError) as absent:
        build(config, attn_implementation="flash_attention_2")
    assert_one_sentence(absent.value, "pip install flash-attn")

    def flash_attn_func(q, k, v, causal):
        calls.append((q.shape, k.shape))
        assert causal and q.shape[2] == config.num_attention_heads and k.shape[2] == config.num_key_value_heads
        heads = (x.transpose(1, 2) for x in (q, k, v))
        return minimax_torch.ops.softmax_attention(*heads, implementation="eager").transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    flash, plain = (
        build(config, dtype=torch.bfloat16, attn_implementation=how) for how in ("flash_attention_2", "eager")
    )
    ids, mask = torch.tensor(prompts(config, 2, 9)), torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    with torch.no_grad():
        for said in ({}, {"attention_mask": mask}):
            caches = [model(ids, use_cache=True, **said).cache for model in (flash, plain)]
            for T in (1, 3):
                got, want = (m(ids[:, :T], cache=c).logits for m, c in zip((flash, plain), caches, strict=True))
                assert_same(got, want, 0.02)  # bfloat16, rounded at other places
    d = config.head_dim
    shapes = [((2, T, 4, d), (2, J, 2, d)) for T, J in ((9, 9), (1, 10), (3, 13))]
    assert calls == shapes  # with unequal rows never
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        build(config, attn_implementation="flash_attention_2")(ids)


@every_configuration
def test_sdpa_is_eager(config):
    """The fused kernel and the equation written out, in the whole model, prompt and decode, with padding."""
    reference = lively(config)
    ids, mask = torch.tensor(prompts(config, 3, 21)), torch.tensor(MASK)
    caches = []
    logits = []
    for implementation in ("sdpa", "eager"):
        model = minimax_torch.MiniMaxForCausalLM.from_reference(reference, attn_implementation=implementation)
        with torch.no_grad():
            out = model(ids, mask, use_cache=True)
            logits += [out.logits[mask.bool()], model(ids[:, :1], cache=out.cache).logits]
        caches.append(out.cache)
    assert_same(logits[0], logits[2])
    assert_same(logits[1], logits[3])
    assert_same_cache(*caches)


def test_hooks_see_the_parts_of_the_reference():
    """Modules carry the names of the reference's trace: what goes through one is what was recorded under its name."""
    reference = lively(small(LIGHTNING, SOFTMAX, shared_intermediate_size=8))
    ids = prompts(reference.config, 1, 9)
    with recording(trace := Trace()):
        reference(ids)
    model, seen = TORCH.model(reference), {}

    def watch(name):
        def hook(module, args, out):
            seen[name] = out[0] if isinstance(out, tuple) else out
            seen[f"{name}.input"] = args[0] if args else None

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(watch(name))
    model(torch.tensor(ids))
    assert len(trace) > 40
    for name, want in trace.items():
        assert_same(seen[name], want)


@pytest.mark.parametrize(
    "config, head",
    [(config, "MiniMaxForCausalLM") for config in CONFIGURATIONS.values()] + [(small(), head) for head in HEADS],
    ids=[*CONFIGURATIONS, *HEADS],
)
def test_weights_go_there_and_back(config, head, tmp_path):
    """To the bit: reference → twin; twin → folder → either; reference → folder → either."""
    reference = lively(config, head)
    twin = TORCH.model(reference)
    assert list(twin.weights) == list(config.parameter_shapes(head))
    twin.save_pretrained(tmp_path / "twin")
    reference.save_pretrained(tmp_path / "reference")
    for copy in (
        twin,
        type(reference).from_pretrained(tmp_path / "twin"),
        type(twin).from_pretrained(tmp_path / "twin"),
        type(twin).from_pretrained(tmp_path / "reference"),
        type(reference).from_pretrained(tmp_path / "reference"),
    ):
        assert copy.config == config and set(copy.weights) == set(reference.weights)
        for name, x in reference.weights.items():
            np.testing.assert_array_equal(array(copy.weights[name]), x)
            assert array(copy.weights[name]).dtype == x.dtype


def test_from_reference_copies():
    """Training the twin leaves the truth alone."""
    reference = lively(small())
    twin = TORCH.model(reference)
    before = reference.weights["lm_head.weight"].copy()
    with torch.no_grad():
        for x in twin.parameters():
            x.zero_()
    np.testing.assert_array_equal(reference.weights["lm_head.weight"], before)


def test_fresh_twins_have_the_references_weights():
    """The same seed, the same numbers, in every type that both have."""
    config = CONFIGURATIONS["a shared expert"]
    for dtype in ("float16", "float32", "float64"):
        mine = NUMPY.package.MiniMaxForCausalLM(config, seed=5, dtype=dtype).weights
        theirs = TORCH.package.MiniMaxForCausalLM(config, seed=5, dtype=getattr(torch, dtype)).weights
        for name, x in mine.items():
            np.testing.assert_array_equal(array(theirs[name]), x)


def test_a_tied_head_is_one_tensor():
    """In memory as on disk: training moves both."""
    model = TORCH.model(lively(CONFIGURATIONS["tied embeddings"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in model.weights
    assert len(list(model.parameters())) == len(model.weights)


def test_a_loaded_model_does_nothing_by_chance(tmp_path):
    """The reference knows no training, so until it is trained the twin's router is not jittered either."""
    reference = lively(small(LIGHTNING, router_jitter_noise=0.5))
    reference.save_pretrained(tmp_path)
    ids = prompts(reference.config, 2, 9)
    for options in ({}, {"stream": True}):
        assert_same(
            TORCH.ask(type(TORCH.model(reference)).from_pretrained(tmp_path, **options), ids).logits,
            reference(ids).logits,
        )
    assert_same(TORCH.call(reference, ids).logits, reference(ids).logits)


def test_jitter_touches_the_router_and_nothing_else():
    """In training the router's input is shaken, the residual and the experts' input are not; in eval nobody is."""
    config = small(LIGHTNING, router_jitter_noise=0.5, num_experts_per_tok=6)  # all experts: only weights can change
    model = TORCH.model(lively(config))
    ids = torch.tensor(prompts(config, 2, 9))
    seen = {}
    for name in ("mlp.gate", "mlp.experts", "post_attention_layernorm"):
        module = model.model.layers[0].get_submodule(name)
        module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, (args[0], out)))
    with torch.no_grad():
        model.eval()(ids)
        n2 = seen["post_attention_layernorm"][1]
        assert torch.equal(seen["mlp.gate"][0], n2)
        model.train()(ids)
    ratio = seen["mlp.gate"][0] / n2
    assert 0.5 <= ratio.min() < 0.6 and 1.4 < ratio.max() <= 1.5
    assert torch.equal(seen["mlp.experts"][0], n2)
