"""Reading: every type to the bit, both spellings alike, a tensor at a time."""

import json
import tracemalloc

import minimax_numpy
import numpy as np
import pytest
import torch
from close import NUMPY, TORCH, array, both, every_head, lively, small
from minimax_numpy.checkpoint import Checkpoint
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.quantize import KINDS
from safetensors.numpy import load_file
from safetensors.torch import save_file

CONFIG = small(LIGHTNING, SOFTMAX, shared_intermediate_size=8)


def stored(path, dtype: torch.dtype, config=CONFIG):
    """A folder in one type, written by the safetensors library, and its tensors under the names on disk."""
    reference = lively(config, dtype=np.float64)
    reference.save_pretrained(path)
    tensors = {name: torch.tensor(x).to(dtype) for name, x in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return reference, tensors


TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@both
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_is_read_to_the_bit(side, dtype, tmp_path):
    """The stored type is kept where the package has it; NumPy has no bfloat16 and takes float32, which is exact."""
    reference, _ = stored(tmp_path, dtype)
    model = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path)
    kept = str(dtype).removeprefix("torch.")
    kept = "float32" if kept == "bfloat16" and not side.is_torch else kept
    for name, x in reference.weights.items():
        want = torch.tensor(x).to(dtype)
        np.testing.assert_array_equal(array(model.weights[name]), array(want))
        wide = side.is_torch and name.endswith("mlp.gate.weight") and kept != "float64"  # the twin's routers
        assert str(model.weights[name].dtype).removeprefix("torch.") == ("float32" if wide else kept)


@both
def test_a_type_may_be_asked_for(side, tmp_path):
    """Every tensor in it, but for the routers, which are float32 at least."""
    reference, _ = stored(tmp_path, torch.float32)
    for dtype in ("float16", "float32", "float64"):
        asked = getattr(torch, dtype) if side.is_torch else dtype
        model = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path, dtype=asked)
        for name, x in reference.weights.items():
            wide = "float32" if name.endswith("mlp.gate.weight") and dtype == "float16" else dtype
            assert str(model.weights[name].dtype).removeprefix("torch.") == wide
            np.testing.assert_array_equal(array(model.weights[name]), x.astype(np.float32).astype(wide))


@both
def test_each_tensor_has_a_type_of_its_own(side, tmp_path):
    """The released files hold float32 routers among bfloat16: the file decides, not config.json."""
    _, tensors = stored(tmp_path, torch.bfloat16)
    name = "model.layers.0.block_sparse_moe.gate.weight"
    tensors[name] = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    save_file(tensors, tmp_path / "model.safetensors")
    model = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(array(model.weights["model.layers.0.mlp.gate.weight"]), tensors[name])


ORIGINAL_NAMES = {
    "full_attn_alpha_factor": "layernorm_full_attention_alpha",
    "full_attn_beta_factor": "layernorm_full_attention_beta",
    "linear_attn_alpha_factor": "layernorm_linear_attention_alpha",
    "linear_attn_beta_factor": "layernorm_linear_attention_beta",
    "mlp_alpha_factor": "layernorm_mlp_alpha",
    "mlp_beta_factor": "layernorm_mlp_beta",
}


@both
@pytest.mark.parametrize("postnorm", [True, False])
def test_the_original_spelling_is_the_same_model(side, postnorm, tmp_path):
    """attn_type_list, layernorm_*, rotary_dim, rope_theta, shared_mlp: the same configuration and the same answers."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3}  # where the two rules of slopes differ
    config = small(LIGHTNING, SOFTMAX, LIGHTNING, shared_intermediate_size=8, postnorm=postnorm, **heads)
    reference = lively(config)
    reference.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["attn_type_list"] = [int(kind == SOFTMAX) for kind in values.pop("layer_types")]
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    values |= {original: values.pop(ours) for ours, original in ORIGINAL_NAMES.items()}
    del values["slope_rule"]  # the original's are its own
    values |= {"model_type": "MiniMaxText01", "architectures": ["MiniMaxText01ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path)
    assert model.config == config
    ids = np.arange(3, 20)[None]
    np.testing.assert_array_equal(array(side.ask(model, ids).logits), array(side.call(reference, ids).logits))


@both
@every_head
def test_a_causal_folder_serves_the_bare_model(side, head, tmp_path):
    """Each head's folder holds the body: the bare model is read from it, the head's own tensors left aside."""
    reference = lively(CONFIG, head)
    reference.save_pretrained(tmp_path)
    body = side.package.MiniMaxModel.from_pretrained(tmp_path)
    for name, x in body.weights.items():
        np.testing.assert_array_equal(array(x), reference.weights[name])


@both
def test_a_file_or_shards(side, tmp_path):
    """Cut anywhere, even with the halves of an expert in two files."""
    reference = lively(CONFIG)
    reference.save_pretrained(tmp_path, max_shard_bytes=5_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 20
    model = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path)
    for name, x in reference.weights.items():
        np.testing.assert_array_equal(array(model.weights[name]), x)


@both
@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000], ids=["a file", "shards"])
def test_the_hubs_cache_is_read(side, max_shard_bytes, tmp_path):
    """snapshot_download hands out a folder of links: snapshots/REVISION/model.safetensors leads to ../../blobs/HASH."""
    reference = lively(CONFIG)
    repository = tmp_path / "models--MiniMaxAI--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "main"
    blobs.mkdir(parents=True)
    reference.save_pretrained(snapshot, max_shard_bytes=max_shard_bytes)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    model = side.package.MiniMaxForCausalLM.from_pretrained(snapshot)
    for name, x in reference.weights.items():
        np.testing.assert_array_equal(array(model.weights[name]), x)


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Opening a folder reads headers: names, shapes and types, a few kilobytes, whatever the files hold."""
    config = small(LIGHTNING, vocab_size=100_000)
    minimax_numpy.MiniMaxModel(config).save_pretrained(tmp_path)
    tracemalloc.start()
    checkpoint = Checkpoint(tmp_path)
    entry = checkpoint.entry("model.embed_tokens.weight")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert entry.shape == (100_000, 32) and peak < 200_000


LARGEST = 100_000 * 32 * 4  # the embedding below, in bytes of float32


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_loading_peaks_one_tensor_above_what_is_kept(dtype, tmp_path):
    """A model larger than half the memory can be loaded: no more than the largest tensor is held beside the weights."""
    stored(tmp_path, dtype, small(LIGHTNING, SOFTMAX, vocab_size=100_000))
    tracemalloc.start()
    model = minimax_numpy.MiniMaxForCausalLM.from_pretrained(tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = max(x.nbytes for x in model.weights.values())
    assert largest == model.weights["lm_head.weight"].nbytes
    # a hundredth for names, headers and what else Python keeps
    assert sum(x.nbytes for x in model.weights.values()) <= kept <= 1.01 * sum(x.nbytes for x in model.weights.values())
    assert peak <= kept + 1.01 * largest


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_converting_peaks_one_tensor_above_what_is_kept(dtype, tmp_path):
    """Also where a type is asked for: a tensor is converted, and its stored form let go, before the next is read."""
    stored(tmp_path, torch.float32, small(LIGHTNING, SOFTMAX, vocab_size=100_000))
    tracemalloc.start()
    model = minimax_numpy.MiniMaxForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= kept + 1.01 * max(LARGEST, *(x.nbytes for x in model.weights.values()))


@pytest.mark.parametrize("quantization", KINDS)
def test_quantising_peaks_a_matrix_and_a_half_above_what_is_kept(quantization, tmp_path):
    """Not the model wide, nor a layer's experts: one expert's matrix, and half of it again while it is put together."""
    config = small(LIGHTNING, hidden_size=512, intermediate_size=1024, num_local_experts=8)
    minimax_numpy.MiniMaxModel(config).save_pretrained(tmp_path)
    tracemalloc.start()
    model = minimax_numpy.MiniMaxModel.from_pretrained(tmp_path, quantization=quantization)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    matrix, wide = 2 * 1024 * 512 * 4, 4 * sum(x.size for x in model.weights.values())
    assert sum(x.nbytes for x in model.weights.values()) <= kept < 0.3 * wide and wide > 10 * matrix
    assert peak <= kept + 1.6 * matrix


def test_sides_read_the_same(tmp_path):
    """What the reference reads, the twin reads."""
    stored(tmp_path, torch.bfloat16)
    mine, theirs = (side.package.MiniMaxForCausalLM.from_pretrained(tmp_path).weights for side in (NUMPY, TORCH))
    assert list(mine) == list(theirs)
    for name, x in mine.items():
        np.testing.assert_array_equal(array(theirs[name]), x)
