"""``minimax-twin generate``: prompts of every kind, what it prints, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from minimax_numpy import MiniMaxForCausalLM
from minimax_numpy.cli import main
from minimax_numpy.shipped import TINY
from minimax_numpy.text import Tokenizer

TOKENIZER, MODEL = Tokenizer(TINY), MiniMaxForCausalLM.from_pretrained(TINY)
HELLO = [{"role": "user", "content": "Hello!"}]


def run(*arguments) -> int:
    return main(["generate", *map(str, arguments)])


@pytest.fixture
def told(capsys):
    """Run the command, which must succeed; return what it printed."""

    def tell(*arguments) -> str:
        assert run(*arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return tell


def continued(ids, mask=None, **options) -> list[list[int]]:
    """What the model goes on with, without the command."""
    ids = np.atleast_2d(ids)
    return MODEL.generate(ids, mask, **options)[:, ids.shape[1] :].tolist()


def test_ids_in_ids_out(told):
    """Each row as it would be alone, without the pads that follow its stop."""
    rows = [[1, 77, 105], [1, 5, 6, 7, 8]]
    alone = [continued(row, max_new_tokens=9)[0] for row in rows]
    assert told("--ids", "1,77,105;1,5,6,7,8", "--max-new-tokens", 9).split() == [",".join(map(str, r)) for r in alone]
    stop, end = alone[0][2], alone[0].index(alone[0][2]) + 1
    stopped = told("--ids", "1,77,105;1,5,6,7,8", "--max-new-tokens", 9, "--eos", f"509,{stop}").split()
    assert stopped[0] == ",".join(map(str, alone[0][:end]))


def test_text_in_text_out(told):
    ids, _ = TOKENIZER.encode("Once there was a king")
    alone = TOKENIZER.decode(continued(ids, max_new_tokens=8)[0])
    assert told("--text", "Once there was a king", "--max-new-tokens", 8) == alone + "\n"
    several = told("--text", "é", "--text", "Once there was a king", "--max-new-tokens", 8)
    assert several.startswith("[0] ") and several.endswith(f"[1] {alone}\n")


def test_a_chat_from_the_line_or_from_a_file(told, tmp_path):
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]))
    ids, _ = TOKENIZER.encode_chat([HELLO])
    assert told("--chat", "Hello!") == TOKENIZER.decode(continued(ids)[0]) + "\n" == told("--messages", file)
    opened = told("--chat", "Hello!", "--system", "Be kind.")
    ids, _ = TOKENIZER.encode_chat([[{"role": "system", "content": "Be kind."}, *HELLO]])
    assert opened == TOKENIZER.decode(continued(ids)[0]) + "\n" == told("--messages", file, "--system", "Be kind.")


def test_what_is_given_is_passed_on_and_nothing_else(told, monkeypatch):
    """Defaults are the model's; so are the names. Half a sense of an option, such as --top-k on its own, is refused."""
    calls = []

    def generate(self, ids, mask, **options):
        calls.append(options)
        return ids

    monkeypatch.setattr(MiniMaxForCausalLM, "generate", generate)
    told("--ids", 1)
    told("--ids", 1, "--do-sample", "--temperature", 0.5, "--top-k", 3, "--top-p", 0.9, "--seed", 0)
    told("--ids", 1, "--num-beams", 3, "--length-penalty", 0, "--eos", "7,8", "--max-new-tokens", 0)
    assert calls == [
        {},
        {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 0},
        {"num_beams": 3, "length_penalty": 0.0, "eos_token_id": (7, 8), "max_new_tokens": 0},
    ]


def test_results_are_written_as_json(told, tmp_path):
    file = tmp_path / "out.json"
    text = told("--text", "Once", "--text", "Once upon", "--max-new-tokens", 5, "--json", file)
    first, second = json.loads(file.read_text(encoding="utf-8"))
    assert text == f"[0] {first['text']}\n[1] {second['text']}\n"
    assert first["prompt_ids"] == TOKENIZER.encode("Once")[0][0].tolist()
    assert first["ids"] == continued(first["prompt_ids"], max_new_tokens=5)[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows tells a closed pipe in its own way")
def test_a_reader_who_stops_is_no_bad_input(tmp_path):
    """Nothing is said about it, and the file that was asked for is there."""
    command = [sys.executable, "-m", "minimax_numpy.cli", "generate", "--ids", "1", "--max-new-tokens", "3"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, "--json", tmp_path / "x.json"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    assert json.loads((tmp_path / "x.json").read_text())


def test_results_that_cannot_be_kept_are_shown(capsys, monkeypatch, tmp_path):
    """A disk that fills takes the file, not the answer."""

    def fills(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("minimax_numpy.talk.write_whole", fills)
    assert run("--ids", "1,77", "--max-new-tokens", 3, "--json", tmp_path / "x.json") == 2
    out, error = capsys.readouterr()
    assert out == ",".join(map(str, continued([1, 77], max_new_tokens=3)[0])) + "\n"
    assert error == "minimax-twin: No space left on device\n"


def test_seeds_give_the_same_tokens_in_both_twins(told):
    draw = ("--ids", "1,77,105;1,5", "--do-sample", "--top-k", 50, "--max-new-tokens", 12)
    ours = told(*draw, "--seed", 3)
    assert ours == told(*draw, "--seed", 3, "--twin") == told(*draw, "--seed", 3, "--dtype", "float64")
    assert ours != told(*draw, "--seed", 4)


def test_beams_from_the_command_are_the_models(told):
    wanted = continued([1, 77, 105], num_beams=3, length_penalty=0.5, max_new_tokens=8)[0]
    printed = told("--ids", "1,77,105", "--num-beams", 3, "--length-penalty", 0.5, "--max-new-tokens", 8)
    assert printed == ",".join(map(str, wanted)) + "\n"


def test_log_probabilities_are_shown_token_by_token(told, tmp_path):
    """The logarithm of softmax, beside each token and its text."""
    file = tmp_path / "out.json"
    lines = told("--text", "Once", "--max-new-tokens", 3, "--logprobs", "--json", file).splitlines()[-3:]
    (result,) = json.loads(file.read_text(encoding="utf-8"))
    logits = MODEL(np.array([result["prompt_ids"]])).logits[0, -1].astype(float)
    assert result["logprobs"][0] == pytest.approx(logits.max() - np.log(np.exp(logits).sum()), abs=1e-5)
    for line, token, logprob in zip(lines, result["ids"], result["logprobs"], strict=True):
        assert line.split()[:2] == [f"{logprob:.4f}", str(token)]
        assert line.endswith(repr(TOKENIZER.decode([token], skip_special_tokens=False)))


@pytest.mark.parametrize(
    "prompt", [("--ids", "1,77,105"), ("--text", "Once"), ("--chat", "Hello!")], ids=lambda p: p[0]
)
@pytest.mark.parametrize("twin", [(), ("--twin",)], ids=["minimax_numpy", "minimax_torch"])
def test_streamed_is_the_same_as_at_once(prompt, twin, told):
    draw = (*prompt, *twin, "--do-sample", "--seed", 1, "--max-new-tokens", 20)
    assert told(*draw, "--stream") == told(*draw)


def test_tokens_are_shown_as_they_come(monkeypatch):
    """Printed and flushed before the next one is asked for."""
    shown = []

    class Out:
        def __init__(self):
            self.waiting = ""

        def write(self, text):
            self.waiting += text

        def flush(self):
            shown.append(self.waiting)
            self.waiting = ""

    def stream(self, ids, mask, **options):
        for n in (5, 6, 7):
            assert len(shown) == n - 5
            yield np.array([n])

    monkeypatch.setattr(MiniMaxForCausalLM, "stream", stream)
    monkeypatch.setattr(sys, "stdout", Out())
    assert run("--ids", 1, "--stream") == 0
    assert shown == ["5", ",6", ",7", "\n"]


def test_long_prompts_tell_how_far_they_are(capsys):
    assert run("--ids", ",".join(["5"] * 50), "--prefill-chunk", 20, "--max-new-tokens", 2) == 0
    whole = capsys.readouterr()
    assert whole.err.splitlines()[-1].split("\r")[-1] == "read 50 of 50 tokens"
    assert run("--ids", ",".join(["5"] * 50), "--max-new-tokens", 2) == 0
    assert capsys.readouterr() == (whole.out, "")


def test_a_prompt_beyond_the_models_positions_is_warned_of_in_one_line(capsys, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((TINY / "config.json").read_text()) | {"max_position_embeddings": 4}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert run(tmp_path / "model", "--ids", "1,5,6,7", "--max-new-tokens", 3) == 0
    out, error = capsys.readouterr()
    assert out.count(",") == 2 and error.startswith("minimax-twin: ") and len(error.splitlines()) == 1


INTERRUPTED = """
import sys, numpy as np
from minimax_numpy import MiniMaxForCausalLM
from minimax_numpy.cli import main

def stream(self, ids, mask, **options):
    while True:
        yield np.array([5])

MiniMaxForCausalLM.stream = stream
sys.exit(main(["generate", "--ids", "1", "--stream"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_an_interrupt_ends_the_line_without_a_traceback():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    shown = process.stdout.read(8)  # it is streaming
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")
    assert set(shown + rest) == set("5,\n") and rest.endswith("\n") and rest.count("\n") == 1


BAD = {
    "no prompt": [],
    "two prompts": ["--ids", "1", "--text", "x"],
    "no ids": ["--ids", ""],
    "half an id": ["--ids", "1;2.5"],
    "a stop that is no id": ["--ids", "1", "--eos", "x"],
    "an empty text": ["--text", ""],
    "one empty text of two": ["--text", "x", "--text", ""],
    "a system's message without a chat": ["--text", "x", "--system", "y"],
    "two systems' messages": ["--messages", "chat.json", "--system", "y"],
    "a missing file": ["--messages", "nowhere.json"],
    "a file that is no JSON": ["--messages", "broken.json"],
    "a file that is no list": ["--messages", "object.json"],
    "a message without content": ["--messages", "half.json"],
    "an image": ["--messages", "image.json"],
    "temperature without drawing": ["--ids", "1", "--temperature", "0.5"],
    "temperature 0 without drawing": ["--ids", "1", "--temperature", "0"],
    "a seed without drawing": ["--ids", "1", "--seed", "0"],
    "a length penalty without beams": ["--ids", "1", "--length-penalty", "2"],
    "a length penalty of a single beam": ["--ids", "1", "--num-beams", "1", "--length-penalty", "2"],
    "a device without the twin": ["--ids", "1", "--device", "cpu"],
    "bfloat16 in NumPy": ["--ids", "1", "--dtype", "bfloat16"],
    "a stream of beams": ["--ids", "1", "--stream", "--num-beams", "2"],
    "a stream of log-probabilities": ["--ids", "1", "--stream", "--logprobs"],
    "a stream into a file": ["--ids", "1", "--stream", "--json", "x.json"],
    "a stream of two rows": ["--ids", "1;2", "--stream"],
    "a folder that is not there for the results": ["--ids", "1", "--json", "no/x.json"],
    "a negative seed": ["--ids", "1", "--do-sample", "--seed", "-1"],
    "streamed weights in few bits": ["--ids", "1", "--stream-weights", "--quantization", "nf4"],
    "a stop that is no id, and streamed weights": ["--ids", "1", "--stream-weights", "--eos", "x"],
}
CHATS = {
    "chat.json": '[{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]',
    "broken.json": "[",
    "object.json": '{"role": "user", "content": "x"}',
    "half.json": '[{"role": "user"}]',
    "image.json": '[{"role": "user", "content": [{"type": "image"}]}]',
}


@pytest.mark.parametrize("title", BAD)
def test_bad_input_is_told_before_the_model_is_loaded(title, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MiniMaxForCausalLM, "from_pretrained", pytest.fail)
    for name, text in CHATS.items():
        (tmp_path / name).write_text(text)
    assert run(*BAD[title]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("minimax-twin: ") and len(error.splitlines()) == 1
    assert {file.name for file in tmp_path.iterdir()} == set(CHATS)


WRONG = {
    "a negative temperature": ["--do-sample", "--temperature", "-1"],
    "top-p above 1": ["--do-sample", "--top-p", "1.5"],
    "no beams": ["--num-beams", "0"],
    "an id that the model does not know": ["--ids", "512"],
    "a negative number of tokens": ["--max-new-tokens", "-1"],
    "a chunk of nothing": ["--prefill-chunk", "0"],
    "a stream of a negative number of tokens": ["--stream", "--max-new-tokens", "-1"],
}


@pytest.mark.parametrize("title", WRONG)
def test_what_the_model_refuses_is_told_in_one_sentence(title, capsys):
    given = WRONG[title]
    assert run(*(given if "--ids" in given else ["--ids", "1", *given])) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("minimax-twin: ") and len(error.splitlines()) == 1
    assert "Error:" not in error, "an error that nobody foresaw"


def test_a_folder_without_tokenizer_still_takes_ids(capsys, tmp_path):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(TINY / file, tmp_path)
    assert run(tmp_path, "--ids", "1,77") == 0
    assert run(tmp_path, "--text", "x") == 2
    assert "has no tokenizer.json; give ids" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_are_asked_for(kind, told, monkeypatch):
    asked = []

    def from_pretrained(path, dtype=None, **options):
        asked.append(options)
        return MODEL

    monkeypatch.setattr(MiniMaxForCausalLM, "from_pretrained", from_pretrained)
    told("--ids", "1", "--quantization", kind)
    told("--ids", "1")
    assert asked == [{"quantization": kind}, {}]
