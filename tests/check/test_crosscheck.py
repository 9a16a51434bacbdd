"""The cross-check itself: what it takes, what it says, and that it does not look away."""

import json
import sys
from types import SimpleNamespace

import minimax_torch
import numpy as np
import pytest
import torch
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM
from minimax_numpy.check import check_op, crosscheck
from minimax_numpy.check.crosscheck import Runs, judge_phase, plan_calls
from minimax_numpy.check.targets import NumpyTarget
from minimax_numpy.checkpoint import save_tensors
from minimax_numpy.shipped import TINY
from minimax_numpy.trace import Trace, recording
from minimax_torch import MiniMaxForCausalLM as Twin


@pytest.fixture(scope="module")
def truth() -> MiniMaxForCausalLM:
    return MiniMaxForCausalLM.from_pretrained(TINY, np.float64)


@pytest.fixture(scope="module")
def recorded(truth) -> dict[str, np.ndarray]:
    ids = np.arange(40).reshape(2, 20)
    with recording(Trace()) as _, recording(trace := Trace()):
        truth(ids)
    return {"input_ids": ids, **trace}


def test_the_twin_of_the_shipped_model_is_the_same_in_float64():
    report = crosscheck(TINY, "minimax_torch")
    report.raise_if_different()
    assert {row.phase for row in report.rows} == {"prefill", "decode", "continued", "padded", "packed"}
    assert not [row.part for row in report.rows if row.verdict == "missing"]
    assert all(row.free is not None for row in report.rows if not row.part.endswith(".indices"))


def test_every_weight_is_under_some_part():
    """A part that no row names could be anything: change each weight in turn, and some row must differ."""
    config = MiniMaxConfig.tiny(layer_types=("linear_attention", "full_attention"), shared_intermediate_size=8)
    truth = MiniMaxForCausalLM(config, dtype=np.float64)
    calls = list(plan_calls(config, NumpyTarget(truth), length=9, decode=0, seed=0))
    for name, x in truth.weights.items():
        weights = {**truth.weights, name: x + 0.1 * np.abs(x).mean()}
        wrong = MiniMaxForCausalLM(config, dtype=np.float64, weights=weights)
        runs = Runs(truth, NumpyTarget(wrong), "float64", calls)
        assert any(row.wrong for row in judge_phase(runs, "prefill", layers=None)), name


def test_a_fault_is_flagged_where_it_is_and_not_in_what_follows(truth):
    weights = dict(truth.weights)
    weights["model.layers.2.self_attn.out_proj.weight"] = weights["model.layers.2.self_attn.out_proj.weight"] * 1.01
    wrong = MiniMaxForCausalLM(truth.config, dtype=np.float64, weights=weights)
    report = crosscheck(truth, Twin.from_reference(wrong), dtype="float32")
    assert {row.part for row in report.rows if row.wrong} == {"model.layers.2.self_attn.out_proj"}
    assert "times 1.01" in str(report)


def test_a_recorded_trace_is_judged(truth, recorded, tmp_path):
    file = tmp_path / "trace.safetensors"
    save_tensors(file, recorded)
    report = crosscheck(truth, file, dtype="float64")
    report.raise_if_different()
    assert any("no local pass" in note for note in report.notes)

    part = "model.layers.4.self_attn.norm.input"
    save_tensors(file, {**recorded, part: recorded[part] * 2})
    report = crosscheck(truth, file, dtype="float64")
    assert report.first == part and "times 2" in str(report)


def test_a_callable_is_judged_and_its_missing_parts_are_listed(truth, recorded):
    def black_box(ids):
        return {"lm_head": truth(ids).logits}

    report = crosscheck(truth, black_box, dtype="float64")
    report.raise_if_different()
    verdicts = {row.part: row.verdict for row in report.rows}
    assert verdicts.pop("lm_head") == "same" and set(verdicts.values()) == {"missing"}
    assert not crosscheck(truth, lambda ids: {}).ok
    with pytest.raises(ValueError, match="should return a dict"):
        crosscheck(truth, lambda ids: truth(ids).logits)


def test_original_names_and_token_major_parts_line_up(truth, recorded):
    """block_sparse_moe is mlp, and [B·T, …] is folded back."""

    def port(ids):
        with recording(trace := Trace()):
            truth(ids)
        return {
            name.replace(".mlp", ".block_sparse_moe"): x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x
            for name, x in trace.items()
        }

    report = crosscheck(truth, port, dtype="float64")
    report.raise_if_different()
    assert "missing" not in {row.verdict for row in report.rows if "model." in row.part}


def test_a_wrong_shape_is_told(truth):
    report = crosscheck(truth, lambda ids: {"lm_head": truth(ids).logits[..., :-1]}, dtype="float64")
    assert report.first == "lm_head" and "shape" in str(report)


def test_undecided_tokens_are_left_out_and_counted(truth):
    """Two experts with the same scores: which one wins is a toss-up in bfloat16, and no difference."""
    weights = dict(truth.weights)
    gate = weights["model.layers.0.mlp.gate.weight"].copy()
    gate[3] = gate[2] * (1 + 1e-6)
    weights["model.layers.0.mlp.gate.weight"] = gate
    close = MiniMaxForCausalLM(truth.config, dtype=np.float64, weights=weights)
    report = crosscheck(close, Twin.from_reference(close), dtype="bfloat16")
    report.raise_if_different()
    notes = {row.part: row.note for row in report.rows if row.phase == "prefill"}
    assert "undecided" in notes["model.layers.0.mlp.gate.indices"]


def test_layers_limits_what_is_compared(truth):
    report = crosscheck(truth, Twin.from_reference(truth), layers=[3, 7], length=10, decode=1)
    assert {row.part.split(".")[2] for row in report.rows} == {"3", "7"}


def test_reports_are_written_whole_and_say_what_they_show(truth, tmp_path):
    report = crosscheck(truth, Twin.from_reference(truth), length=10, decode=1)
    report.to_json(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["ok"] and len(told["rows"]) == len(report.rows)
    for name in ("errors.svg", "errors.png"):
        report.plot(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    with pytest.raises(ValueError, match=".svg or .png"):
        report.plot(tmp_path / "errors.doc")
    with pytest.raises(FileNotFoundError):
        report.to_json(tmp_path / "nowhere" / "report.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["errors.png", "errors.svg", "report.json"]


def test_nan_is_never_the_same(truth):
    nan = SimpleNamespace(value=np.nan)
    report = crosscheck(truth, lambda ids: {"lm_head": truth(ids).logits * nan.value}, dtype="float64")
    assert not report.ok and "NaN" in str(report)


def test_a_torch_kernel_is_recognised_and_judged():
    def kernel(q, k, v, slopes, state=None):
        T = q.shape[2]
        lag = torch.arange(T)[:, None] - torch.arange(T)
        decay = torch.exp(-slopes[:, None, None] * lag.clamp(min=0)).tril().to(q)
        read = torch.exp(-slopes[:, None] * torch.arange(1, T + 1)).to(q)[..., None]
        left = torch.exp(-slopes[:, None] * torch.arange(T - 1, -1, -1)).to(q)[..., None]
        start = 0 if state is None else state
        out = (q @ k.mT * decay) @ v + ((q * read) @ start if state is not None else 0)
        return out, torch.exp(-slopes * T).to(q)[:, None, None] * start + (k * left).mT @ v

    for dtype in ("float64", "float32"):
        report = check_op("lightning_attention_chunked", kernel, dtype=dtype)
        report.raise_if_different()
        assert "torch" in report.title
    assert "padding" in next(row.phase for row in report.rows if row.verdict == "missing")


def test_a_kernel_with_nan_at_padding_is_refused():
    from minimax_numpy import ops

    def multiplies_the_mask(q, k, v, slopes, state=None, *, mask=None):
        out, state = ops.lightning_attention_chunked(q, k, v, slopes, state, mask=mask)
        return (out if mask is None else np.where(mask[:, None, :, None], out, np.nan)), state

    report = check_op("lightning_attention_chunked", multiplies_the_mask)
    assert not report.ok and "padded positions" in str(report)


def test_what_a_kernel_got_wrong_is_placed():
    from minimax_numpy import ops

    def forgets_after_64(q, k, v, slopes, state=None, *, mask=None):
        out, state = ops.lightning_attention_chunked(q, k, v, slopes, state, mask=mask)
        out[:, :, 64:] = 0
        return out, state

    report = check_op("lightning_attention_chunked", forgets_after_64)
    assert not report.ok and "T = 64" in str(report)


def test_a_kernel_that_fails_on_some_case_is_told_which():
    from minimax_numpy import ops

    def fails_at_length_one(q, k, v, slopes, state=None):
        if q.shape[2] == 1:
            raise RuntimeError("block too small")
        return ops.lightning_attention_chunked(q, k, v, slopes, state)

    report = check_op("lightning_attention_chunked", fails_at_length_one)
    assert not report.ok
    told = [row.phase for row in report.rows if row.note and "block too small" in row.note]
    assert set(told) == {"one token onto a state", "one token"}


def test_what_a_call_returns_is_judged_and_not_only_its_modules(truth):
    class Negated(Twin):
        def forward(self, *arguments, **inputs):
            out = super().forward(*arguments, **inputs)
            out.logits = -out.logits
            return out

    report = crosscheck(truth, Negated.from_reference(truth), length=9, decode=1)
    assert report.first == "logits"


def test_lengths_of_rows_are_judged(truth, monkeypatch):
    """Padding that counts as tokens leaves every part right, and the next call wrong."""
    twin = Twin.from_reference(truth)
    plan = minimax_torch.model.plan_step

    def counts_padding(config, shape, mask, position_ids, lengths, cu_seqlens):
        step, new = plan(config, shape, mask, position_ids, lengths, cu_seqlens)
        return step, lengths + shape[1] if mask is not None and cu_seqlens is None else new

    monkeypatch.setattr(minimax_torch.model, "plan_step", counts_padding)
    report = crosscheck(truth, twin, length=20, decode=1)
    assert "cache.lengths" in {row.part for row in report.rows if row.wrong}


def test_many_tokens_onto_a_cache_are_judged(truth):
    """A causal mask laid in the upper left corner is right for a prefill and wrong for all that continues it."""
    right = minimax_torch.ops.softmax_attention

    def upper_left(q, k, v, visible=None):
        T, J = q.shape[2], k.shape[2]
        if visible is None and 1 < T < J:
            visible = torch.ones(T, J, dtype=torch.bool).tril().expand(len(q), T, J)
        return right(q, k, v, visible)

    with minimax_torch.ops.using(softmax_attention=upper_left):
        report = crosscheck(truth, Twin.from_reference(truth), length=20, decode=1)
    assert {row.phase for row in report.rows if row.wrong} == {"continued"}


def test_experts_that_tie_are_no_difference(truth):
    """Two equal rows of a router: whichever expert wins when the model runs alone, it is not wrong."""
    weights = dict(truth.weights)
    gate = weights["model.layers.0.mlp.gate.weight"].copy()
    gate[3] = gate[5] = gate[1]
    weights["model.layers.0.mlp.gate.weight"] = gate
    tied = MiniMaxForCausalLM(truth.config, dtype=np.float64, weights=weights)
    crosscheck(tied, Twin.from_reference(tied)).raise_if_different()


def test_the_model_that_is_judged_stays_as_it_was(truth):
    twin = Twin.from_reference(truth).train()
    crosscheck(truth, twin, length=5, decode=0)
    assert twin.training


def test_a_port_without_logits_proves_nothing(truth):
    report = crosscheck(truth, lambda ids: {"model.embed_tokens": truth.weights["model.embed_tokens.weight"][ids]})
    assert not report.ok and "lm_head is missing" in str(report)


def test_a_port_that_writes_into_its_ids_is_not_excused(truth):
    def scribbles(ids):
        ids[:] = 0
        return {"lm_head": np.random.default_rng(0).standard_normal((*ids.shape, 256))}

    assert not crosscheck(truth, scribbles).ok


def test_a_port_that_fails_is_told_whose_and_where(truth):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Module()
            self.model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

        def forward(self, ids):
            return self.model.layers[0](ids)

    for broken in (Broken(), lambda ids: ids["no"], lambda ids: sys.exit(0)):
        with pytest.raises(ValueError, match="failed with .* line ") as told:
            crosscheck(truth, broken)
        assert "\n" not in str(told.value)


def test_bad_questions_get_one_sentence(truth, unchecked):
    for question in (
        lambda: crosscheck(truth, Twin.from_reference(truth), dtype="float8"),
        lambda: crosscheck(truth, Twin.from_reference(truth), length=0),
        lambda: crosscheck(truth, Twin.from_reference(truth), layers=[8]),
        lambda: crosscheck(truth, "no_such_module:factory"),
        lambda: crosscheck(truth, "json:no_such_function"),
        lambda: crosscheck(truth, "just_a_name"),
        lambda: crosscheck(truth, 3),
        lambda: crosscheck(truth, "minimax_torch"),
        lambda: crosscheck(truth, torch.nn.Linear(2, 2)),
        lambda: crosscheck("nowhere"),
        lambda: check_op("no_such_op", len),
        lambda: check_op("rms_norm", 3),
        lambda: check_op("rms_norm", lambda: None),
        lambda: check_op("rms_norm", lambda x, w, eps: x, dtype="int8"),
        lambda: check_op("route", lambda logits, k: logits),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as told:
            question()
        assert "\n" not in str(told.value) and len(str(told.value)) > 20


def test_a_model_that_only_some_configurations_reach_is_checked_there():
    """Shared expert, original slopes at twelve heads, prenorm: the parts of each are rows of their own."""
    config = MiniMaxConfig.tiny(
        shared_intermediate_size=24, postnorm=False, num_attention_heads=12, num_key_value_heads=4
    )
    model = MiniMaxForCausalLM(config, dtype=np.float64)
    report = crosscheck(model, Twin.from_reference(model), length=20, decode=1)
    report.raise_if_different()
    parts = {row.part for row in report.rows}
    assert {"model.layers.0.shared_mlp.down_proj", "model.layers.0.coefficient"} <= parts
