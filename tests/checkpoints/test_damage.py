"""A folder that is damaged, incomplete or another model's is refused in one sentence that names the thing.

Nothing is filled in at random, and nothing outside the folder is read.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from close import assert_one_sentence, both, lively, small
from minimax_numpy.checkpoint import INDEX
from minimax_numpy.config import LIGHTNING, SOFTMAX
from safetensors.numpy import load_file, save_file

CONFIG = small(LIGHTNING, SOFTMAX)
MODEL = lively(CONFIG, dtype=np.float32)
GATE = "model.layers.1.block_sparse_moe.gate.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.3.w2.weight"


@pytest.fixture
def folder(tmp_path):
    """A whole checkpoint in one file."""
    MODEL.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path):
    """A whole checkpoint in many."""
    MODEL.save_pretrained(tmp_path / "shards", max_shard_bytes=50_000)
    return tmp_path / "shards"


def edit(folder, change):
    """Change the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_index(folder, change):
    """Change where the index says that tensors are."""
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def assert_refused(side, folder, *fragments, kind=ValueError, head="MiniMaxForCausalLM"):
    with pytest.raises(kind) as said:
        getattr(side.package, head).from_pretrained(folder)
    assert_one_sentence(said.value, *fragments)


@both
@pytest.mark.parametrize("name", [GATE, EXPERT, "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor(side, name, folder):
    edit(folder, lambda tensors: tensors.pop(name))
    assert_refused(side, folder, name)


@both
def test_many_missing_tensors(side, folder):
    """The first few are named, the others counted."""
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "experts" in name])
    assert_refused(side, folder, "layers.0.block_sparse_moe.experts.0.w1.weight", "33 more")


@both
def test_a_tensor_too_many(side, folder):
    """A layer that config.json does not know is a sign of another model."""
    edit(folder, lambda tensors: tensors.update({"model.layers.2.input_layernorm.weight": np.ones(32, np.float32)}))
    assert_refused(side, folder, "model.layers.2.input_layernorm.weight")


@both
def test_another_head(side, folder):
    """A classifier cannot be read from a language model: its score would have to be made up."""
    assert_refused(side, folder, "score.weight", head="MiniMaxForSequenceClassification")


@both
@pytest.mark.parametrize("shape", [(32, 6), (5, 32), (6, 32, 1)])
def test_a_wrong_shape(side, shape, folder):
    """Even one with as many numbers."""
    edit(folder, lambda tensors: tensors.update({GATE: np.zeros(shape, np.float32)}))
    assert_refused(side, folder, GATE, str(list(shape)), "[6, 32]")


@both
def test_a_wrong_shape_of_one_expert(side, folder):
    edit(folder, lambda tensors: tensors.update({EXPERT: np.zeros((1, 40), np.float32)}))
    assert_refused(side, folder, EXPERT, "[1, 40]", "[32, 40]")


@both
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_])
def test_a_wrong_type(side, dtype, folder):
    edit(folder, lambda tensors: tensors.update({GATE: np.zeros((6, 32), dtype)}))
    assert_refused(side, folder, GATE, "F32")


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [GATE, EXPERT])
def test_numbers_that_are_none(side, name, bad, folder):
    """A single one among thousands, by the name of its tensor."""

    def spoil(tensors):
        tensors[name].flat[7] = bad

    edit(folder, spoil)
    assert_refused(side, folder, name, "1 number")


@both
@pytest.mark.parametrize("left", [0, 4, 8, 100, -1, -10_000])
def test_a_file_cut_short(side, left, folder):
    """In the length, in the header, in the last tensor: as a download ends."""
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    assert_refused(side, folder, "model.safetensors")


@both
@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b"[1, 2, 3]",
        b'{"x": 5}',
        b'{"x": {"dtype": "F32", "shape": [2]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"x": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}',
        b'{"x": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}',
        b'{"x": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8]}}',
        b"[" * 200_000,
        b"\xff\xfe\x00",
    ],
    ids=lambda header: header[:60].decode(errors="replace"),
)
def test_a_corrupt_header(side, header, folder):
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    assert_refused(side, folder, "model.safetensors")


@both
def test_tensors_that_share_bytes(side, folder):
    """Eight bytes each, four of them the same; an empty tensor in between takes none."""
    places = {"a": [0, 8], "empty": [4, 4], "b": [4, 12]}
    lines = {name: {"dtype": "F32", "shape": [(y - x) // 4], "data_offsets": [x, y]} for name, (x, y) in places.items()}
    header = json.dumps(lines).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    assert_refused(side, folder, "model.safetensors", "'a' and 'b' share bytes")


@both
def test_a_missing_shard(side, shards):
    name = sorted(shards.glob("*.safetensors"))[1]
    name.unlink()
    assert_refused(side, shards, name.name, kind=FileNotFoundError)


@both
def test_shards_without_their_index(side, shards):
    (shards / INDEX).unlink()
    assert_refused(side, shards, INDEX, kind=FileNotFoundError)


@both
def test_an_index_that_names_absent_tensors(side, shards):
    """It says a tensor is in a shard, and it is not."""
    file = sorted(shards.glob("*.safetensors"))[0]
    tensors = load_file(file)
    gone = next(iter(tensors))
    del tensors[gone]
    save_file(tensors, file)
    assert_refused(side, shards, gone, file.name)


@both
def test_an_index_of_another_model(side, shards):
    edit_index(shards, lambda where: where.update({"model.layers.9.norm.weight": next(iter(where.values()))}))
    assert_refused(side, shards, "model.layers.9.norm.weight")


@both
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"x": 3}}', "[" * 200_000])
def test_an_index_that_is_none(side, text, shards):
    (shards / INDEX).write_text(text)
    assert_refused(side, shards, INDEX)


@both
@pytest.mark.parametrize(
    "escape", ["../elsewhere.safetensors", "/etc/passwd", "a/../../elsewhere.safetensors", "..", ""]
)
def test_an_index_that_leaves_its_folder(side, escape, shards):
    """A shard lies beside its index; nothing else is opened, even where it is there."""
    shutil.copy(sorted(shards.glob("*.safetensors"))[0], shards.parent / "elsewhere.safetensors")
    edit_index(shards, lambda where: where.update({GATE: escape}))
    assert_refused(side, shards, INDEX)


@both
def test_a_shard_that_is_a_link_out_of_the_folder(side, shards):
    """Looks like a shard, and is a file of somebody else's."""
    file = sorted(shards.glob("*.safetensors"))[0]
    file.rename(shards.parent / "elsewhere.safetensors")
    file.symlink_to(shards.parent / "elsewhere.safetensors")
    assert_refused(side, shards, file.name)


@both
def test_a_single_file_that_is_a_link_out_of_the_folder(side, folder):
    """The same rule where there is no index."""
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")
    assert_refused(side, folder, "model.safetensors")


@both
def test_no_tensors_at_all(side, folder):
    (folder / "model.safetensors").unlink()
    assert_refused(side, folder, str(folder), kind=FileNotFoundError)


@both
def test_no_folder_at_all(side, tmp_path):
    assert_refused(side, tmp_path / "nowhere", "nowhere", kind=FileNotFoundError)


@both
def test_a_configuration_of_another_model(side, folder):
    """The tensors are whole, but config.json tells of more layers."""
    other = replace(CONFIG, layer_types=(*CONFIG.layer_types, LIGHTNING))
    (folder / "config.json").write_text(json.dumps(other.to_dict()))
    assert_refused(side, folder, "model.layers.2")
