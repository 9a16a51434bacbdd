"""Streaming: a model whose weights stay on disk is the same model, and reads and holds no more than was said."""

import copy
import json
import pickle
import tracemalloc
from dataclasses import replace

import minimax_numpy
import numpy as np
import pytest
import torch
from close import (
    NUMPY,
    ROUNDING,
    TORCH,
    array,
    assert_one_sentence,
    assert_same,
    both,
    error,
    every_head,
    lively,
    prompts,
    small,
)
from minimax_numpy import streaming
from minimax_numpy.checkpoint import INDEX, Checkpoint, pieces
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.forecast import forecast, memory
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

CONFIG = small(LIGHTNING, SOFTMAX)
MODEL = lively(CONFIG)
IDS = prompts(CONFIG, 2, 11)
BLOCK = 4096


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that every matrix of these small models takes several blocks, the last of them short."""
    monkeypatch.setattr(streaming, "BLOCK", BLOCK)


@pytest.fixture
def folder(tmp_path):
    """MODEL, in one file."""
    MODEL.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def reads(monkeypatch):
    """What is read by rows: name, and bytes."""
    seen, right = [], Checkpoint.rows

    def rows(self, name, start, stop, into):
        seen.append((name, into.nbytes))
        return right(self, name, start, stop, into)

    monkeypatch.setattr(Checkpoint, "rows", rows)
    return seen


def stack_on_disk(folder, model):
    """Write the experts of a folder of one file again, all of a layer in one tensor."""
    tensors = load_file(folder / "model.safetensors")
    for name, x in model.weights.items():
        if ".mlp.experts." in name:
            for disk_name, _ in pieces(name, x.shape):
                del tensors[disk_name]
            tensors[name] = x
    save_file(tensors, folder / "model.safetensors")


def streamed(side, folder, head="MiniMaxForCausalLM", **options):
    return getattr(side.package, head).from_pretrained(folder, stream=True, **options)


def answer(side, model, ids, **inputs):
    out = side.ask(model, ids, **inputs)
    return out.logits if out.logits is not None else out.last_hidden_state


@both
@every_head
@pytest.mark.parametrize("spelling", ["one file", "shards", "experts stacked"])
def test_a_streamed_model_is_the_same_model(side, head, spelling, tmp_path):
    """Every head, experts one by one or stacked on disk, one file or many."""
    model = lively(CONFIG, head)
    model.save_pretrained(tmp_path, 50_000 if spelling == "shards" else 10**9)
    if spelling == "experts stacked":
        stack_on_disk(tmp_path, model)
    assert_same(answer(side, streamed(side, tmp_path, head), IDS), answer(NUMPY, model, IDS))


@both
@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"shared_intermediate_size": 24}], ids=str)
def test_tied_heads_and_shared_experts_stream_too(side, changes, tmp_path):
    model = lively(replace(CONFIG, **changes))
    model.save_pretrained(tmp_path)
    assert_same(answer(side, streamed(side, tmp_path), IDS), model(IDS).logits)


@both
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", [None, "float64", "float32", "float16"])
def test_types_are_those_of_a_model_in_memory(side, stored, asked, tmp_path):
    """And so are the numbers: to float64's rounding in float64, to the type's in the others."""
    MODEL.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_tensors({n: torch.tensor(x).to(stored) for n, x in tensors.items()}, tmp_path / "model.safetensors")
    kind = asked if asked is None or not side.is_torch else getattr(torch, asked)
    held = side.package.MiniMaxForCausalLM.from_pretrained(tmp_path, dtype=kind)
    lazy = streamed(side, tmp_path, dtype=kind)
    assert list(lazy.weights) == list(held.weights)
    for name, x in held.weights.items():
        assert lazy.weights[name].dtype == x.dtype and tuple(lazy.weights[name].shape) == tuple(x.shape), name
    want, got = (answer(side, model, IDS) for model in (held, lazy))
    assert got.dtype == want.dtype
    # in 16 bits a product over fewer rows may round otherwise, and a token change its expert
    within = {8: 1e-11, 4: ROUNDING, 2: 0.1}[got.dtype.itemsize]
    assert error(got, want) <= within


def test_every_weight_is_that_of_the_model_in_memory(folder):
    """Read whole, as a student might at a prompt; a matrix row by row, too."""
    lazy, twin = streamed(NUMPY, folder).weights, streamed(TORCH, folder).weights
    for name, x in MODEL.weights.items():
        np.testing.assert_array_equal(np.asarray(lazy[name]), x)
        whole = twin[name] if isinstance(twin[name], torch.Tensor) else twin[name].whole()
        np.testing.assert_array_equal(array(whole), x)
    matrix, x = lazy["lm_head.weight"], MODEL.weights["lm_head.weight"]
    np.testing.assert_array_equal(matrix[np.array([[7, 3], [7, 0]])], x[[[7, 3], [7, 0]]])
    np.testing.assert_array_equal(matrix[5], x[5])
    np.testing.assert_array_equal(np.asarray(abs(matrix)), np.abs(x))
    with pytest.raises(KeyError):
        lazy["model.layers.9.norm.weight"]


@both
def test_it_goes_on_from_a_cache(side, folder):
    model = streamed(side, folder)
    cache = side.cache(CONFIG, 2)
    cuts = [answer(side, model, IDS[:, part], cache=cache) for part in (slice(0, 5), slice(5, 6), slice(6, 11))]
    assert_same(np.concatenate([array(x) for x in cuts], axis=1), MODEL(IDS).logits)


@both
@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "pickled"])
def test_a_copy_reads_the_same_shards(side, through, folder):
    assert_same(answer(side, through(streamed(side, folder)), IDS), MODEL(IDS).logits)


@both
def test_generation_is_token_for_token_the_same(side, folder):
    want = MODEL.generate(IDS, max_new_tokens=8)
    assert array(streamed(side, folder).generate(side.wrap(IDS), max_new_tokens=8)).tolist() == want.tolist()


@both
def test_only_routed_experts_and_asked_for_embeddings_are_read(side, folder, reads):
    """One token meets K experts in each layer; nothing of the others is read."""
    model = streamed(side, folder)
    reads.clear()
    ids = IDS[:1, :1]
    out = side.ask(model, ids, output_router_logits=True)
    experts = {name.split(".w")[0] for name, _ in reads if ".experts." in name}
    wanted = {
        f"model.layers.{i}.block_sparse_moe.experts.{e}"
        for i, logits in enumerate(out.router_logits)
        for e in np.argsort(-array(logits).ravel())[: CONFIG.num_experts_per_tok]
    }
    assert experts == wanted
    embedding = [size for name, size in reads if "embed_tokens" in name]
    assert embedding == [CONFIG.hidden_size * 8]
    side.ask(model, np.array([[5, 6, 5, 5]]))  # an id is read once, wherever it stands
    assert len([name for name, _ in reads if "embed_tokens" in name]) == 1 + 2


@both
def test_no_block_is_larger_than_said(side, folder, reads):
    """As stored and as computed together: the working memory is BLOCK and the filling between its arrays."""
    model = streamed(side, folder)
    answer(side, model, IDS)
    assert max(size for _, size in reads) <= BLOCK
    assert len(model.weights._scratch.memory) <= BLOCK + 3 * 64
    assert sum(name == "model.layers.0.self_attn.qkv_proj.weight" for name, _ in reads) > 1


@both
@pytest.mark.parametrize("tokens, rows", [(1, 1), (11, 1), (4, 2)])
def test_no_more_is_read_than_foretold(side, tokens, rows, folder):
    """For one token, exactly as much: there the K experts and the one embedding are known beforehand."""
    model = streamed(side, folder)
    told = forecast(folder, CONFIG, tokens, 3, rows=rows)
    checkpoint, cache = model.weights.checkpoint, side.cache(CONFIG, rows)
    answer(side, model, prompts(CONFIG, rows, tokens), cache=cache)
    first = checkpoint.bytes_read
    for i in range(3):
        answer(side, model, prompts(CONFIG, rows, 1, seed=i), cache=cache)
    assert first <= told.prefill_bytes and 0.5 * told.read_bytes < checkpoint.bytes_read <= told.read_bytes
    if tokens == rows == 1:
        assert first == told.prefill_bytes
        assert checkpoint.bytes_read == told.read_bytes or side.is_torch  # which keeps vectors and routers


@both
@pytest.mark.parametrize("options", [{"prefill_chunk": 4}, {"num_beams": 3}], ids=str)
def test_chunks_and_beams_are_foretold(side, options, folder):
    """Each chunk reads the layers again, and each beam may go to experts of its own."""
    model = streamed(side, folder)
    model.generate(side.wrap(IDS[:1]), max_new_tokens=4, **options)
    rows, chunk = options.get("num_beams", 1), options.get("prefill_chunk")
    told = forecast(folder, CONFIG, IDS.shape[1], 3, rows=rows, chunk=chunk)
    read = model.weights.checkpoint.bytes_read
    assert forecast(folder, CONFIG, IDS.shape[1], 3).read_bytes < read <= told.read_bytes


@pytest.mark.parametrize("kinds", [(LIGHTNING,), (SOFTMAX,), (LIGHTNING, SOFTMAX, LIGHTNING)], ids=str)
@pytest.mark.parametrize("tokens, rows, dtype", [(1, 1, "float64"), (300, 1, "float64"), (60, 3, "float32")])
def test_the_bound_on_memory_holds_and_is_not_idle(kinds, tokens, rows, dtype, tmp_path, monkeypatch):
    """Arrays alive at once, as Python counts them, are at most the bound, and at least a quarter of it."""
    monkeypatch.setattr(streaming, "BLOCK", 1 << 18)
    config = small(*kinds, hidden_size=64, num_attention_heads=8, intermediate_size=96, vocab_size=20_000)
    lively(config, dtype=np.float32).save_pretrained(tmp_path)
    model = streamed(NUMPY, tmp_path, dtype=dtype)
    ids = prompts(config, rows, tokens)
    model(ids[:, :1])  # what Python and NumPy keep for themselves
    bound = memory(config, np.dtype(dtype).itemsize, tokens, rows=rows)
    model = streamed(NUMPY, tmp_path, dtype=dtype)
    tracemalloc.start()
    model(ids, use_cache=True, logits_to_keep=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own = 100_000  # names and shapes
    assert bound / 4 <= peak <= bound + own


@both
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.block_sparse_moe.experts.2.w3.weight",
        "lm_head.weight",
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_found_as_they_are_read(side, name, bad, folder):
    """By the name of the tensor, as in loading."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].reshape(-1)[-5 if "embed" not in name else 7 * CONFIG.hidden_size] = bad
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as said:
        answer(side, streamed(side, folder), np.arange(40)[None])  # enough tokens to meet every expert
    assert_one_sentence(said.value, name, "1 number")


@both
def test_a_shard_cut_short_while_it_is_used(side, folder):
    model = streamed(side, folder)
    file = folder / "model.safetensors"
    with open(file, "r+b") as f:
        f.truncate(file.stat().st_size // 2)
    with pytest.raises(ValueError) as said:
        answer(side, model, IDS)
    assert_one_sentence(said.value, "model.safetensors", "cut short")


@both
def test_a_folder_is_matched_before_anything_is_read(side, tmp_path, reads):
    """Missing shards and tensors are refused as in loading."""
    MODEL.save_pretrained(tmp_path, 50_000)
    index = json.loads((tmp_path / INDEX).read_text())
    gone = index["weight_map"]["lm_head.weight"]
    (tmp_path / gone).unlink()
    with pytest.raises(FileNotFoundError) as said:
        streamed(side, tmp_path)
    assert_one_sentence(said.value, gone)
    del index["weight_map"]["lm_head.weight"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError) as said:
        streamed(side, tmp_path)
    assert_one_sentence(said.value, "lm_head.weight")
    assert not reads


@both
def test_a_streamed_model_is_not_saved_again(side, folder, tmp_path):
    with pytest.raises(ValueError) as said:
        streamed(side, folder).save_pretrained(tmp_path / "copy")
    assert_one_sentence(said.value, str(folder))
    assert not (tmp_path / "copy").exists()


def test_a_streamed_model_is_not_trained(folder):
    """Gradients would be those of a block that is no longer there."""
    model = streamed(TORCH, folder)
    x = torch.randn(1, 3, CONFIG.hidden_size, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError) as said:
        model(inputs_embeds=x)
    assert_one_sentence(said.value, "gradients")


def test_the_forecast_is_a_sentence(folder):
    told = forecast(folder, CONFIG, 8, 2)
    assert "reads at most" in str(told) and "just measured" in str(told) and "holds at most" in str(told)
    assert told.seconds == told.read_bytes / told.rate and told.rate > 0


def test_the_released_model_fits_a_small_machine():
    """912 GB on disk; with a prompt of 1,024 tokens in float32, less than 2 GB in memory, 280 MiB of them states."""
    assert 280 * 2**20 < memory(minimax_numpy.MiniMaxConfig.text_01(), 4, 1024) < 2e9
