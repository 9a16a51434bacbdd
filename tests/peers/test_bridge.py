"""In transformers' place: its Auto classes give our twin, and its ``generate`` is right on it in every mode.

All at the released layout, seven lightning layers and a softmax layer, half of each head rotated, with a window and
without, on a batch of eight rows of unequal length padded on the left. Where transformers' own MiniMax goes wrong
there (docs/use/transformers.md has the list), each row alone is the judge; where it is right, it is.
"""

import copy
import importlib
import json
import shutil
import sys
from contextlib import contextmanager

import minimax_numpy
import minimax_torch
import numpy as np
import pytest
import torch
import transformers
from close import ROUNDING, assert_one_sentence, assert_same, every_head, lively, prompts
from minimax_numpy.checkpoint import CONSTANTS
from minimax_numpy.config import HEADS, LIGHTNING, SOFTMAX, MiniMaxConfig
from minimax_numpy.counts import quantized_bytes
from minimax_torch import transformers_bridge as bridge
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NEW = 8
AUTO = dict(zip(HEADS, bridge.REGISTERED, strict=True))


@pytest.fixture(scope="module", autouse=True)
def registered():
    bridge.register()
    bridge.register()  # more than once is once
    yield
    bridge.unregister()


@contextmanager
def unregistered():
    """For as long as that, the Auto classes are as they were."""
    bridge.unregister()
    try:
        yield
    finally:
        bridge.register()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model of that head and those changes in it; each is made once."""
    made = {}

    def make(head="MiniMaxForCausalLM", seed=0, **changes):
        key = (head, seed, *changes.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model")
            config = MiniMaxConfig.tiny(**{"eos_token_id": None, "num_labels": 3, **changes})
            lively(config, head, seed).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="module", params=[None, 5], ids=["no window", "a window of 5"])
def model(request, folder):
    """The language model, float64, as transformers' Auto class gives it."""
    return AutoModelForCausalLM.from_pretrained(folder(sliding_window=request.param))


LENGTHS = (12, 1, 9, 5, 12, 3, 7, 2)
IDS = torch.tensor(np.random.default_rng(7).integers(3, 256, (8, 12)))
MASK = torch.tensor([[0] * (12 - n) + [1] * n for n in LENGTHS])
IDS[MASK == 0] = 0
REPEATS = torch.tensor([[7, 8, 9, 10] * 5])  # what a lookup in the prompt can guess from


def rows():
    """Each row alone, without its padding."""
    return [IDS[row : row + 1, -n:] for row, n in enumerate(LENGTHS)]


def generate(model, ids=IDS, mask=MASK, **options):
    """transformers' generate; only the new tokens."""
    mask = None if mask is None or mask.shape != ids.shape else mask
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()


def ours(model, ids):
    """Our own greedy tokens of a row alone."""
    return model.twin.generate(ids, max_new_tokens=NEW)[:, ids.shape[1] :].tolist()


def test_the_auto_class_gives_our_twin(model):
    """With the modules where transformers has them, and the configuration's keys that it does not know."""
    assert isinstance(model, bridge.MiniMaxForCausalLM) and isinstance(model.twin, minimax_torch.MiniMaxForCausalLM)
    assert model.get_submodule("model.layers.3.self_attn.qkv_proj") is model.twin.model.layers[3].self_attn.qkv_proj
    assert model.twin.config.rotary_dim == 8 and model.twin.config.slope_rule == "original"
    assert model.dtype == torch.float64 and not model.training
    assert set(model.get_experts_implementation().values()) == {"eager"}  # generate has none of its own to put in
    assert set(model.state_dict()) == set(model.twin.config.parameter_shapes())


def test_greedy_tokens_of_a_padded_batch_are_those_of_each_row_alone(model):
    assert generate(model) == [ours(model, row)[0] for row in rows()]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "length_penalty": -1.0}], ids=["greedy", "beams"])
def test_rows_end_at_different_times(model, options):
    """At any of several ids, a row is done; the others go on as if alone."""
    ends = sorted({tokens[step] for tokens, step in zip(generate(model, **options), (0, 2, 4), strict=False)})
    options = {"eos_token_id": ends, "pad_token_id": 1, **options}
    together = generate(model, **options)
    alone = [generate(model, row, **options)[0] for row in rows()]
    longest = max(len(tokens) for tokens in alone)
    assert together == [tokens + [1] * (longest - len(tokens)) for tokens in alone]
    assert len({len(tokens) for tokens in alone}) > 1


OPTIONS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_p": 0.95, "temperature": 0.7},
    "beams": {"num_beams": 4},
    "sampled beams": {"num_beams": 3, "do_sample": True, "top_k": 20},
    "several beams returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "several samples a row": {"do_sample": True, "num_return_sequences": 3},
    "guidance": {"guidance_scale": 1.5},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "a prompt in chunks": {"prefill_chunk_size": 5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_with_a_cache_as_without(model, options):
    """The same random numbers, the same tokens: a beam that the cache mixed up, or a lost position, would show."""
    torch.manual_seed(1)
    cached = generate(model, **options)
    torch.manual_seed(1)
    assert cached == generate(model, **{**options, "prefill_chunk_size": None}, use_cache=False)


@pytest.mark.parametrize(
    "options", [{"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 2}], ids=["4", "2 of 3"]
)
def test_beams_of_a_padded_batch_are_those_of_each_row_alone(model, options):
    alone = [generate(model, row, **options) for row in rows()]
    assert generate(model, **options) == [beam for beams in alone for beam in beams]


def test_a_row_samples_the_same_tokens_padded_or_not(model):
    """One row, so that both draw the same random numbers."""
    for row in (1, 3, 6):
        torch.manual_seed(row)
        padded = generate(model, IDS[row : row + 1], MASK[row : row + 1], do_sample=True)
        torch.manual_seed(row)
        assert padded == generate(model, rows()[row], do_sample=True)


def test_each_row_of_a_batch_samples_from_its_own_logits(model):
    """The logits that generate drew from are those of the row alone, read at once."""
    torch.manual_seed(0)
    options = {"do_sample": True, "output_logits": True, "return_dict_in_generate": True, "max_new_tokens": NEW}
    drawn = model.generate(IDS, attention_mask=MASK, **options)
    for row, length in enumerate(LENGTHS):
        text = drawn.sequences[row : row + 1, 12 - length :]
        with torch.no_grad():
            want = model(text).logits[0, length - 1 : -1]
        assert_same(torch.stack(drawn.logits)[:, row], want, ROUNDING)  # generate makes float32 of them


def test_a_prompt_of_embeddings(model):
    """Left-padded, too."""
    embeds = model.get_input_embeddings()(IDS)
    options = {"max_new_tokens": NEW, "do_sample": False}
    assert model.generate(inputs_embeds=embeds, attention_mask=MASK, **options).tolist() == generate(model)


@pytest.fixture(scope="module")
def assistant(folder):
    """A smaller model whose guesses are mostly wrong."""
    return AutoModelForCausalLM.from_pretrained(folder(seed=5, layer_types=(LIGHTNING, SOFTMAX)))


@pytest.mark.parametrize("row", range(8))
def test_assisted_decoding_is_greedy(model, assistant, row):
    """On a padded row, with guesses that are mostly wrong; alone, with guesses that are all right."""
    want = ours(model, rows()[row])
    assert generate(model, IDS[row : row + 1], MASK[row : row + 1], assistant_model=assistant) == want
    if row in (0, 1):
        assert generate(model, rows()[row], assistant_model=model) == want


@pytest.mark.parametrize("ids", [REPEATS, IDS[:1], IDS[1:2, -1:]], ids=["repeats", "does not", "one token"])
def test_looking_up_the_prompt_is_greedy(model, ids):
    assert generate(model, ids, mask=None, prompt_lookup_num_tokens=4) == ours(model, ids)


def test_guessing_after_a_long_prompt_runs_little_of_it_again(model, assistant, monkeypatch):
    """A wrong guess costs the tokens since, and not the prompt."""
    ids, ran = torch.tensor(prompts(model.twin.config, 1, 200)), []
    forward = type(model.twin.model).forward

    def counted(body, input_ids, *inputs, **named):
        ran.append(input_ids.shape[1])
        return forward(body, input_ids, *inputs, **named)

    want = ours(model, ids)
    for body in (model.twin.model, assistant.twin.model):
        monkeypatch.setattr(body, "forward", counted.__get__(body))
    for options in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
        ran.clear()
        assert generate(model, ids, mask=None, **options) == want
        models = 2 if "assistant_model" in options else 1
        assert sum(n for n in ran if n > bridge.REACH) < 200 * models and len(ran) < 80


@pytest.mark.parametrize("options", [{}, {"assistant_model": True}], ids=["alone", "assisted"])
def test_sampled_guesses_come_from_the_models_own_logits(model, assistant, options):
    """In assisted sampling the model accepts and draws by what it says of the whole text."""
    torch.manual_seed(4)
    options = {name: assistant for name in options} or {"prompt_lookup_num_tokens": 4}
    asked = {"do_sample": True, "output_logits": True, "return_dict_in_generate": True, "max_new_tokens": NEW}
    drawn = model.generate(REPEATS, **asked, **options)
    with torch.no_grad():
        want = model(drawn.sequences).logits[0, REPEATS.shape[1] - 1 : -1]
    assert len(want) == NEW
    assert_same(torch.stack(drawn.logits)[:, 0], want, ROUNDING)


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_second_turn_on_a_returned_cache_is_the_whole_conversation_at_once(model, chunk):
    """Whether all of it is handed in again or the new tokens alone."""
    first = model.generate(IDS, attention_mask=MASK, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    more = torch.tensor(prompts(model.twin.config, 8, 5))
    talk = torch.cat([first.sequences, more], dim=1)
    mask = torch.cat([MASK, torch.ones_like(talk[:, 12:])], dim=1)
    want = generate(model, talk, mask)
    again, new = copy.deepcopy(first.past_key_values), first.past_key_values
    assert generate(model, talk, mask, past_key_values=again, prefill_chunk_size=chunk) == want
    unseen = talk[:, new.get_seq_length() :]
    said = model.generate(
        unseen, attention_mask=mask, past_key_values=new, max_new_tokens=NEW, do_sample=False, prefill_chunk_size=chunk
    )
    assert said[:, unseen.shape[1] :].tolist() == want


@pytest.mark.parametrize("how", ["assisted", "looked up", "chunked"])
def test_a_second_turn_that_guesses(model, assistant, how):
    """Guessing goes on from a cache that was returned, and from one that had guessed before."""
    options = {"assisted": {"assistant_model": assistant}, "looked up": {"prompt_lookup_num_tokens": 3}}.get(how, {})
    asked = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    for first_options in ({}, options):
        first = model.generate(REPEATS, **asked, **first_options)
        talk = torch.cat([first.sequences, REPEATS], dim=1)
        got = generate(model, talk, mask=None, past_key_values=first.past_key_values, **options)
        assert got == ours(model, talk)


def test_one_prefill_for_many_continuations(model):
    """A cache copied is a cache of its own: what one continuation adds, the next does not see."""
    with torch.no_grad():
        prefix = model(IDS[:1]).past_key_values
    for seed in range(3):
        text = torch.cat([IDS[:1], torch.tensor(prompts(model.twin.config, 1, 4, seed=seed))], dim=1)
        assert generate(model, text, mask=None, past_key_values=copy.deepcopy(prefix)) == ours(model, text)
    assert prefix.get_seq_length() == 12


PACKED = (5, 1, 9, 4)
STARTS = np.cumsum([0, *PACKED])


def packed():
    """Four documents in one row, their positions, and each alone."""
    ids = torch.tensor(np.random.default_rng(3).integers(3, 256, (1, sum(PACKED))))
    positions = torch.cat([torch.arange(n) for n in PACKED])[None]
    return ids, positions, [ids[:, a:b] for a, b in zip(STARTS[:-1], STARTS[1:], strict=True)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("told", ["by positions", "by lengths"])
def test_packed_documents_do_not_see_each_other(folder, model, attention, told):
    """As a training run packs them: logits, hidden states, router logits, loss and gradients are each one's."""
    window = model.twin.config.sliding_window
    model = AutoModelForCausalLM.from_pretrained(folder(sliding_window=window), attn_implementation=attention)
    assert model.model.layers[7].self_attn.attn_implementation == attention
    ids, positions, alone = packed()
    ends = torch.tensor(STARTS, dtype=torch.int32)
    lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 9, "max_length_k": 9}
    asked = {"output_hidden_states": True, "output_router_logits": True}
    out = model(ids, position_ids=positions, labels=ids, **asked, **(lengths if told == "by lengths" else {}))
    assert out.past_key_values is None
    apart = [model(text, **asked) for text in alone]
    assert_same(out.logits, torch.cat([one.logits for one in apart], dim=1))
    for i, x in enumerate(out.hidden_states):
        assert_same(x, torch.cat([one.hidden_states[i] for one in apart], dim=1))
    for i, x in enumerate(out.router_logits):
        assert_same(x, torch.cat([one.router_logits[i] for one in apart]))
    tokens = sum(n - 1 for n in PACKED)
    scored = [
        torch.nn.functional.cross_entropy(one.logits[0, :-1], text[0, 1:], reduction="sum")
        for one, text in zip(apart, alone, strict=True)
    ]
    want = sum(scored) / tokens
    assert_same(out.loss - model.config.router_aux_loss_coef * out.aux_loss, want)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    found, wanted = (
        torch.autograd.grad(loss, model.get_parameter(name))[0]
        for loss in (model(ids, position_ids=positions, labels=ids, output_router_logits=False).loss, want)
    )
    assert_same(found, wanted)


def peer_folder(folder, head="MiniMaxForCausalLM", **changes):
    """A model that transformers gets right: its slopes, the whole head rotated."""
    right = {"slope_rule": "transformers", "rotary_dim": 16, "router_aux_loss_coef": 0.1, **changes}
    return folder(head, **right)


LABELS = {
    "MiniMaxModel": {},
    "MiniMaxForCausalLM": {"labels": torch.arange(26).reshape(2, 13)},
    "MiniMaxForSequenceClassification": {"labels": torch.tensor([0, 2])},
    "MiniMaxForTokenClassification": {"labels": torch.arange(26).reshape(2, 13) % 3},
    "MiniMaxForQuestionAnswering": {"start_positions": torch.tensor([0, 5]), "end_positions": torch.tensor([3, 12])},
}


@every_head
def test_what_it_says_is_what_transformers_says(head, folder):
    """Field by field, in kind, order and shape, by name and as a tuple: on a prompt, where theirs is right."""
    path = peer_folder(folder, head)
    mine = getattr(transformers, AUTO[head]).from_pretrained(path, dtype="float32")
    with unregistered():
        theirs = getattr(transformers, head).from_pretrained(path, dtype=torch.float32, experts_implementation="eager")
    assert type(mine).__name__ == type(theirs).__name__ and type(mine) is not type(theirs)
    assert set(mine.state_dict()) == {name for name in theirs.state_dict() if not CONSTANTS.search(name)}
    ids = torch.tensor(prompts(mine.twin.config, 2, 13))
    asked = {"output_hidden_states": True, "output_router_logits": True, "use_cache": True, **LABELS[head]}
    with torch.no_grad():
        got, want = mine.eval()(ids, **asked), theirs.eval()(ids, **asked)
        assert type(got) is type(want) and set(got) == set(want)
        for name, x in want.items():
            if name == "past_key_values":
                assert got[name].get_seq_length() == 13 and len(got[name]) == 8
                continue
            pairs = zip(got[name], x, strict=True) if isinstance(x, tuple) else [(got[name], x)]
            for one, other in pairs:
                assert_same(one, other, ROUNDING)
        plain = mine(ids, return_dict=False, use_cache=False, **LABELS[head])
    assert isinstance(plain, tuple) and len(plain) == len(LABELS[head]) // (2 if "Q" in head else 1) + (
        2 if "Q" in head else 1
    )


def test_an_answer_that_was_cut_off_counts_for_nothing(folder):
    """A position past the end of the text is no position, as in transformers; a label out of range is refused."""
    model = getattr(transformers, AUTO["MiniMaxForQuestionAnswering"]).from_pretrained(
        folder("MiniMaxForQuestionAnswering")
    )
    start, end = torch.tensor([2, 40]), torch.tensor([12, 3])
    with torch.no_grad():
        out = model(IDS[:2], start_positions=start, end_positions=end)
        scores = out.start_logits[:1].log_softmax(-1), out.end_logits.log_softmax(-1)
    want = -(scores[0][0, 2] + scores[1][1, 3]) / 2  # of four positions, two are past the end of 12 tokens
    assert_same(out.loss, want)
    with pytest.raises(ValueError, match="out of range"):
        model(IDS[:2], start_positions=start, end_positions=-end)


def test_logits_to_keep(model):
    """The last n, or those named."""
    with torch.no_grad():
        whole = model(IDS, attention_mask=MASK).logits
        assert_same(model(IDS, attention_mask=MASK, logits_to_keep=3).logits, whole[:, -3:])
        assert_same(model(IDS, attention_mask=MASK, logits_to_keep=torch.tensor([2, 11])).logits, whole[:, [2, 11]])


def test_a_mask_may_speak_of_the_past_or_not(model):
    """transformers' mask covers what the cache has seen; ours this call's tokens alone. Holes in it are no tokens."""
    mask = MASK.clone()
    mask[0, 3:5] = mask[2, 8] = 0
    with torch.no_grad():
        whole = model(IDS, attention_mask=mask).logits
        for spoken in (slice(None), slice(6, None)):
            cache = model(IDS[:, :6], attention_mask=mask[:, :6]).past_key_values
            rest = model(IDS[:, 6:], attention_mask=mask[:, spoken], past_key_values=cache).logits
            real = mask[:, 6:] == 1
            assert_same(rest[real], whole[:, 6:][real])


def test_a_cache_in_transformers_hands(model):
    """Rows chosen, repeated, taken back: as if the text had been read so from the start."""
    with torch.no_grad():
        cache = model(IDS, attention_mask=MASK).past_key_values
        assert len(cache) == 8 and cache.batch_size == 8 and cache.get_seq_length() == 12
        assert not cache.is_compileable and cache.is_initialized and isinstance(cache, transformers.Cache)
        chosen = torch.tensor([3, 3, 0, 6])
        cache.reorder_cache(chosen)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1, 4, 7]))
        rows = chosen.repeat_interleave(2)[[1, 4, 7]]
        cache.activate_past_recording()
        more = torch.tensor(prompts(model.twin.config, 3, 9))
        for start in (0, 4, 5):  # 4 tokens, 1, 4
            model(more[:, start : start + (1 if start == 4 else 4)], past_key_values=cache)
        cache.crop(-2)  # into the last call,
        cache.crop(-1)  # of what is left of it,
        assert cache.get_seq_length() == 18
        cache.reorder_cache(torch.tensor([2, 0, 1]))  # before it has been run again
        rows, more = rows[[2, 0, 1]], more[[2, 0, 1]]
        got = model(more[:, 6:], past_key_values=cache).logits
        text = torch.cat([IDS[rows], more], dim=1)
        mask = torch.cat([MASK[rows], torch.ones_like(more)], dim=1)
        assert_same(got, model(text, attention_mask=mask).logits[:, -3:])
        cache.reset()
        assert_same(model(IDS, past_key_values=cache).logits, model(IDS).logits)


def test_going_back_too_far_is_refused(model):
    with torch.no_grad():
        cache = model(IDS).past_key_values
        with pytest.raises(ValueError) as refusal:
            cache.crop(-1)
        assert_one_sentence(refusal.value, "activate_past_recording")
        cache.activate_past_recording()
        model(IDS, past_key_values=cache)
        with pytest.raises(ValueError) as refusal:
            cache.crop(-13)
        assert_one_sentence(refusal.value, "11")
        for wrong in (1, -25):
            with pytest.raises(ValueError) as refusal:
                cache.crop(wrong)
            assert_one_sentence(refusal.value, str(wrong))


def test_a_recorded_past_does_not_grow_without_end(model):
    """A cache that guessed once goes on for a long time with few forks in hand."""
    with torch.no_grad():
        cache = model(IDS[:1]).past_key_values
        cache.activate_past_recording()
        for _ in range(bridge.REACH + 20):
            model(IDS[:1, :1], past_key_values=cache)
    assert len(cache.calls) <= bridge.REACH + 1


# Loading


def damaged(path, tmp_path, change):
    """A copy of a folder whose tensors went through ``change``."""
    shutil.copytree(path, tmp_path / "damaged")
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "damaged" / "model.safetensors")
    return tmp_path / "damaged"


EXPERT = "model.layers.5.block_sparse_moe.experts.3.w2.weight"


@every_head
def test_a_missing_expert_raises(head, folder, tmp_path):
    """One matrix of one expert; transformers' own loading fills such a place with random numbers."""
    path = damaged(folder(head), tmp_path, lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(ValueError) as refusal:
        getattr(transformers, AUTO[head]).from_pretrained(path)
    assert_one_sentence(refusal.value, EXPERT, "nothing is filled in at random")


def test_what_is_too_much_or_of_another_shape_raises(folder, tmp_path):
    extra = damaged(folder(), tmp_path / "1", lambda tensors: tensors.update({"model.layers.9.w": np.ones(3)}))
    narrow = damaged(folder(), tmp_path / "2", lambda tensors: tensors.update({EXPERT: tensors[EXPERT][:, 1:]}))
    for path, name in ((extra, "model.layers.9.w"), (narrow, EXPERT)):
        with pytest.raises(ValueError) as refusal:
            AutoModelForCausalLM.from_pretrained(path)
        assert_one_sentence(refusal.value, name)


def test_a_head_that_the_folder_lacks_raises(folder):
    with pytest.raises(ValueError) as refusal:
        AutoModelForSequenceClassification.from_pretrained(folder())
    assert_one_sentence(refusal.value, "score.weight")


def test_a_new_head_on_a_body_that_was_loaded(folder):
    """How a classifier is begun, then: a fresh one, whose body is given the loaded weights."""
    base = AutoModel.from_pretrained(folder())
    model = AutoModelForSequenceClassification.from_config(base.config, dtype=base.dtype)
    model.model.load_state_dict(base.state_dict())
    assert_same(model(IDS, output_hidden_states=True).hidden_states[-1], base(IDS).last_hidden_state)


@pytest.mark.parametrize(
    "asked, dtype",
    [
        ({}, torch.float64),
        ({"dtype": "auto"}, torch.float64),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": torch.float16}, torch.float16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
    ],
    ids=lambda x: str(x),
)
def test_types(folder, asked, dtype):
    """By name, as torch's, as stored; the router stays float32 at least, and generate runs."""
    model = AutoModelForCausalLM.from_pretrained(folder(), **asked)
    assert model.dtype == dtype == model.config.dtype
    assert model.model.layers[0].mlp.gate.weight.dtype == torch.promote_types(dtype, torch.float32)
    assert len(generate(model)[0]) == NEW


@pytest.mark.parametrize(
    "device_map",
    ["auto", "balanced", "sequential", "cpu", torch.device("cpu"), {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}],
    ids=str,
)
def test_places(folder, device_map):
    model = AutoModelForCausalLM.from_pretrained(folder(), device_map=device_map)
    assert {str(place) for place in model.hf_device_map.values()} == {"cpu"}
    assert generate(model, rows()[0]) == ours(model, rows()[0])


def test_some_layers_on_disk(folder, tmp_path):
    """accelerate brings each to where it is needed; a softmax layer and the head among them."""
    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(8)), "model.norm", "lm_head"]
    places = {name: "disk" if name[-1] in "2367d" else "cpu" for name in names}
    model = AutoModelForCausalLM.from_pretrained(folder(), device_map=places, offload_folder=tmp_path)
    assert {p.device.type for p in model.parameters()} == {"cpu", "meta"} and list(tmp_path.iterdir())
    whole = AutoModelForCausalLM.from_pretrained(folder())
    assert generate(model, num_beams=2) == generate(whole, num_beams=2)


def test_what_does_not_fit_goes_to_disk(folder, tmp_path):
    """By the numbers as stored: half of a float64 model."""
    place = {"device_map": "auto", "max_memory": {"cpu": 1_200_000}, "offload_folder": tmp_path}
    model = AutoModelForCausalLM.from_pretrained(folder(), **place)
    counts = [list(model.hf_device_map.values()).count(place) for place in ("cpu", "disk")]
    assert min(counts) >= 3 and generate(model, rows()[0]) == ours(model, rows()[0])


def test_changes_on_the_way_in(folder):
    """What the caller says of the configuration counts, as far as the weights allow."""
    model = AutoModelForCausalLM.from_pretrained(folder(), sliding_window=5)
    assert model.twin.config.sliding_window == model.config.sliding_window == 5
    same = AutoModelForCausalLM.from_pretrained(folder(sliding_window=5))
    assert_same(model(IDS).logits, same(IDS).logits)
    other = AutoModelForCausalLM.from_pretrained(folder(), config=model.config, dtype="float32")
    assert other.twin.config.sliding_window == 5 and model.config.dtype == torch.float64  # the caller's stays as it was


def test_changes_that_the_weights_do_not_allow(folder):
    with pytest.raises(ValueError) as refusal:
        AutoModelForCausalLM.from_pretrained(folder(), num_local_experts=8)
    assert_one_sentence(refusal.value, "experts.6.w1.weight", "nothing is filled in at random")


def test_attention_is_chosen_at_loading_and_after(folder):
    model = AutoModelForCausalLM.from_pretrained(folder(), attn_implementation="eager")
    assert model.config._attn_implementation == model.model.layers[7].self_attn.attn_implementation == "eager"
    eager = model(IDS, attention_mask=MASK).logits
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == model.model.layers[7].self_attn.attn_implementation == "sdpa"
    assert_same(model(IDS, attention_mask=MASK).logits[MASK == 1], eager[MASK == 1])


@every_head
def test_saved_and_loaded(head, folder, tmp_path):
    """The same answers; the names of labels and the way to generate come along, and our own loader reads it."""
    model = getattr(transformers, AUTO[head]).from_pretrained(folder(head))
    model.config.id2label = {0: "no", 1: "yes", 2: "perhaps"}
    if head == "MiniMaxForCausalLM":
        model.generation_config.update(do_sample=True, top_k=7)
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    back = getattr(transformers, AUTO[head]).from_pretrained(tmp_path)
    assert back.config.id2label[2] == "perhaps" and back.twin.config == model.twin.config
    assert all(torch.equal(x, y) for x, y in zip(back.state_dict().values(), model.state_dict().values(), strict=True))
    if head == "MiniMaxForCausalLM":
        assert back.generation_config.top_k == 7
    assert getattr(minimax_numpy, head).from_pretrained(tmp_path).config == model.twin.config


def test_the_original_spelling(folder, tmp_path):
    """A folder as the original release spells it, by the class itself: no Auto class knows its name."""
    shutil.copytree(folder(), tmp_path / "original")
    file = tmp_path / "original" / "config.json"
    values = json.loads(file.read_text())
    values |= {"model_type": "MiniMaxText01", "attn_type_list": [0] * 7 + [1], "rope_theta": 10_000_000}
    for part, new in (("full_attn", "full_attention"), ("linear_attn", "linear_attention"), ("mlp", "mlp")):
        for factor in ("alpha", "beta"):
            values[f"layernorm_{new}_{factor}"] = values.pop(f"{part}_{factor}_factor")
    for key in ("layer_types", "rope_parameters", "slope_rule"):
        del values[key]
    file.write_text(json.dumps(values))
    got = bridge.MiniMaxForCausalLM.from_pretrained(tmp_path / "original")
    assert_same(got(IDS).logits, AutoModelForCausalLM.from_pretrained(folder())(IDS).logits)


def test_tied_embeddings(folder, tmp_path):
    """One tensor under two names, through loading, saving and training."""
    model = AutoModelForCausalLM.from_pretrained(folder(tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight is model.twin.lm_head.weight
    model.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(back(IDS).logits, model(IDS).logits)


def test_a_fresh_model(folder):
    """Random, but only where it was asked for, and by torch's seed."""
    config = AutoModelForCausalLM.from_pretrained(folder()).config
    torch.manual_seed(0)
    one, other = (AutoModelForCausalLM.from_config(config, dtype=torch.float32) for _ in range(2))
    torch.manual_seed(0)
    again = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert torch.equal(one(IDS).logits, again(IDS).logits) and not torch.equal(one(IDS).logits, other(IDS).logits)
    assert isinstance(one, bridge.MiniMaxForCausalLM) and one.dtype == torch.float32


def test_from_the_hubs_cache(folder, tmp_path):
    """A model by its name, whose files are here already."""
    home = tmp_path / "models--somebody--minimax"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder(), home / "snapshots" / ("0" * 40))
    model = AutoModelForCausalLM.from_pretrained("somebody/minimax", cache_dir=tmp_path, local_files_only=True)
    assert isinstance(model, bridge.MiniMaxForCausalLM)


@every_head
def test_one_step_of_an_optimiser(head, folder):
    """Every parameter that the loss depends on has a gradient, and following it lowers the loss."""
    model = getattr(transformers, AUTO[head]).from_pretrained(folder(head)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.tensor(prompts(model.twin.config, 2, 13))

    def loss():
        out = model(ids, output_router_logits=True, **LABELS[head])
        assert getattr(out, "past_key_values", None) is None
        return out.last_hidden_state.square().mean() if head == "MiniMaxModel" else out.loss

    before = loss()
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimiser.step()
    assert loss() < before


def test_transformers_trainer(folder, tmp_path):
    """Trains it and saves it; what it saved is what it trained."""
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype="float32")
    before = copy.deepcopy(model.state_dict())
    options = transformers.TrainingArguments(
        tmp_path,
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    texts = [{"input_ids": ids, "attention_mask": mask, "labels": ids} for ids, mask in zip(IDS, MASK, strict=True)]
    transformers.Trainer(model, options, train_dataset=texts).train()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    for name, x in model.state_dict().items():
        assert torch.equal(saved[name], x) and not torch.equal(before[name], x), name


def test_a_copy_is_a_model_of_its_own(model):
    """Modules replaced in the copy, as adapters do it, count there and only there."""
    other = copy.deepcopy(model)
    other.lm_head = torch.nn.Linear(32, 256, dtype=torch.float64)
    assert other.twin.lm_head is other.lm_head is not model.lm_head
    assert not torch.equal(other(IDS).logits, model(IDS).logits)


# Four bits and eight


@pytest.mark.parametrize("double", [False, True], ids=["nf4", "nf4-double"])
def test_every_expert_is_in_four_bits(folder, double):
    """And every byte of the model is one that `inspect` counts; transformers leaves the stacked experts whole."""
    wanted = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(folder(), quantization_config=wanted, device_map="auto")
    kind, config = "nf4-double" if double else "nf4", model.twin.config
    assert model.dtype == torch.bfloat16
    for layer in model.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            stack = getattr(layer.mlp.experts, name)
            assert stack.kind == kind and stack.codes.nbytes * 2 == stack.size
        for projection in layer.self_attn.children():
            if isinstance(projection, torch.nn.Linear):
                assert projection.weight.kind == kind
    assert model.get_memory_footprint() == quantized_bytes(config, kind)[0]
    same = minimax_torch.MiniMaxForCausalLM.from_pretrained(folder(), torch.bfloat16, quantization=kind)
    with torch.no_grad():
        assert torch.equal(model(IDS, attention_mask=MASK).logits, same(IDS, MASK).logits)
    assert generate(model, num_beams=2) == generate(model, num_beams=2, use_cache=False)


def test_four_bits_are_nf4s(folder):
    """``load_in_4bit=True`` alone asks for "fp4" by its default; it gets NF4, and is told so."""
    with pytest.warns(UserWarning, match="always NF4's") as told:
        wanted = transformers.BitsAndBytesConfig(load_in_4bit=True)
        model = AutoModelForCausalLM.from_pretrained(folder(), quantization_config=wanted)
    assert_one_sentence(told[0].message)
    assert {layer.mlp.experts.down_proj.kind for layer in model.model.layers} == {"nf4"}


def test_eight_bits(folder):
    """As a BitsAndBytesConfig or as the dictionary of one; what is computed in is dtype's affair."""
    for asked in (transformers.BitsAndBytesConfig(load_in_8bit=True), {"load_in_8bit": True}):
        model = AutoModelForCausalLM.from_pretrained(folder(), quantization_config=asked, dtype="float32")
        assert {layer.mlp.experts.down_proj.kind for layer in model.model.layers} == {"int8"}
        assert model.dtype == torch.float32
    same = minimax_torch.MiniMaxForCausalLM.from_pretrained(folder(), torch.float32, quantization="int8")
    assert torch.equal(model(IDS).logits, same(IDS).logits)


# What it leaves alone, and what it refuses


def test_other_models_and_transformers_own_are_untouched(folder):
    small = {
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    other = AutoModelForCausalLM.from_config(transformers.LlamaConfig(**small))
    assert type(other) is transformers.LlamaForCausalLM
    path = peer_folder(folder)
    assert type(transformers.MiniMaxForCausalLM.from_pretrained(path)).__module__.startswith("transformers.")
    with unregistered():
        assert type(AutoModelForCausalLM.from_pretrained(path)) is transformers.MiniMaxForCausalLM
    assert type(AutoModelForCausalLM.from_pretrained(path)) is bridge.MiniMaxForCausalLM


def test_their_task_classes_by_name_still_load_and_agree(folder):
    """They build their body through AutoModel, so it is ours then: of the same names, and every tensor found."""
    path = peer_folder(folder, "MiniMaxForSequenceClassification")
    load = transformers.MiniMaxForSequenceClassification.from_pretrained
    around_ours, told = load(path, dtype=torch.float32, output_loading_info=True)
    with unregistered():
        theirs = load(path, dtype=torch.float32, experts_implementation="eager")
    assert not told["missing_keys"] and isinstance(around_ours.model, bridge.MiniMaxModel)
    assert_same(around_ours(IDS[:1]).logits, theirs(IDS[:1]).logits, ROUNDING)


def test_without_transformers_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "minimax_torch.transformers_bridge")
    with pytest.raises(ModuleNotFoundError) as refusal:
        importlib.import_module("minimax_torch.transformers_bridge")
    assert_one_sentence(refusal.value, "transformers", "minimax-twin[hf]")


REFUSED_CALLS = {
    "another kind of cache": ({"past_key_values": transformers.DynamicCache()}, "MiniMaxCache"),
    "weights of attention": ({"output_attentions": True}, "output_attentions"),
    "a mask of four axes": ({"attention_mask": torch.ones(8, 1, 12, 12)}, "attention_mask"),
    "a mask too long": ({"attention_mask": torch.ones(8, 13)}, "attention_mask"),
    "ids and embeddings": ({"inputs_embeds": torch.ones(8, 12, 32)}, "inputs_embeds"),
    "packing in several rows": ({"position_ids": torch.tensor([[0, 1, 0] * 4] * 8)}, "packed"),
    "an unknown name": ({"top_q": 1}, "top_q"),
}


@pytest.mark.parametrize("asked, fragment", REFUSED_CALLS.values(), ids=REFUSED_CALLS.keys())
def test_calls_that_are_refused(model, asked, fragment):
    with pytest.raises((ValueError, TypeError), match=fragment):
        model(IDS, **asked)


REFUSED_LOADS = {
    "no configuration of quantisation": ({"quantization_config": True}, "BitsAndBytesConfig"),
    "no bits asked for": ({"quantization_config": {"bnb_4bit_quant_type": "nf4"}}, "no bits"),
    "an unknown type": ({"dtype": torch.int8}, "int8"),
    "a way to attend that is not installed": ({"attn_implementation": "flash_attention_2"}, "flash_attention_2"),
    "modules left out of quantisation": (
        {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["mlp"])},
        "mlp",
    ),
    "an unknown name": ({"top_q": 1}, "top_q"),
}


@pytest.mark.parametrize("asked, fragment", REFUSED_LOADS.values(), ids=REFUSED_LOADS.keys())
def test_loads_that_are_refused(folder, asked, fragment):
    with pytest.raises((ValueError, TypeError, ModuleNotFoundError)) as refusal:
        AutoModelForCausalLM.from_pretrained(folder(), **asked)
    assert_one_sentence(refusal.value, fragment)


def test_a_refused_call_leaves_the_cache_as_it_was(model):
    """An id too large, a row too many: nothing was read, and the cache goes on."""
    cache = bridge.MiniMaxCache()
    with torch.no_grad():
        for wrong in (IDS[:3] + 256, IDS[:2] + 256):
            with pytest.raises(ValueError, match="out of range"):
                model(wrong, past_key_values=cache)
        model(IDS[:2, :6], past_key_values=cache)
        with pytest.raises(ValueError, match="2 rows"):
            model(IDS[:3, 6:], past_key_values=cache)
        got = model(IDS[:2, 6:], past_key_values=cache).logits
        assert_same(got, model(IDS[:2]).logits[:, 6:])
    assert cache.get_seq_length() == 12


def test_other_refusals(model):
    with pytest.raises(ValueError, match="cache of its own"):
        generate(model, cache_implementation="static")
    with pytest.raises(NotImplementedError, match="vocabulary"):
        model.resize_token_embeddings(300)
