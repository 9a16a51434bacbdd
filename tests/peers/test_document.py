"""The examples of transformers' page of this model, as docs/use/transformers.md mends them, run as they stand there.

They ask for "MiniMaxAI/MiniMax-Text-01-hf": a folder of that name lies where they run, and in it the shipped model,
its tokenizer and its chat template.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from minimax_numpy.shipped import TINY
from minimax_torch import transformers_bridge as bridge
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NAME = "MiniMaxAI/MiniMax-Text-01-hf"
PAGE = (Path(__file__).parents[2] / "docs/use/transformers.md").read_text(encoding="utf-8")
CHAT, FUSED, FOUR_BITS, NEW_HEAD = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
MESSAGES = [{"role": "user", "content": "Do you have mayonnaise recipes?"}]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The folder in place; and the Auto classes as they were, afterwards."""
    shutil.copytree(TINY, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    yield
    bridge.unregister()


def run(example: str) -> dict:
    """What an example leaves behind."""
    torch.manual_seed(0)
    exec(compile(example, "docs/use/transformers.md", "exec"), names := {})
    return names


@pytest.mark.parametrize(
    "example, dtype, kind",
    [(CHAT, torch.bfloat16, None), (FUSED, torch.float16, None), (FOUR_BITS, torch.float16, "nf4")],
    ids=["chat", "fused attention", "four bits"],
)
def test_an_example_runs_as_it_is_written(example, dtype, kind, capsys):
    """It prints the prompt and what the twin made of it."""
    names = run(example)
    model, tokenizer, prompt = names["model"], names["tokenizer"], names["model_inputs"]["input_ids"]
    assert isinstance(model, bridge.MiniMaxForCausalLM) and model.dtype == dtype
    assert getattr(model.model.layers[0].mlp.experts.down_proj, "kind", None) == kind
    said = names["generated_ids"]
    assert torch.equal(said[:, : prompt.shape[1]], prompt) and 1 <= said.shape[1] - prompt.shape[1] <= 100
    printed = capsys.readouterr().out
    assert printed == tokenizer.batch_decode(said)[0] + "\n"
    assert "What is your favourite condiment?" in printed or "My favourite condiment is" in printed


def test_a_new_head_as_it_is_written():
    bridge.register()
    names = {"AutoModel": AutoModel, "AutoModelForSequenceClassification": AutoModelForSequenceClassification}
    exec(NEW_HEAD, names)
    assert isinstance(names["model"], bridge.MiniMaxForSequenceClassification)
    for name, x in names["base"].state_dict().items():
        assert torch.equal(names["model"].state_dict()[f"model.{name}"], x)


def test_the_slips_are_slips():
    """Each does what the page's tables say."""
    bridge.register()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(NAME), AutoTokenizer.from_pretrained(NAME)
    told, untold = (
        tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=add, tokenize=False) for add in (1, 0)
    )
    assert told.removeprefix(untold) == "<beginning_of_sentence>ai name=assistant\n"
    with pytest.raises(AttributeError):
        model.generate(tokenizer.apply_chat_template(MESSAGES, return_tensors="pt"), max_new_tokens=2)
    with pytest.raises(AttributeError):
        transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="torch.float16")
    with pytest.raises(TypeError, match="BitsAndBytesConfig"):
        AutoModelForCausalLM.from_pretrained(NAME, quantization_config=True)
    assert AutoModelForCausalLM.from_pretrained(NAME, torch_dtype=torch.float16).dtype == torch.float16
    bridge.unregister()
    with pytest.raises(AttributeError):
        AutoModelForCausalLM.from_pretrained(NAME, quantization_config=True)


def test_messages_as_strings_and_as_parts():
    """The released template takes lists of parts alone; the shipped one takes what the page writes, too."""
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
    assert tokenizer.apply_chat_template(parts).input_ids == tokenizer.apply_chat_template(MESSAGES).input_ids


def test_the_pipeline_generates_with_the_twin():
    """transformers' one-line way to a chat."""
    bridge.register()
    chat = transformers.pipeline("text-generation", model=NAME, device_map="cpu")
    assert isinstance(chat.model, bridge.MiniMaxForCausalLM)
    said = chat(MESSAGES, max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert said[:-1] == MESSAGES and said[-1]["role"] == "assistant"
