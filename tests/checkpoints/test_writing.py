"""Writing: what was there before stays until the new folder is whole, and anybody can read it then."""

import json
from pathlib import Path

import minimax_numpy.checkpoint as checkpoint
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from close import NUMPY, TORCH, array, both, every_head, lively, small
from minimax_numpy import MiniMaxConfig
from minimax_numpy.checkpoint import INDEX, pieces
from minimax_numpy.config import LIGHTNING, SOFTMAX

CONFIG = small(LIGHTNING, SOFTMAX)


def contents(folder) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@both
@every_head
def test_the_safetensors_library_reads_what_we_write(side, head, tmp_path):
    """Experts one by one and unstacked, under the names of the release, to the bit."""
    reference = lively(CONFIG, head)
    side.model(reference).save_pretrained(tmp_path)
    assert set(contents(tmp_path)) == {"config.json", "model.safetensors"}
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    expected = {}
    for name, x in reference.weights.items():
        expected |= {disk_name: x[where] for disk_name, where in pieces(name, x.shape)}
    assert set(found) == set(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"  # transformers asks for it


@both
def test_a_subclass_is_saved_as_what_it_is(side, tmp_path):
    """Under the name that everybody knows, its head with it; and it reads that again."""

    class Mine(side.package.MiniMaxForCausalLM):
        pass

    model = Mine(CONFIG)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MiniMaxForCausalLM"]
    back = Mine.from_pretrained(tmp_path)
    np.testing.assert_array_equal(array(back.weights["lm_head.weight"]), array(model.weights["lm_head.weight"]))
    assert NUMPY.package.MiniMaxForCausalLM.from_pretrained(tmp_path).head == Mine.head == "MiniMaxForCausalLM"


def test_a_twin_may_be_a_subclass():
    class Mine(TORCH.package.MiniMaxForCausalLM):
        pass

    assert Mine.from_reference(lively(CONFIG)).head == "MiniMaxForCausalLM"


def test_names_on_disk_are_the_releases():
    """Spelled out, for one layer of each kind."""
    names = [disk for name, shape in CONFIG.parameter_shapes().items() for disk, _ in pieces(name, shape)]
    expected = """
            model.embed_tokens.weight  model.norm.weight  lm_head.weight
            model.layers.0.input_layernorm.weight  model.layers.0.post_attention_layernorm.weight
            model.layers.0.self_attn.qkv_proj.weight  model.layers.0.self_attn.output_gate.weight
            model.layers.0.self_attn.out_proj.weight  model.layers.0.self_attn.norm.weight
            model.layers.1.self_attn.q_proj.weight  model.layers.1.self_attn.k_proj.weight
            model.layers.1.self_attn.v_proj.weight  model.layers.1.self_attn.o_proj.weight
            model.layers.1.block_sparse_moe.gate.weight  model.layers.1.block_sparse_moe.experts.5.w1.weight
            model.layers.1.block_sparse_moe.experts.5.w2.weight
            model.layers.1.block_sparse_moe.experts.5.w3.weight"""
    assert set(expected.split()) <= set(names)
    assert len(names) == len(set(names)) == 3 + 2 * (2 + 4 + 1 + 18)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_type_is_written_to_the_bit(dtype, tmp_path):
    """The twin writes what it holds, bfloat16 included; the reference reads it, and writes what it has."""
    twin = TORCH.package.MiniMaxForCausalLM.from_reference(lively(CONFIG), dtype=dtype)
    twin.save_pretrained(tmp_path / "twin")
    found = safetensors.torch.load_file(tmp_path / "twin" / "model.safetensors")
    assert found["model.embed_tokens.weight"].dtype == dtype
    assert torch.equal(found["lm_head.weight"], twin.weights["lm_head.weight"])
    back = TORCH.package.MiniMaxForCausalLM.from_pretrained(tmp_path / "twin")
    reference = NUMPY.package.MiniMaxForCausalLM.from_pretrained(tmp_path / "twin")
    reference.save_pretrained(tmp_path / "reference")
    again = NUMPY.package.MiniMaxForCausalLM.from_pretrained(tmp_path / "reference")
    for name, x in twin.weights.items():
        assert torch.equal(back.weights[name], x) and back.weights[name].dtype == x.dtype
        np.testing.assert_array_equal(reference.weights[name], array(x))
        np.testing.assert_array_equal(again.weights[name], array(x))


def test_the_released_folder_has_8243_tensors():
    """Counted from the names that we would write for MiniMax-Text-01."""
    shapes = MiniMaxConfig.text_01().parameter_shapes()
    assert sum(len(pieces(name, shape)) for name, shape in shapes.items()) == 8243


@both
def test_shards_are_no_larger_than_asked(side, tmp_path):
    """And the index says where each tensor is, and how large they all are."""
    side.model(lively(CONFIG, dtype=np.float32)).save_pretrained(tmp_path, max_shard_bytes=50_000)
    index = json.loads((tmp_path / INDEX).read_text())
    total = 0
    for file in tmp_path.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        assert sum(x.nbytes for x in tensors.values()) <= 50_000
        assert {name for name, where in index["weight_map"].items() if where == file.name} == set(tensors)
        total += sum(x.nbytes for x in tensors.values())
    assert index["metadata"]["total_size"] == total


@both
@pytest.mark.parametrize(
    "first, second", [(30_000, 90_000), (30_000, 10**9), (10**9, 30_000)], ids=["fewer shards", "one file", "more"]
)
def test_a_folder_may_be_written_over(side, first, second, tmp_path):
    """What is read is the second model, and nothing of the first is left."""
    old, new = (side.model(lively(CONFIG, seed=seed)) for seed in (0, 1))
    old.save_pretrained(tmp_path, max_shard_bytes=first)
    new.save_pretrained(tmp_path, max_shard_bytes=second)
    for reader in (NUMPY, TORCH):
        back = reader.package.MiniMaxForCausalLM.from_pretrained(tmp_path)
        for name, x in new.weights.items():
            np.testing.assert_array_equal(array(back.weights[name]), array(x))
    new.save_pretrained(tmp_path / "fresh", max_shard_bytes=second)
    assert set(contents(tmp_path / "fresh")) == {file.name for file in tmp_path.iterdir() if file.is_file()}


@both
def test_a_model_may_be_saved_where_it_came_from(side, tmp_path):
    """Its tensors were read, not mapped."""
    lively(CONFIG).save_pretrained(tmp_path)
    model = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    back = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path)
    for name, x in model.weights.items():
        np.testing.assert_array_equal(array(back.weights[name]), array(x))


def full_disk(after: int):
    """A serialize_file that fails in the middle of its n-th file, as a full disk does."""
    written, really = [], checkpoint.serialize_file

    def fail(tensors, file, metadata):
        written.append(file)
        if len(written) > after:
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        really(tensors, file, metadata=metadata)

    return fail


@both
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("before", [10**9, 30_000], ids=["a file was there", "shards were there"])
def test_a_full_disk_leaves_what_was_there(side, after, before, tmp_path, monkeypatch):
    """The first folder is whole, to the byte, and no half of the second is left beside it."""
    side.model(lively(CONFIG, seed=0)).save_pretrained(tmp_path, max_shard_bytes=before)
    first = contents(tmp_path)
    monkeypatch.setattr(checkpoint, "serialize_file", full_disk(after))
    with pytest.raises(OSError):
        side.model(lively(CONFIG, seed=1)).save_pretrained(tmp_path, max_shard_bytes=40_000)
    assert contents(tmp_path) == first


@both
def test_an_interrupt_leaves_what_was_there(side, tmp_path, monkeypatch):
    """Ctrl-C while the configuration is written, after all tensors."""
    side.model(lively(CONFIG, seed=0)).save_pretrained(tmp_path)
    first = contents(tmp_path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.json, "dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        side.model(lively(CONFIG, seed=1)).save_pretrained(tmp_path)
    assert contents(tmp_path) == first


@both
def test_a_full_disk_leaves_an_empty_folder_empty(side, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "serialize_file", full_disk(0))
    with pytest.raises(OSError):
        side.model(lively(CONFIG)).save_pretrained(tmp_path / "new")
    assert not contents(tmp_path / "new")


@both
def test_other_files_of_the_folder_stay(side, tmp_path):
    """A tokenizer, a README, an adapter: only the model's own files are ours to remove."""
    for name in ("tokenizer.json", "README.md", "adapter_model.safetensors"):
        (tmp_path / name).write_text("mine")
    side.model(lively(CONFIG)).save_pretrained(tmp_path, max_shard_bytes=50_000)
    side.model(lively(CONFIG)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "README.md", "adapter_model.safetensors"):
        assert (tmp_path / name).read_text() == "mine"
