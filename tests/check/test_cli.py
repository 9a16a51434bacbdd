"""The command line: exit status 0, 1 or 2, and one sentence where the input is bad."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from minimax_numpy import MiniMaxConfig
from minimax_numpy.checkpoint import write_whole
from minimax_numpy.cli import main
from minimax_numpy.counts import quantized_bytes
from minimax_numpy.shipped import TINY


def run(*arguments: str) -> int:
    return main([str(x) for x in arguments])


def test_demo_says_that_the_twins_are_the_same(capsys):
    assert run("demo") == 0
    told = capsys.readouterr().out
    assert "the same: " in told and "token for token the same" in told


def test_demo_works_without_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['minimax_torch'] = None\n"
        "from minimax_numpy.cli import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'minimax-twin[torch]'" in done.stdout


def test_crosscheck_exits_0_1_and_2(capsys, tmp_path):
    report = tmp_path / "report.json"
    assert run("crosscheck", "--length", 12, "--decode", 1, "--json", report) == 0
    assert json.loads(report.read_text())["ok"]
    assert run("crosscheck", "--against", "transformers", "--length", 12, "--decode", 1) == 1
    told = capsys.readouterr().out
    assert "first difference: model.layers.7.self_attn.key" in told
    assert "looks like: the softmax layer's rotary, on the whole head" in told
    assert run("crosscheck", "nowhere") == 2


def test_ops_can_be_checked_by_name(capsys):
    assert run("crosscheck", "--op", "rms_norm") == 0
    assert run("crosscheck", "--op", "rms_norm", "--against", "minimax_numpy.ops:softmax") == 2
    assert run("crosscheck", "--op", "silu", "--against", "minimax_numpy.ops:sigmoid") == 1
    assert "first difference: out" in capsys.readouterr().out


def test_inspect_prints_the_released_model(capsys):
    assert run("inspect", "text-01", "--length", 1_048_576) == 0
    told = capsys.readouterr().out
    for figure in ("456,089,655,296", "45,944,920,064", "912,210,767,872", "280 MiB", "40 GiB"):
        assert figure in told
    assert run("inspect", TINY) == 0
    assert run("inspect", TINY / "config.json") == 0


@pytest.mark.parametrize("kind, figure", [("nf4", "260.1 GB"), ("nf4-double", "239.0 GB"), ("int8", "458.9 GB")])
def test_inspect_prints_the_bytes_of_a_quantised_model(kind, figure, capsys):
    """Without the option, nothing of the kind."""
    assert run("inspect", "text-01", "--quantization", kind) == 0
    assert f"bytes in {kind}" in (told := capsys.readouterr().out) and figure in told
    assert run("inspect", TINY, "--quantization", kind) == 0
    assert f"{quantized_bytes(MiniMaxConfig.from_pretrained(TINY), kind)[0]:,}" in capsys.readouterr().out
    assert run("inspect", "text-01") == 0
    assert kind not in capsys.readouterr().out


def test_generate_is_the_same_in_both(capsys):
    prompt = ("--ids", "1,77,105;1,5,6,7", "--max-new-tokens", 6)
    assert run("generate", *prompt) == 0
    ours = capsys.readouterr().out
    assert run("generate", *prompt, "--twin") == 0
    assert capsys.readouterr().out == ours and len(ours.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "nowhere"),
        ("inspect", TINY, "--length", 0),
        ("generate", "--ids", "1,x"),
        ("generate", "--ids", "1,999"),
        ("generate", "--ids", "9" * 20),
        ("generate", "--ids", "1", "--max-new-tokens", -1),
        ("generate", "--ids", "1", "--twin", "--device", "cuda:99"),
        ("crosscheck", "--device", "nonsense"),
        ("crosscheck", "--layers", "a"),
        ("crosscheck", "--layers", "99"),
        ("crosscheck", "--layers", ""),
        ("crosscheck", "--seed", -1),
        ("golden", "somewhere", "--op", "silu", "--seed", -1),
        ("crosscheck", "--length", 0),
        ("crosscheck", "--against", "nothing.safetensors"),
        ("crosscheck", "--against", "no.such.module:f"),
        ("crosscheck", "--against", "json:nope"),
        ("crosscheck", "--op", "nope", "--against", "json:loads"),
        ("crosscheck", "--op", "rms_norm", "--golden", "x"),
        ("crosscheck", "--json", "/nowhere/report.json", "--length", 4, "--decode", 0),
        ("golden", "somewhere"),
        ("golden", "somewhere", "--op", "nope"),
    ],
    ids=lambda a: " ".join(map(str, a[:1] + a[-2:])).replace(str(TINY), "TINY"),
)
def test_bad_input_is_told_in_one_sentence(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("minimax-twin: ") and len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option, file", [("--json", "no/x.json"), ("--json", "."), ("--plot", "no/x.svg"), ("--plot", "x.pdf")]
)
def test_a_report_that_cannot_be_written_is_refused_before_the_run(option, file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minimax_numpy.cli.crosscheck", pytest.fail)
    assert run("crosscheck", option, file) == 2
    assert capsys.readouterr().err.startswith(f"minimax-twin: {option} is '{file}'")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file")
def test_a_device_is_not_renamed_over(capsys, tmp_path):
    """A pipe, or /dev/null of somebody who may do anything, is what it was; of a link the file is written."""
    os.mkfifo(tmp_path / "pipe")
    assert run("generate", "--ids", "1", "--json", tmp_path / "pipe") == 2
    assert "a device" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a device"):
        write_whole(tmp_path / "pipe", Path.touch)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("file")
    assert run("generate", "--ids", "1", "--json", tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and "ids" in (tmp_path / "file").read_text()


def test_a_folder_that_takes_no_files_is_refused_before_the_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("minimax_numpy.cli.crosscheck", pytest.fail)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert run("crosscheck", "--json", tmp_path / "x.json") == 2
    assert "nothing can be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, told", [(KeyError("x"), "KeyError: 'x'"), (ValueError("a\nb"), "a"), (OSError(), "OSError: no message")]
)
def test_no_error_is_taken_for_a_difference(error, told, capsys, monkeypatch):
    """Exit status 1 says "different"; a traceback would say so too."""

    def fail(*_):
        raise error

    monkeypatch.setattr("minimax_numpy.cli.describe", fail)
    assert run("inspect") == 2
    assert capsys.readouterr().err == f"minimax-twin: {told}\n"


def test_a_module_in_the_current_folder_is_found(tmp_path):
    """By the installed command, as in README: no PYTHONPATH is needed."""
    (tmp_path / "my_port.py").write_text(
        "from minimax_torch import MiniMaxForCausalLM\nload = MiniMaxForCausalLM.from_pretrained\n"
    )
    command = "import sys; sys.path.remove(''); from minimax_numpy.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ("crosscheck", "--against", "my_port:load", "--length", "8", "--decode", "1")
    done = subprocess.run([sys.executable, "-c", command, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("against", ["minimax_torch", "transformers"])
def test_broken_checkpoints_are_told_in_one_sentence(against, capsys, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:1000], whole[:-100], b"", b"\xff" * 64, whole[:8] + b"}" + whole[9:]):
        file.write_bytes(broken)
        assert run("crosscheck", tmp_path / "model", "--against", against) == 2
    file.write_bytes(whole)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for key, value in (
        ("num_experts_per_tok", 9),
        ("layer_types", ["mystery"] * 8),
        ("num_attention_heads", 5),
        ("hidden_size", 0),
        ("rotary_dim", 7),
        ("model_type", "llama"),
        ("hidden_size", "32"),
        ("vocab_size", None),
    ):
        (tmp_path / "model" / "config.json").write_text(json.dumps({**config, key: value}))
        assert run("crosscheck", tmp_path / "model", "--against", against) == 2, key
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 13 and all(line.startswith("minimax-twin: ") for line in told)


def test_nan_in_weights_is_told_by_name(capsys, tmp_path):
    from minimax_numpy.checkpoint import read_tensors, save_tensors

    shutil.copytree(TINY, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = read_tensors(file)
    tensors["model.layers.3.self_attn.norm.weight"][5] = np.nan
    save_tensors(file, tensors)
    assert run("crosscheck", tmp_path / "model") == 2
    assert "model.layers.3.self_attn.norm.weight" in capsys.readouterr().err
