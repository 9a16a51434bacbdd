"""Half precision is the activations' alone: slopes, decay, state and router are float32 at least."""

import numpy as np
import pytest
import torch
from close import NUMPY, TORCH, array, error, lively, prompts, small
from minimax_numpy import MiniMaxConfig
from minimax_numpy.config import LIGHTNING
from minimax_torch import ops

HALVES = [(NUMPY, "float16"), (TORCH, "float16"), (TORCH, "bfloat16")]
every_half = pytest.mark.parametrize("side, dtype", HALVES, ids=lambda x: str(x))
FLOAT32 = 5e-6  # hundreds of float32 roundings, measured 1e-7 to 2e-6; one of float16 is 2e-4, of bfloat16 2e-3


def half_and_exact(side, dtype: str, config: MiniMaxConfig):
    """A model in half precision, and the float64 model of the same rounded weights."""
    reference = lively(config, dtype=np.float32)
    rounded = {name: array(torch.tensor(x).to(getattr(torch, dtype))) for name, x in reference.weights.items()}
    rounded |= {name: x for name, x in reference.weights.items() if name.endswith("mlp.gate.weight")}
    make = NUMPY.package.MiniMaxForCausalLM
    exact = make(config, dtype=np.float64, weights={name: x.astype(np.float64) for name, x in rounded.items()})
    if side.is_torch:
        half = make(config, dtype=np.float32, weights=rounded)
        return TORCH.package.MiniMaxForCausalLM.from_reference(half, dtype=getattr(torch, dtype)), exact
    return make(config, dtype=dtype, weights=rounded), exact


def states(side, model, ids, pieces) -> list[np.ndarray]:
    """Every lightning state after the tokens were read in so many pieces."""
    cache = side.cache(model.config, 1)
    for part in np.array_split(ids, pieces, axis=1):
        side.ask(model, part, cache=cache)
    return [array(layer.state) for layer in cache.layers if hasattr(layer, "state")]


@every_half
def test_decoding_costs_the_state_no_more_than_prefilling(side, dtype):
    """2,000 tokens one by one: a state's error is at most twice a prefill's. Measured 1.00 times."""
    model, exact = half_and_exact(side, dtype, small(LIGHTNING, num_experts_per_tok=1))
    ids = prompts(model.config, 1, 2000)
    (want,), (prefilled,), (decoded,) = states(NUMPY, exact, ids, 1), *(states(side, model, ids, n) for n in (1, 2000))
    assert error(decoded, want) <= 2 * error(prefilled, want)
    assert error(prefilled, want) < 0.01 and decoded.dtype == np.float32


@pytest.mark.slow
def test_decoding_costs_no_state_of_the_released_layout_more():
    """Seven lightning layers and one softmax layer: later states see earlier roundings too. Measured 0.97 to 1.09."""
    model, exact = half_and_exact(TORCH, "bfloat16", MiniMaxConfig.tiny())
    ids = prompts(model.config, 1, 2000)
    prefilled, decoded = (states(TORCH, model, ids, n) for n in (1, 2000))
    for want, once, one_by_one in zip(states(NUMPY, exact, ids, 1), prefilled, decoded, strict=True):
        assert error(one_by_one, want) <= 2 * error(once, want)


def test_a_state_in_bfloat16_would_cost_more():
    """What the test above is there to notice: rounded after each token, the state's error is many times a prefill's."""

    def rounding(q, k, v, slopes, state=None, **options):
        out, state = ops.lightning.lightning_attention_chunked(q, k, v, slopes, state, **options)
        return out, state.bfloat16().float()

    model, exact = half_and_exact(TORCH, "bfloat16", small(LIGHTNING))
    ids = prompts(model.config, 1, 500)
    (want,), (prefilled,) = states(NUMPY, exact, ids, 1), states(TORCH, model, ids, 1)
    with ops.using(lightning_attention_chunked=rounding):
        (decoded,) = states(TORCH, model, ids, 500)
    assert error(decoded, want) > 2 * error(prefilled, want)


@every_half
@pytest.mark.parametrize("form", ["direct", "recurrent", "chunked"])
def test_slopes_and_decay_are_not_rounded(side, dtype, form):
    """From the same rounded q, k and v the state is float32's; slopes in half precision would show tenfold."""
    rng = np.random.default_rng(0)
    q, k, v = (side.wrap(rng.standard_normal((1, 4, 500, 3)), dtype) for _ in range(3))
    slopes = NUMPY.package.ops.decay_slopes(4, 2, 8)
    coarse = array(torch.tensor(slopes).to(getattr(torch, dtype)).double())
    run = getattr(side.package.ops, f"lightning_attention_{form}")
    wide = [array(x).astype(np.float64) for x in (q, k, v)]
    out, want = NUMPY.package.ops.lightning_attention_direct(*wide, slopes)
    assert error(run(q, k, v, side.wrap(slopes))[1], want) < FLOAT32
    assert error(run(q, k, v, side.wrap(slopes))[0], out) < {"float16": 5e-4, "bfloat16": 4e-3}[dtype]  # rounded once
    assert error(run(q, k, v, side.wrap(coarse))[1], want) > 10 * FLOAT32


@every_half
def test_routers_do_not_round(side, dtype):
    """Scores of half-precision activations are float32's, in the model, and so are the weights of the chosen."""
    model, _ = half_and_exact(side, dtype, small(LIGHTNING))
    ids = prompts(model.config, 2, 40)
    seen = {}
    if side.is_torch:
        gate = model.model.layers[0].mlp.gate
        gate.register_forward_hook(lambda module, args, out: seen.update(input=args[0], logits=out[0], weights=out[1]))
        side.ask(model, ids)
        router = array(gate.weight)
    else:
        with side.package.trace.recording(trace := side.package.trace.Trace()):
            side.ask(model, ids)
        gate = "model.layers.0.mlp.gate"
        seen = {"input": trace["model.layers.0.post_attention_layernorm"], "logits": trace[gate]}
        seen["weights"] = trace[f"{gate}.weights"]
        router = model.weights[f"{gate}.weight"]
    assert str(seen["input"].dtype).removeprefix("torch.") == dtype
    logits = array(seen["input"]).astype(np.float64) @ router.astype(np.float64).T
    assert error(seen["logits"], logits) < FLOAT32
    weights, _ = NUMPY.package.ops.route(logits, model.config.num_experts_per_tok)
    assert error(seen["weights"], weights) < FLOAT32
