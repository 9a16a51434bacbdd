"""Somebody's port of MiniMax to PyTorch, written another way: one file, no cache, one module a layer.

The tests plant mistakes in this text, a line each, and ask the judge what it sees. Its module names are those of
transformers 5; nothing else here is shared with the project.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


class Norm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()


class Lightning(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.H, self.d = c["num_attention_heads"], c["head_dim"]
        n, D, L = self.H * self.d, c["hidden_size"], c["num_hidden_layers"]
        self.qkv_proj, self.output_gate = nn.Linear(D, 3 * n, bias=False), nn.Linear(D, n, bias=False)
        self.out_proj, self.norm = nn.Linear(n, D, bias=False), Norm(n, 1e-6)
        factor = 1 - layer / (L - 1 + 1e-5) + 1e-5
        self.slopes = torch.tensor([2 ** (-8 * (h + 1) / self.H) * factor for h in range(self.H)], dtype=torch.float64)

    def forward(self, x, unnormed):
        B, T, _ = x.shape
        qkv = nn.functional.silu(self.qkv_proj(x)).view(B, T, self.H, 3, self.d)
        q, k, v = qkv.unbind(3)
        keep = torch.exp(-self.slopes).to(x)[:, None, None]
        state, out = x.new_zeros(B, self.H, self.d, self.d), []
        for t in range(T):
            written = torch.einsum("bhi,bhj->bhij", k[:, t], v[:, t])
            state = keep * state + written
            out.append(torch.einsum("bhi,bhij->bhj", q[:, t], state))
        y = self.norm(torch.stack(out, 1).reshape(B, T, -1))
        return self.out_proj(torch.sigmoid(self.output_gate(x)) * y)


class Softmax(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.H, self.G, self.d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.R, self.base, self.window = c["rotary_dim"], c["rope_parameters"]["rope_theta"], c["sliding_window"]
        D = c["hidden_size"]
        self.q_proj, self.o_proj = nn.Linear(D, self.H * self.d, bias=False), nn.Linear(self.H * self.d, D, bias=False)
        self.k_proj, self.v_proj = nn.Linear(D, self.G * self.d, bias=False), nn.Linear(D, self.G * self.d, bias=False)

    def turn(self, x):
        R = self.R
        rates = self.base ** (-torch.arange(0, R, 2).double() / R)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * rates
        turned = torch.polar(torch.ones_like(angle), angle)[:, None]
        pairs = torch.complex(x[..., : R // 2].double(), x[..., R // 2 : R].double()) * turned
        return torch.cat([pairs.real.to(x), pairs.imag.to(x), x[..., R:]], -1)

    def forward(self, x, unnormed):
        B, T, _ = x.shape
        q = self.turn(self.q_proj(x).view(B, T, self.H, self.d))
        k = self.turn(self.k_proj(x).view(B, T, self.G, self.d)).repeat_interleave(self.H // self.G, dim=2)
        v = self.v_proj(x).view(B, T, self.G, self.d).repeat_interleave(self.H // self.G, dim=2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / self.d**0.5
        i, j = torch.arange(T)[:, None], torch.arange(T)
        hidden = j > i
        if self.window:
            hidden = hidden | (j <= i - self.window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return self.o_proj(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(B, T, -1))


class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.K, self.weight = (
            c["num_experts_per_tok"],
            nn.Parameter(torch.empty(c["num_local_experts"], c["hidden_size"])),
        )

    def forward(self, x):
        logits = nn.functional.linear(x.to(self.weight), self.weight)
        p, indices = logits.softmax(-1).topk(self.K, dim=-1)
        return logits, p / p.sum(-1, keepdim=True), indices


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        E, F, D = c["num_local_experts"], c["intermediate_size"], c["hidden_size"]
        self.gate = Gate(c)
        self.w1, self.w3 = nn.Parameter(torch.empty(E, F, D)), nn.Parameter(torch.empty(E, F, D))
        self.w2 = nn.Parameter(torch.empty(E, D, F))

    def forward(self, x):
        _, weights, indices = self.gate(x)
        gate, up = (torch.einsum("btd,efd->btef", x, w) for w in (self.w1, self.w3))
        hidden = nn.functional.silu(gate) * up
        said = torch.einsum("btef,edf->bted", hidden, self.w2)
        chosen = said.gather(2, indices[..., None].expand(*indices.shape, x.shape[-1]))
        return (chosen * weights[..., None].to(x)).sum(2)


class Layer(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        lightning = c["layer_types"][i] == "linear_attention"
        self.self_attn = (Lightning if lightning else Softmax)(c, i)
        self.mlp = Moe(c)
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        kind = "linear" if lightning else "full"
        self.a, self.b = c[f"{kind}_attn_alpha_factor"], c[f"{kind}_attn_beta_factor"]
        self.ma, self.mb = c["mlp_alpha_factor"], c["mlp_beta_factor"]

    def forward(self, x):
        n = self.input_layernorm(x)
        x = self.a * n + self.b * self.self_attn(n, x)
        n = self.post_attention_layernorm(x)
        return self.ma * n + self.mb * self.mlp(n)


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList([Layer(c, i) for i in range(c["num_hidden_layers"])])
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x):
        x = self.embed_tokens(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Port(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model, self.lm_head = Body(c), nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)

    def forward(self, ids):
        return self.lm_head(self.model(ids))


def load(path):
    """The factory: a checkpoint's folder → the port with its weights."""
    folder = Path(path)
    config = json.loads((folder / "config.json").read_text())
    disk = load_file(folder / "model.safetensors")
    port, E = Port(config), config["num_local_experts"]
    weights = {name: x.float() for name, x in disk.items() if ".experts." not in name}
    weights = {name.replace("block_sparse_moe", "mlp"): x for name, x in weights.items()}
    for i in range(config["num_hidden_layers"]):
        path = f"model.layers.{i}.block_sparse_moe.experts"
        for w in ("w1", "w2", "w3"):
            weights[f"model.layers.{i}.mlp.{w}"] = torch.stack(
                [disk[f"{path}.{e}.{w}.weight"].float() for e in range(E)]
            )
    port.load_state_dict(weights)
    return port
