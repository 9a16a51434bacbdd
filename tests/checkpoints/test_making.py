"""`minimax-twin make`: a checkpoint of true shape and random weights, whole or not at all."""

import json
import shutil
from collections import namedtuple

import minimax_numpy
import numpy as np
import pytest
from close import array, assert_one_sentence, assert_same, both, prompts, small
from minimax_numpy import making
from minimax_numpy.checkpoint import INDEX, Checkpoint, read_tensors
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.making import make_checkpoint

CONFIG = small(LIGHTNING, SOFTMAX, shared_intermediate_size=24)


@pytest.fixture
def made(tmp_path):
    make_checkpoint(tmp_path / "made", CONFIG)
    return tmp_path / "made"


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_seed_makes_the_same_files(made, tmp_path, monkeypatch):
    """However many numbers are drawn at a time; another seed makes others."""
    monkeypatch.setattr(making, "PIECE", 1 << 8)
    make_checkpoint(tmp_path / "again", CONFIG)
    assert files(tmp_path / "again") == files(made)
    make_checkpoint(tmp_path / "other", CONFIG, seed=1)
    assert files(tmp_path / "other").keys() == files(made).keys()
    assert all(x != files(tmp_path / "other")[name] for name, x in files(made).items() if name.startswith("model-"))


@both
@pytest.mark.parametrize("stream", [False, True])
def test_both_twins_load_it(side, stream, made):
    """In memory or from disk: the same logits."""
    ids = prompts(CONFIG, 1, 9)
    want = minimax_numpy.MiniMaxForCausalLM.from_pretrained(made, np.float64)(ids).logits
    kind = side.wrap(np.zeros(1)).dtype
    model = side.package.MiniMaxForCausalLM.from_pretrained(made, dtype=kind, stream=stream)
    assert_same(side.ask(model, ids).logits, want)
    assert np.isfinite(array(want)).all() and 0.1 < array(want).std() < 10


def test_a_shard_holds_a_layer(made):
    """So that some layers can be had without the others: the embedding and the head lie apart."""
    checkpoint = Checkpoint(made)
    assert [len(checkpoint.shards([i])) for i in (0, 1)] == [1, 1]
    assert checkpoint.shards([0]) != checkpoint.shards([1])
    where = json.loads((made / INDEX).read_text())["weight_map"]
    assert len({where["model.embed_tokens.weight"], where["lm_head.weight"], *where.values()}) == 4


def test_scales_are_sensible(made):
    """Routers float32, the rest bfloat16; RMS within √2 of 1/√fan in, gains near 1, no two tensors alike."""
    seen = set()
    for file in made.glob("*.safetensors"):
        for name, x in read_tensors(file).items():
            stored = Checkpoint(made).entry(name).dtype
            assert stored == ("F32" if name.endswith("block_sparse_moe.gate.weight") else "BF16"), name
            if x.ndim == 1:
                assert 0 < x.min() < 0.95 and 1.05 < x.max() < 2 and abs(x.mean() - 1) < 0.2
                continue
            wanted = 1.0 if "embed_tokens" in name else x.shape[1] ** -0.5
            assert 2**-0.6 < np.sqrt(np.mean(x * x)) / wanted < 2**0.6 and abs(x.mean()) < 0.3 * wanted, name
            assert len(np.unique(np.abs(x))) >= min(100, x.size // 2)  # of the 128 that seven bits tell apart
            assert x.tobytes() not in seen
            seen.add(x.tobytes())


def test_a_folder_that_holds_anything_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError) as said:
        make_checkpoint(tmp_path, CONFIG)
    assert_one_sentence(said.value, str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_disk_that_is_too_full_is_refused(tmp_path, monkeypatch):
    """Before anything is written, and with what is needed."""
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1_000_000_000))
    with pytest.raises(OSError) as said:
        make_checkpoint(tmp_path / "large", minimax_numpy.MiniMaxConfig.text_01())
    assert_one_sentence(said.value, "912.2 GB", "1.0 GB")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "an empty folder"])
@pytest.mark.parametrize("trouble", [KeyboardInterrupt, OSError("the disk is full")], ids=["interrupted", "disk full"])
def test_nothing_half_written_is_left(there, trouble, tmp_path, monkeypatch):
    right, calls = making.write_shard, []

    def wrong(file, *rest):
        right(file, *rest)
        calls.append(file)
        if len(calls) == 2:
            raise trouble

    if there:
        (tmp_path / "made").mkdir()
    monkeypatch.setattr(making, "write_shard", wrong)
    with pytest.raises((KeyboardInterrupt, OSError)):
        make_checkpoint(tmp_path / "made", CONFIG)
    assert len(calls) == 2
    assert (tmp_path / "made").exists() == there and not list(tmp_path.glob("made/*"))
