"""Cross-checks of what is not in memory: a whole checkpoint streamed, and layers of which only the shards are there."""

import json
import re

import minimax_torch
import numpy as np
import pytest
import torch
from close import assert_same, prompts, small
from minimax_numpy import MiniMaxForCausalLM, streaming
from minimax_numpy.cache import Cache
from minimax_numpy.check import DEFECTS, crosscheck
from minimax_numpy.check.crosscheck import foretell
from minimax_numpy.check.partial import Layers
from minimax_numpy.checkpoint import Checkpoint
from minimax_numpy.cli import main
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.making import make_checkpoint
from minimax_torch.hooks import Layers as TorchLayers

CONFIG = small(LIGHTNING, LIGHTNING, SOFTMAX, LIGHTNING)
SHORT = {"length": 20, "decode": 2}
FLAGS = ("--length", 20, "--decode", 2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 4096)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with a shard for each layer."""
    make_checkpoint(tmp_path / "model", CONFIG)
    return tmp_path / "model"


@pytest.fixture
def part(folder):
    """The same, of which only layers 1 and 2 are there: no embedding, no head."""
    kept = Checkpoint(folder).shards([1, 2])
    for file in folder.glob("*.safetensors"):
        if file not in kept:
            file.unlink()
    return folder


def run(*arguments) -> int:
    return main([str(x) for x in arguments])


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_twin_is_the_same_streamed(dtype, folder):
    """Every part of a model in memory is judged, and the report says what was not tried."""
    report = crosscheck(folder, dtype=dtype, stream=True, **SHORT)
    report.raise_if_different()
    whole = crosscheck(folder, dtype=dtype, **SHORT)
    assert {row.part for row in report.rows} == {row.part for row in whole.rows} - {"loss", "aux_loss"}
    assert {row.phase for row in report.rows} == {"prefill", "decode"}
    assert "missing" not in {row.verdict for row in report.rows}
    told = str(report)
    assert "weights were streamed" in told and "not tried: other phases" in told


def test_no_copy_of_the_weights_is_made(folder, monkeypatch):
    """In no type and in no pass: a stack or a matrix is never read whole, routers and vectors aside."""
    right = streaming.Matrix.__array__

    def small_ones(matrix, *rest, **options):
        assert len(matrix) <= CONFIG.num_local_experts
        return right(matrix, *rest, **options)

    monkeypatch.setattr(streaming.Matrix, "__array__", small_ones)
    monkeypatch.setattr(streaming.Stack, "__array__", lambda *_, **__: pytest.fail("a stack was read whole"))
    monkeypatch.setattr(minimax_torch.streaming.Stack, "whole", lambda *_: pytest.fail("a stack was read whole"))
    crosscheck(folder, dtype="bfloat16", stream=True, **SHORT).raise_if_different()


@pytest.mark.parametrize("key", ["scales_queries", "forgets_the_state"])
def test_a_mistake_is_found_streamed_and_by_layers(key, folder):
    """As in memory; which one it is like is not looked for, since each would read the checkpoint again."""
    for absent in ([], Checkpoint(folder).shards([0])):
        for file in absent:
            file.unlink()
        with minimax_torch.ops.using(**DEFECTS[key].plant(minimax_torch.ops)):
            report = crosscheck(folder, stream=True, layers=[1, 2], **SHORT)
        assert not report.ok and report.first.startswith("model.layers.1.self_attn")
        assert "not looked for" in report.looks_like


def test_no_more_is_read_than_foretold(folder, monkeypatch):
    """Both sides together: in float64 two passes, in a narrower type four."""
    seen, right = [], Checkpoint.rows
    monkeypatch.setattr(Checkpoint, "rows", lambda self, *rest: seen.append(rest[-1].nbytes) or right(self, *rest))
    for dtype in ("float64", "bfloat16"):
        told = foretell(folder, dtype, 20, 2, None)
        seen.clear()
        crosscheck(folder, dtype=dtype, stream=True, **SHORT)
        assert 0.7 * told.read_bytes < sum(seen) <= 1.02 * told.read_bytes  # vectors are read for the title, too


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_layers_run_with_their_shards_alone(dtype, part):
    """No embedding, no head, no other layer: judged part by part, prefill and decode."""
    report = crosscheck(part, dtype=dtype, layers=[2, 1, 2], **SHORT)  # a layer named twice is one
    report.raise_if_different()
    assert {re.match(r"model\.layers\.(\d)", row.part)[1] for row in report.rows} == {"1", "2"}
    assert {row.phase for row in report.rows} == {"prefill", "decode"}
    assert not [row for row in report.rows if row.verdict == "missing"]
    assert "run by themselves, on random hidden states: layers 1, 2" in str(report)


def test_layers_are_those_of_the_whole_model(folder):
    """With their own index, which sets the slopes: fed what the layer before gives, they give what the next takes."""
    whole = MiniMaxForCausalLM.from_pretrained(folder, np.float64)
    states = whole(prompts(CONFIG, 1, 9), output_hidden_states=True).hidden_states
    for i in range(CONFIG.num_hidden_layers):
        alone = Layers(folder, [i], np.float64)(inputs_embeds=states[i], cache=Cache(CONFIG, 1))
        assert_same(alone.last_hidden_state, states[i + 1])
        twin = TorchLayers(folder, [i], torch.float64, torch.device("cpu"))
        x = torch.from_numpy(states[i])
        assert_same(twin(None, inputs_embeds=x, cache=minimax_torch.Cache(CONFIG, 1)).last_hidden_state, states[i + 1])


def test_with_all_shards_there_layers_choose_what_is_shown(folder):
    """The whole model runs, as ever."""
    report = crosscheck(folder, layers=[1], **SHORT)
    assert "continued" in {row.phase for row in report.rows} and "absent" not in str(report)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("crosscheck", "--layers", "0", *FLAGS), "model-00002-of-00006.safetensors is missing"),
        (("crosscheck", "--layers", "1,9", *FLAGS), "There is no layer 9"),
        (("crosscheck", "--layers", "1", "--against", "transformers", *FLAGS), "compared with minimax_torch alone"),
        (("crosscheck", *FLAGS), "is missing"),
        (("crosscheck", "--stream-weights", *FLAGS), "is missing"),
        (("crosscheck", "--stream-weights", "--length", 0), "length is 0"),
        (("inspect", "--layers", "9"), "nothing of a layer 9"),
        (("inspect", "--layers", "x"), "--layers is 'x'"),
    ],
    ids=lambda x: " ".join(map(str, x[:4])) if isinstance(x, tuple) else "",
)
def test_what_cannot_be_run_is_told_in_one_sentence(arguments, told, part, capsys):
    assert run(arguments[0], part, *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1


def test_an_index_without_the_layers(part, capsys):
    """The configuration knows them, the index does not."""
    index = part / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model.layers.1.self_attn.out_proj", "model.layers.1.nothing"))
    assert run("crosscheck", part, "--layers", "1", *FLAGS) == 2
    assert "lacks 'model.layers.1.self_attn.out_proj.weight'" in capsys.readouterr().err


def test_inspect_lists_shards_by_the_index_alone(folder, capsys):
    """With no shard and no configuration there."""
    files = [file.name for file in Checkpoint(folder).shards([1, 3])]
    assert run("inspect", folder, "--layers", "1,3") == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"{name} +[\d,]+ bytes", told) for name in files) and "2 of 6 shards, 0 of them" in told
    for file in [*folder.glob("*.safetensors"), folder / "config.json"]:
        file.unlink()
    assert run("inspect", folder, "--layers", "1,3") == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"{name} +absent", told) for name in files) and "2 of 6 shards, 2 of them" in told
    assert "model-00001" not in told


def test_inspect_counts_a_model_of_which_only_a_part_is_there(part, capsys):
    """By its configuration; what is stored is not told."""
    assert run("inspect", part) == 0
    assert "parameters" in (told := capsys.readouterr().out) and "as stored" not in told


def test_the_command_line_says_what_it_will_read_and_streams(folder, capsys):
    """To the other channel, so that what is printed is the same as without."""
    assert run("crosscheck", folder, "--stream-weights", *FLAGS) == 0
    said = capsys.readouterr()
    assert "reads at most" in said.err and "weights were streamed" in said.out
    prompt = ("--ids", "5,6,7;8,9", "--max-new-tokens", 5)
    assert run("generate", folder, *prompt) == 0
    want = capsys.readouterr()
    for twin in ((), ("--twin",)):
        assert run("generate", folder, *prompt, "--stream-weights", *twin) == 0
        said = capsys.readouterr()
        assert said.out == want.out and "reads at most" in said.err


def test_layers_say_what_they_will_read_without_being_asked(part, capsys):
    """They are streamed whatever was said."""
    assert run("crosscheck", part, "--layers", "1", *FLAGS) == 0
    assert "reads at most" in capsys.readouterr().err


def test_make_writes_a_checkpoint(tmp_path, capsys):
    """Of any configuration, with the kinds of layers that were asked for; not over another."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG.to_dict()))
    made = tmp_path / "made"
    assert run("make", made, "--config", config, "--layer-types", "full,linear") == 0
    assert "to be written" in capsys.readouterr().err
    assert Checkpoint(made).layers() == {0, 1}
    assert MiniMaxForCausalLM.from_pretrained(made).config.layer_types == (SOFTMAX, LIGHTNING)
    assert run("crosscheck", made, "--stream-weights", *FLAGS) == 0
    assert run("make", made, "--config", config) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert run("make", tmp_path / "other", "--config", config, "--layer-types", "round") == 2
    assert not (tmp_path / "other").exists()


def test_a_number_that_is_none_is_told_by_name(folder, capfd):
    """In one sentence after the forecast, without a warning beside it."""
    entry = Checkpoint(folder).entry("model.layers.2.self_attn.o_proj.weight")
    with open(entry.file, "r+b") as f:
        f.seek(entry.offset + 2 * 77)
        f.write(b"\xc0\x7f")
    assert run("crosscheck", folder, "--stream-weights", *FLAGS) == 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2 and "model.layers.2.self_attn.o_proj.weight" in told[1] and "NaN" in told[1]


@pytest.mark.slow
def test_a_streamed_run_stays_below_its_largest_tensor(capsys):
    """Measured on processes of their own: peak memory, and bytes read beside bytes foretold."""
    assert run("bench", "streaming") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("minimax_")]
    assert len(lines) == 2
    for line in lines:
        peak, read = (float(re.search(rf"([\d.]+) × {told}", line)[1]) for told in ("the largest", "what was"))
        assert peak < 1 and 0.5 < read <= 1
