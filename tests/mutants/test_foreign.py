"""A port written by somebody else: right, it passes; with a mistake in one line, the report names the mistake."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM
from minimax_numpy.check import DEFECTS, crosscheck
from minimax_numpy.cli import main
from minimax_numpy.shipped import TINY

SOURCE = (Path(__file__).parent / "port.py").read_text()

# Each mistake: the line of the port, and what somebody wrote in its place.
MISTAKES = {
    "reads_before_writing": ("q[:, t], state))", "q[:, t], before))"),
    "reads_between_decay_and_write": (
        "q[:, t], state))",
        "q[:, t], state - written))",
    ),
    "decays_own_token": ("keep * state + written", "keep * (state + written)"),
    "scales_queries": ("q, k, v = qkv.unbind(3)", "q, k, v = qkv.unbind(3); q = q / self.d**0.5"),
    "divides_by_L": ("(L - 1 + 1e-5)", "L"),
    "has_no_layer_factor": ("factor = 1 - layer / (L - 1 + 1e-5) + 1e-5", "factor = 1 + 1e-5"),
    "leaves_out_the_epsilon": ("(L - 1 + 1e-5) + 1e-5", "(L - 1 + 1e-5)"),
    "follows_the_other_rule": ("(L - 1 + 1e-5)", "(L - 1)"),
    "reverses_the_slopes": ("for h in range(self.H)]", "for h in reversed(range(self.H))]"),
    "reorders_the_heads": ("view(B, T, self.H, 3, self.d)", "view(B, T, self.H, 3, self.d).flip(2)"),
    "reads_qkv_contiguously": ("view(B, T, self.H, 3, self.d)", "view(B, T, 3, self.H, self.d).transpose(2, 3)"),
    "exchanges_q_and_k": ("q, k, v = qkv.unbind(3)", "k, q, v = qkv.unbind(3)"),
    "leaves_v_raw": (
        "q, k, v = qkv.unbind(3)",
        "q, k, _ = qkv.unbind(3); v = self.qkv_proj(x).view(B, T, self.H, 3, self.d)[..., 2, :]",
    ),
    "leaves_q_and_k_raw": (
        "q, k, v = qkv.unbind(3)",
        "v = qkv[..., 2, :]; q, k, _ = self.qkv_proj(x).view(B, T, self.H, 3, self.d).unbind(3)",
    ),
    "rotates_the_whole_head": ("R = self.R\n", "R = self.d\n"),
    "takes_frequencies_of_the_whole_head": (".double() / R)", ".double() / self.d)"),
    "interleaves_the_pairs": (
        "pairs = torch.complex(x[..., : R // 2].double(), x[..., R // 2 : R].double()) * turned\n"
        "        return torch.cat([pairs.real.to(x), pairs.imag.to(x), x[..., R:]], -1)",
        "pairs = torch.complex(x[..., 0:R:2].double(), x[..., 1:R:2].double()) * turned\n"
        "        return torch.cat([torch.view_as_real(pairs).flatten(-2).to(x), x[..., R:]], -1)",
    ),
    "turns_backwards": ("torch.ones_like(angle), angle)", "torch.ones_like(angle), -angle)"),
    "has_base_ten_thousand": ('c["rope_parameters"]["rope_theta"]', "1e4"),
    "tiles_grouped_heads": (".repeat_interleave(self.H // self.G, dim=2)", ".repeat(1, 1, self.H // self.G, 1)"),
    "leaves_out_the_scale": (" / self.d**0.5\n        i, j", "\n        i, j"),
    "sees_the_future": ("hidden = j > i\n", "hidden = (j > i) & False\n"),
    "widens_the_window": ("j <= i - self.window", "j < i - self.window"),
    "carries_the_wrong_residual": ("self.a * n + self.b", "self.a * x + self.b"),
    "exchanges_alpha_and_beta": ("self.a * n + self.b * self.self_attn", "self.b * n + self.a * self.self_attn"),
    "leaves_out_alpha": ("self.a * n + self.b", "n + self.b"),
    "norms_each_head": (
        "self.norm(torch.stack(out, 1).reshape(B, T, -1))",
        "self.norm.weight * (lambda o: o / (o.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt())"
        "(torch.stack(out, 1)).reshape(B, T, -1)",
    ),
    "takes_the_outer_eps": ("Norm(n, 1e-6)", "Norm(n, 1e-5)"),
    "takes_the_inner_eps": ('c["rms_norm_eps"])\n        self.post', "1e-6)\n        self.post"),
    "subtracts_the_mean": (
        "return self.weight * x",
        "x = x - x.mean(-1, keepdim=True)\n        return self.weight * x",
    ),
    "gates_by_the_unnormed_input": ("self.output_gate(x)", "self.output_gate(unnormed)"),
    "gates_by_silu": ("torch.sigmoid(self.output_gate(x))", "nn.functional.silu(self.output_gate(x))"),
    "leaves_weights_unnormalised": ("p / p.sum(-1, keepdim=True)", "p"),
    "exchanges_expert_weights": ("p / p.sum(-1, keepdim=True)", "(p / p.sum(-1, keepdim=True)).flip(-1)"),
    "exchanges_w1_and_w3": ("(self.w1, self.w3))", "(self.w3, self.w1))"),
}
# What a port without a cache, a mask or a loss cannot get wrong.
OUT_OF_REACH = {
    "forgets_the_state",
    "transposes_the_state",
    "decays_the_short_chunk_as_a_full_one",
    "padding_decays",
    "padding_writes",
    "starts_at_one",
    "averages_the_balance_loss",
    "leaves_labels_unshifted",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The shipped model with a sliding window, so that windows can be wrong, too."""
    folder = tmp_path_factory.mktemp("windowed")
    shipped = MiniMaxForCausalLM.from_pretrained(TINY)
    config = MiniMaxConfig.from_dict({**shipped.config.to_dict(), "sliding_window": 17})
    MiniMaxForCausalLM(config, weights=shipped.weights).save_pretrained(folder)
    return folder


def port(source: str, path: Path) -> torch.nn.Module:
    """The port as its text says, in float64."""
    module = ModuleType("somebodys_port")
    exec(compile(source, "port.py", "exec"), module.__dict__)
    return module.load(path).double()


def test_the_right_port_passes_in_float64_and_in_its_own_float32(checkpoint):
    right = port(SOURCE, checkpoint)
    crosscheck(checkpoint, right, length=40).raise_if_different()
    crosscheck(checkpoint, right.float(), length=40).raise_if_different()


def test_every_defect_is_planted_here_or_out_of_reach():
    assert set(MISTAKES) | OUT_OF_REACH == set(DEFECTS) and not set(MISTAKES) & OUT_OF_REACH


@pytest.mark.parametrize("key", MISTAKES)
def test_a_mistake_in_one_line_is_named(key, checkpoint):
    right, wrong = MISTAKES[key]
    assert right in SOURCE, "the port has changed; plant the mistake anew"
    source = SOURCE.replace(right, wrong)
    if key == "reads_before_writing":
        source = source.replace("state = keep * state + written", "before = state; state = keep * state + written")
    report = crosscheck(checkpoint, port(source, checkpoint), length=40)
    assert not report.ok
    assert report.looks_like == DEFECTS[key].says, f"{key}: first {report.first}, looks like {report.looks_like}"


def test_two_mistakes_are_told_by_the_first(checkpoint):
    source = SOURCE
    for key in ("leaves_v_raw", "has_base_ten_thousand"):
        source = source.replace(*MISTAKES[key])
    report = crosscheck(checkpoint, port(source, checkpoint), length=40)
    assert report.looks_like == DEFECTS["leaves_v_raw"].says


def test_the_command_line_takes_a_factory(capsys, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert main(["crosscheck", "--against", "port:load", "--length", "20"]) == 0
    told = capsys.readouterr().out
    assert "missing" in told and "the same" in told and "no decode" in told
