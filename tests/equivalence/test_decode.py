"""The compiled decode step gives the model's numbers, and steps aside when anybody looks or changes something."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from close import (
    ROUNDING,
    TORCH,
    assert_one_sentence,
    assert_same,
    assert_same_cache,
    every_configuration,
    lively,
    prompts,
    small,
)
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_torch import MiniMaxForCausalLM, ops
from minimax_torch.kernels import token

try:
    token.compiled()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)


def pair(config, quantization=None, tmp_path=None):
    """The truth's twin in float64, and one in float32 whose decode is compiled."""
    reference = lively(config)
    if quantization:
        reference.save_pretrained(tmp_path)
        exact, fast = (
            MiniMaxForCausalLM.from_pretrained(tmp_path, dtype, quantization=quantization)
            for dtype in (torch.float64, torch.float32)
        )
    else:
        exact = MiniMaxForCausalLM.from_reference(reference)
        fast = MiniMaxForCausalLM.from_reference(reference, dtype=torch.float32)
    fast.compile_decode()
    return exact, fast


def decoded(model, ids, mask=None, new=5, **asked):
    """Logits of a prompt's continuation, fed token by token, and the cache in the end."""
    with torch.no_grad():
        cache, found = model(ids, mask, use_cache=True).cache, []
        for t in range(new):
            found.append(model(ids[:, t : t + 1], cache=cache, **asked).logits)
    return torch.cat(found, dim=1), cache


@every_configuration
@pytest.mark.parametrize("rows", [1, 3])
def test_it_is_the_model(config, rows):
    """Every configuration, rows of different lengths, past a window's end: off from float64 by float32's rounding."""
    exact, fast = pair(config)
    ids = torch.tensor(prompts(config, rows, 13))
    mask = torch.ones_like(ids)
    mask[1:2, :4], mask[2:3, 9:] = 0, 0
    (want, cache), (got, fast_cache) = (decoded(model, ids, mask) for model in (exact, fast))
    known = not config.shared_intermediate_size and config.head_dim % 4 == 0
    assert fast.model.decoder.steps == (5 if known else 0)
    assert_same(got, want, ROUNDING)
    assert_same_cache(fast_cache, cache, ROUNDING)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_however_many_threads(threads):
    exact, fast = pair(small(intermediate_size=29, num_local_experts=5))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ids = torch.tensor(prompts(fast.config, 2, 9))
        assert_same(decoded(fast, ids)[0], decoded(exact, ids)[0], ROUNDING)
    finally:
        torch.set_num_threads(before)


def test_int8_codes_are_multiplied_as_they_are(tmp_path):
    exact, fast = pair(small(), "int8", tmp_path)
    ids = torch.tensor(prompts(fast.config, 3, 13))
    got, want = (decoded(model, ids)[0] for model in (fast, exact))
    assert fast.model.decoder.steps == 5
    assert_same(got, want, ROUNDING)


def test_the_first_token_needs_no_prompt():
    exact, fast = pair(small())
    ids = torch.tensor([[7]])
    with torch.no_grad():
        assert_same(fast(ids).logits, exact(ids).logits, ROUNDING)
    assert fast.model.decoder.steps == 1


def test_positions_hidden_states_and_router_logits():
    exact, fast = pair(small())
    ids = torch.tensor(prompts(fast.config, 2, 9))
    asked = {"output_hidden_states": True, "output_router_logits": True}
    with torch.no_grad():
        outs = []
        for model in (exact, fast):
            cache = model(ids, use_cache=True).cache
            outs.append(model(ids[:, :1], cache=cache, position_ids=torch.tensor([[40], [3]]), **asked))
    want, got = outs
    for name in ("hidden_states", "router_logits"):
        for mine, theirs in zip(getattr(got, name), getattr(want, name), strict=True):
            assert_same(mine, theirs, ROUNDING)
    assert fast.model.decoder.steps == 1


def test_forks_and_snapshots_do_not_see_each_other():
    """What is written in place is written where nobody else looks."""
    for window in (None, 4):
        exact, fast = pair(small(LIGHTNING, SOFTMAX, sliding_window=window))
        ids = torch.tensor(prompts(fast.config, 2, 9))
        found = []
        for model in (exact, fast):
            with torch.no_grad():
                cache = model(ids, use_cache=True).cache
                moment, fork = cache.snapshot(), cache.fork()
                said = [model(ids[:, t : t + 1], cache=c).logits for t in range(4) for c in (cache, fork)]
                cache.restore(moment)
                cache.reorder([1, 0])
                said += [model(ids[:, 5:6], cache=c).logits for c in (cache, fork)]
            found.append(torch.cat(said))
        assert_same(found[1], found[0], ROUNDING)


def test_token_for_token():
    """generate, with rows that end at different times."""
    exact, fast = pair(small())
    ids = torch.tensor(prompts(fast.config, 3, 9))
    want = exact.generate(ids, max_new_tokens=12, eos_token_id=[5, 9, 77])
    assert fast.generate(ids, max_new_tokens=12, eos_token_id=[5, 9, 77]).tolist() == want.tolist()
    assert fast.model.decoder.steps


# --- It steps aside ------------------------------------------------------------------------------------------------


def test_hooks_see_everything():
    _, fast = pair(small())
    seen = []
    handle = fast.model.layers[1].mlp.gate.register_forward_hook(lambda *call: seen.append(call))
    with torch.no_grad():
        fast(torch.tensor([[7]]))
        assert len(seen) == 1 and fast.model.decoder.steps == 0
        handle.remove()
        fast(torch.tensor([[7]]))
    assert len(seen) == 1 and fast.model.decoder.steps == 1


def test_a_swapped_op_runs():
    _, fast = pair(small())
    calls = []
    with torch.no_grad(), ops.using(mix_experts=lambda x, *rest: calls.append(1) or x):
        fast(torch.tensor([[7]]))
    assert len(calls) == fast.config.num_hidden_layers and fast.model.decoder.steps == 0


def test_a_part_that_was_changed_runs():
    """Another module in a layer, or another forward in a module."""
    _, fast = pair(small())
    attention = fast.model.layers[2].self_attn
    with torch.no_grad():
        fast(torch.tensor([[7]]))
        before, attention.o_proj = attention.o_proj, torch.nn.Linear(64, 32, bias=False)
        fast(torch.tensor([[7]]))
        attention.o_proj = before
        fast.model.layers[1].mlp.forward = fast.model.layers[1].mlp.forward  # whatever it may be
        fast(torch.tensor([[7]]))
        assert fast.model.decoder.steps == 1
        del fast.model.layers[1].mlp.forward
        fast(torch.tensor([[7]]))
    assert fast.model.decoder.steps == 2


def test_gradients_padding_and_training_take_the_plain_path():
    _, fast = pair(small())
    fast(torch.tensor([[7]])).logits.sum().backward()
    with torch.no_grad():
        fast(torch.tensor([[7], [7]]), torch.tensor([[1], [0]]))
        fast.train()(torch.tensor([[7]]))
        fast.eval()(torch.tensor([[7, 8]]))
    assert fast.model.decoder.steps == 0 and fast.model.embed_tokens.weight.grad.any()


def test_weights_that_change_are_read_anew():
    """In place, by assignment, by another type and back: never an address that is no longer theirs."""
    exact, fast = pair(small())
    ids = torch.tensor([[7]])
    other = MiniMaxForCausalLM.from_reference(lively(small(), seed=3), dtype=torch.float32)
    with torch.no_grad():
        fast(ids)
        for assign in (False, True):
            fast.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
            assert_same(fast(ids).logits, other(ids).logits, ROUNDING)
            fast.load_state_dict(exact.float().state_dict())
            assert_same(fast(ids).logits, exact(ids).logits, ROUNDING)
        before = fast.model.decoder.steps
        assert before == 5 and fast.bfloat16()(ids).logits.dtype == torch.bfloat16
        assert fast.double()(ids).logits.dtype == torch.float64
        assert fast.model.decoder.steps == before
        fast.float()(ids)
        assert fast.model.decoder.steps == before + 1


def test_a_copy_decodes_by_itself():
    _, fast = pair(small())
    ids = torch.tensor([[7]])
    with torch.no_grad():
        want = fast(ids).logits
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            for parameter in fast.parameters():
                parameter.mul_(1)
            assert torch.equal(other(ids).logits, want) and other.model.decoder.steps == 1


def test_nan_stays_nan():
    """In a weight, it reaches the logits of every row."""
    _, fast = pair(small())
    with torch.no_grad():
        fast.model.layers[2].self_attn.q_proj.weight[0, 0] = torch.nan
        assert fast(torch.tensor([[7], [8]])).logits.isnan().all() and fast.model.decoder.steps == 1


def test_without_a_compiler_one_sentence_says_so(tmp_path):
    code = "from minimax_torch.kernels import token\ntry: token.compiled()\nexcept RuntimeError as error: print(error)"
    known = {"PATH": "/nowhere", "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
    for more, told in (({}, "C compiler"), ({"CC": "/bin/false"}, "could not compile")):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**known, **more})
        assert_one_sentence(run.stdout.strip() or run.stderr, told)


def test_it_is_compiled_once(tmp_path, monkeypatch):
    """For all processes of a user; a folder that cannot be written to is told by the system's own error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    token.compiled.cache_clear()
    try:
        token.compiled()
        (built,) = (tmp_path / "minimax-twin").iterdir()
        then = built.stat().st_mtime_ns
        token.compiled.cache_clear()
        token.compiled()
        assert built.stat().st_mtime_ns == then
    finally:
        token.compiled.cache_clear()


def test_side_by_side_with_the_plain_path():
    """A cache may go from one to the other and back, token by token."""
    exact, fast = pair(small(LIGHTNING, SOFTMAX, LIGHTNING, sliding_window=6))
    plain = TORCH.model(lively(fast.config)).float()
    ids = torch.tensor(prompts(fast.config, 2, 12))
    with torch.no_grad():
        cache, want = fast(ids, use_cache=True).cache, exact(ids, use_cache=True).cache
        for t in range(10):
            model = (fast, plain)[t % 2]
            got = model(ids[:, t : t + 1], cache=cache).logits
            assert_same(got, exact(ids[:, t : t + 1], cache=want).logits, ROUNDING)
    assert_same_cache(cache, want, ROUNDING)
