"""transformers 5's MiniMax, wherever it is right, is the same model: what either writes, the other agrees with.

It is right for prompts, for left-padded prompts, and for unpadded greedy decoding, all with ``layer_types`` given
and the whole head rotated (docs/proof has the list of where it is not). It computes in float32 whatever it is
told, so this is judged by ``ROUNDING``, with eager experts.
"""

import json
import shutil

import minimax_numpy
import minimax_torch
import numpy as np
import pytest
import torch
import transformers
from close import NUMPY, ROUNDING, array, assert_same, both, every_head, lively, prompts, small
from minimax_numpy.checkpoint import CONSTANTS
from minimax_numpy.config import HYBRID, LIGHTNING, SOFTMAX
from minimax_numpy.trace import Trace, recording
from safetensors.torch import load_file, save_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def peer(*layer_types: str, **changes):
    """A configuration that transformers gets right: its slopes, and the whole head rotated."""
    head_dim = changes.get("head_dim", 16)
    return small(
        *layer_types, **{"slope_rule": "transformers", "rotary_dim": head_dim, "rms_norm_eps": 1e-5, **changes}
    )


CONFIGURATIONS = {
    "as released, 7:1": peer(*HYBRID),
    "head_dim is D/H": peer(head_dim=8),
    "grouped heads": peer(num_attention_heads=8, num_key_value_heads=2, head_dim=12),
    "three heads, softmax first": peer(SOFTMAX, LIGHTNING, num_attention_heads=3, num_key_value_heads=1, head_dim=10),
    "twelve heads": peer(LIGHTNING, SOFTMAX, num_attention_heads=12, num_key_value_heads=12, head_dim=6),
    "a window": peer(LIGHTNING, SOFTMAX, SOFTMAX, sliding_window=5),
    "gelu, tied, three experts": peer(hidden_act="gelu", tie_word_embeddings=True, num_experts_per_tok=3),
    "one lightning layer": peer(LIGHTNING),
}
every_configuration = pytest.mark.parametrize("title", CONFIGURATIONS)


def load(folder, head="MiniMaxForCausalLM"):
    """Their model of a folder. Nothing may be missing but the constants, which their code makes itself."""
    model, told = getattr(transformers, head).from_pretrained(
        folder, experts_implementation="eager", dtype="auto", output_loading_info=True
    )
    assert all(CONSTANTS.search(name) for name in told["missing_keys"])
    assert not told["unexpected_keys"] and not told["mismatched_keys"]
    return model.eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """title → (their model, the folder that they wrote). The weights are ours: theirs are too small to show much."""
    made = {}

    def write(title: str):
        if title not in made:
            ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
            lively(CONFIGURATIONS[title], dtype=np.float32).save_pretrained(ours)
            model = load(ours)
            model.save_pretrained(theirs)
            made[title] = model, theirs
        return made[title]

    return write


def read(side, folder, head="MiniMaxForCausalLM"):
    return getattr(side.package, head).from_pretrained(folder)


def call(model, *inputs, **asked):
    """Their output, for arrays."""
    with torch.no_grad():
        arrays = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in asked.items()}
        return model(*(torch.tensor(x) for x in inputs), **arrays)


def parts_of(model, ids) -> dict[str, np.ndarray]:
    """What goes into and comes out of each of their modules, by name; the first of several things."""
    seen, hooks = {}, []

    def watch(name):
        def hook(module, args, out):
            seen[name] = array(out[0] if isinstance(out, tuple) else out)
            if args and isinstance(args[0], torch.Tensor):
                seen[f"{name}.input"] = array(args[0])

        return hook

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(watch(name)))
    call(model, ids)
    for hook in hooks:
        hook.remove()
    return seen


@both
@every_configuration
def test_what_they_write_we_read_and_agree_with(side, title, written):
    """Every layer's hidden states, the logits, router logits, loss and balance loss of a prompt of several chunks."""
    model, folder = written(title)
    ids = prompts(model.config, 2, 21)
    theirs = call(model, ids, labels=ids, output_hidden_states=True, output_router_logits=True)
    ours = side.ask(read(side, folder), ids, labels=ids, output_hidden_states=True, output_router_logits=True)
    assert_same(ours.logits, theirs.logits, ROUNDING)
    assert_same(ours.loss, theirs.loss, ROUNDING)
    assert_same(ours.aux_loss, theirs.aux_loss, ROUNDING)
    # they leave out the stream after the last layer, and give its norm in its place
    for mine, other in zip([*ours.hidden_states[:-2], ours.hidden_states[-1]], theirs.hidden_states, strict=True):
        assert_same(mine, other, ROUNDING)
    for mine, other in zip(ours.router_logits, theirs.router_logits, strict=True):
        assert_same(mine.reshape(other.shape), other, ROUNDING)


@every_configuration
def test_part_by_part(title, written):
    """Each part that our trace names is a module of theirs: projections, norms, experts, the inner norm's input."""
    model, folder = written(title)
    ids = prompts(model.config, 2, 21)
    with recording(trace := Trace()):
        read(NUMPY, folder)(ids)
    theirs = parts_of(model, ids)
    ours_alone = ("state", "query", "key", "gate.weights", "gate.indices")  # computed inside their modules
    for name, want in trace.items():
        if not name.endswith(ours_alone):
            assert_same(theirs[name].reshape(want.shape), want, ROUNDING)


@both
@every_configuration
def test_left_padded_prompts(side, title, written):
    """At real tokens; what stands at padding is nobody's business."""
    model, folder = written(title)
    ids, mask = prompts(model.config, 3, 21), np.ones((3, 21), int)
    mask[0, :9], mask[1, :2] = 0, 0
    labels = np.where(np.cumsum(mask, axis=1) > 1, ids, -100)  # they would ask the last pad for the first token
    asked = {"attention_mask": mask, "labels": labels, "output_router_logits": True}
    theirs, ours = call(model, ids, **asked), side.ask(read(side, folder), ids, **asked)
    assert_same(array(ours.logits)[mask == 1], array(theirs.logits)[mask == 1], ROUNDING)
    assert_same(ours.loss, theirs.loss, ROUNDING)
    assert_same(ours.aux_loss, theirs.aux_loss, ROUNDING)


@both
@pytest.mark.parametrize(
    "title", [title for title in CONFIGURATIONS if title != "a window"]
)  # theirs forgets it in decode
def test_greedy_tokens_are_identical(side, title, written):
    """Theirs with its cache, ours with ours."""
    model, folder = written(title)
    ids = prompts(model.config, 2, 9)
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": 999, "pad_token_id": 0}
    theirs = model.generate(torch.tensor(ids), attention_mask=torch.ones(2, 9, dtype=torch.long), **options)
    ours = read(side, folder).generate(side.wrap(ids), max_new_tokens=16, eos_token_id=999)
    assert ours.tolist() == theirs.tolist()


@both
@pytest.mark.parametrize("stops", [(999,), tuple(range(3, 60))], ids=["no stop", "many stops"])
@pytest.mark.parametrize("title", ["as released, 7:1", "a window"])
def test_beams_are_identical(side, title, stops, written):
    """Theirs without a cache, which it does not reorder; ours with one. The same texts, ended or not."""
    model, folder = written(title)
    ids = prompts(model.config, 2, 7)
    options = {"max_new_tokens": 9, "num_beams": 3, "length_penalty": 0.7}
    mask = torch.ones(2, 7, dtype=torch.long)
    asked = {**options, "do_sample": False, "use_cache": False, "eos_token_id": list(stops), "pad_token_id": 0}
    theirs = model.generate(torch.tensor(ids), attention_mask=mask, **asked)[:, 7:].tolist()
    ours = read(side, folder).generate(side.wrap(ids), eos_token_id=stops, **options)[:, 7:].tolist()
    for mine, other in zip(ours, theirs, strict=True):  # up to the stop: they pad with it where the pad's id is 0
        end = next((n for n, token in enumerate(other, start=1) if token in stops), len(other))
        assert mine[:end] == other[:end] and not any(mine[end:])


@both
def test_greedy_tokens_of_a_padded_batch_are_those_of_each_row(side, written):
    """Theirs goes astray in a padded batch, so each row is asked for alone."""
    model, folder = written("as released, 7:1")
    ids, mask = prompts(model.config, 3, 9), np.array([[0] * 5 + [1] * 4, [1] * 9, [1] * 6 + [0] * 3])
    ours = read(side, folder).generate(side.wrap(ids), side.wrap(mask), max_new_tokens=16, eos_token_id=999)
    for row in range(3):
        text = torch.tensor(ids[row : row + 1, mask[row] == 1])
        theirs = model.generate(
            text,
            attention_mask=torch.ones_like(text),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=999,
            pad_token_id=0,
        )
        assert ours[row, 9:].tolist() == theirs[0, text.shape[1] :].tolist()


def answers(head, out):
    """The logits of a head, under the names that transformers gives them."""
    if head == "MiniMaxModel":
        return out.last_hidden_state
    if head == "MiniMaxForQuestionAnswering" and not isinstance(out, minimax_numpy.ModelOutput):
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    return out.logits


@both
@every_head
def test_every_head_goes_both_ways(side, head, tmp_path):
    """Saved by us and loaded by them, saved by them and loaded by us: the same answers, the same configuration."""
    config = peer(num_labels=5)
    reference = lively(config, head, dtype=np.float32)
    ours = side.model(reference)
    ours.save_pretrained(tmp_path / "ours")
    theirs = load(tmp_path / "ours", head)
    theirs.save_pretrained(tmp_path / "theirs")
    back = read(side, tmp_path / "theirs", head)
    assert back.config == config
    for name, x in reference.weights.items():
        np.testing.assert_array_equal(array(back.weights[name]), x)
    ids = prompts(config, 2, 13)
    want = answers(head, side.call(reference, ids))
    assert_same(answers(head, call(theirs, ids)), want, ROUNDING)


@pytest.mark.parametrize(
    "head, labels, theirs",
    [
        ("SequenceClassification", np.array([0, 4]), {"labels": np.array([0, 4])}),
        (
            "TokenClassification",
            np.array([[0, 1, 2, 3, 4, -100]] * 2),
            {"labels": np.array([[0, 1, 2, 3, 4, -100]] * 2)},
        ),
        (
            "QuestionAnswering",
            np.array([[0, 3], [5, 5]]),
            {"start_positions": np.array([0, 5]), "end_positions": np.array([3, 5])},
        ),
    ],
    ids=["sequence", "token", "question"],
)
@both
def test_losses_of_the_task_heads(side, head, labels, theirs, tmp_path):
    reference = lively(peer(num_labels=5), f"MiniMaxFor{head}", dtype=np.float32)
    reference.save_pretrained(tmp_path)
    ids = prompts(reference.config, 2, 6)
    want = call(load(tmp_path, reference.head), ids, **theirs).loss
    assert_same(side.call(reference, ids, labels=labels).loss, want, ROUNDING)


@both
def test_a_causal_folder_without_its_head(side, written):
    """Gives the bare model, and what it says is what their head reads."""
    model, folder = written("grouped heads")
    ids = prompts(model.config, 2, 13)
    ours = side.ask(read(side, folder, "MiniMaxModel"), ids).last_hidden_state
    assert_same(ours, call(model, ids, output_hidden_states=True).hidden_states[-1], ROUNDING)


@both
def test_stacked_experts_on_disk(side, written, tmp_path):
    """The names that transformers has in memory are read as well."""
    model, folder = written("as released, 7:1")
    shutil.copy(folder / "config.json", tmp_path)
    save_file({name: x.clone() for name, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    stacked, apart = (read(side, path).weights for path in (tmp_path, folder))
    for name, x in apart.items():
        np.testing.assert_array_equal(array(stacked[name]), array(x))


@both
def test_shards_go_both_ways(side, written, tmp_path):
    """Theirs are read by us, ours by them."""
    model, folder = written("gelu, tied, three experts")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    ours = read(side, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_bytes=40_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    back = load(tmp_path / "ours")
    for name, x in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], x), name


@both
def test_their_constants_are_ignored(side, written, tmp_path):
    """Four tensors a lightning layer that the configuration already says: whatever they hold."""
    _, folder = written("twelve heads")
    shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    constants = [name for name in tensors if CONSTANTS.search(name)]
    assert len(constants) == 4
    for name in constants:
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    for name, x in read(side, tmp_path / "copy").weights.items():
        np.testing.assert_array_equal(array(x), array(read(side, folder).weights[name]))


@both
def test_bfloat16_folders_go_both_ways(side, tmp_path):
    """The released type: what they wrote in bfloat16 is read to the bit, and what the twin writes they read."""
    reference = lively(peer(LIGHTNING, SOFTMAX), dtype=np.float32)
    reference.save_pretrained(tmp_path / "first")
    theirs = load(tmp_path / "first").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read(side, tmp_path / "theirs")
    for name, x in theirs.state_dict().items():
        if not CONSTANTS.search(name):
            np.testing.assert_array_equal(array(ours.weights[name]), array(x))
    minimax_torch.MiniMaxForCausalLM.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    back = load(tmp_path / "ours").state_dict()
    for name, x in theirs.state_dict().items():
        if not CONSTANTS.search(name):
            np.testing.assert_array_equal(array(back[name]), array(x))


SAME_NAME = """vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads num_local_experts
    rms_norm_eps hidden_act block_size mlp_alpha_factor sliding_window num_labels max_position_embeddings"""


def test_their_configuration_alone_is_read(tmp_path):
    """Whatever they leave out or put in: their defaults, their label names, an ending that is a list."""
    for changes in (
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 2, "layer_types": [LIGHTNING, SOFTMAX], "eos_token_id": [2, 5], "num_labels": 4},
        {
            "num_hidden_layers": 2,
            "head_dim": 64,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ):
        theirs = transformers.MiniMaxConfig(**changes)
        theirs.save_pretrained(tmp_path)
        ours = minimax_numpy.MiniMaxConfig.from_pretrained(tmp_path)
        for field in SAME_NAME.split():
            assert getattr(ours, field) == getattr(theirs, field), field
        assert list(ours.layer_types) == theirs.layer_types
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.head_dim == (theirs.head_dim or 4096 // 32)
        assert ours.slope_rule == "transformers" and ours.postnorm
        eos = ours.eos_token_id
        assert (list(eos) if isinstance(eos, tuple) else eos) == theirs.eos_token_id


def test_what_we_write_says_what_they_need(tmp_path):
    """config.json: their model_type, class and keys; beside them, four of ours that they keep for us."""
    config = peer(num_labels=5)
    minimax_numpy.MiniMaxForTokenClassification(config).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "minimax" and values["architectures"] == ["MiniMaxForTokenClassification"]
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.num_labels == 5 and theirs.rope_parameters["rope_theta"] == config.rope_theta
    for field in ("rotary_dim", "postnorm", "shared_intermediate_size", "slope_rule"):
        assert getattr(theirs, field) == getattr(config, field)
    assert isinstance(
        transformers.AutoModelForTokenClassification.from_pretrained(tmp_path),
        transformers.MiniMaxForTokenClassification,
    )
