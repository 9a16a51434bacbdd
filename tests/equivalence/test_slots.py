"""Slots hold what a cache holds: every row is given what the model would give it alone, whoever lies beside it."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from close import (
    ROUNDING,
    TORCH,
    array,
    assert_one_sentence,
    assert_same,
    assert_same_cache,
    edited,
    error,
    every_configuration,
    lively,
    prompts,
    small,
)
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_torch import Cache, MiniMaxForCausalLM, MiniMaxModel, ops, slots
from minimax_torch.kernels.choose import plain
from minimax_torch.slots import Slots

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
every_device = pytest.mark.parametrize("device", DEVICES)
LENGTHS = (4, 9, 1)


def twin(config, device="cpu", dtype=None) -> MiniMaxForCausalLM:
    """The twin of a lively model."""
    return MiniMaxForCausalLM.from_reference(lively(config), dtype=dtype, device=device)


def texts(model, *lengths: int, seed=0) -> list[torch.Tensor]:
    """Prompts, one of each length."""
    return [torch.tensor(prompts(model.config, n, seed=seed + n), device=model.device) for n in lengths]


class Alone:
    """A row as the model itself decodes it, with a cache of its own."""

    def __init__(self, model, prompt=None):
        self.model, self.cache = model, model.empty_cache(1)
        if prompt is not None:
            with torch.no_grad():
                model(prompt[None], cache=self.cache)

    def step(self, token: int) -> torch.Tensor:
        """Logits after one token more, (V,)."""
        with torch.no_grad():
            return self.model(torch.tensor([[token]], device=self.model.device), cache=self.cache).logits[0, -1]


def together(rows: Slots, alone: dict[int, Alone], steps: int, seed=0, within=1e-11) -> None:
    """Step all rows at once and each by itself: the same logits."""
    for tokens in prompts(rows.model.config, steps, rows.rows, seed=seed):
        got = rows.step(torch.tensor(tokens, device=rows.lengths.device))
        for slot, row in alone.items():
            assert_same(got[slot], row.step(int(tokens[slot])), within)


# --- It is the model -----------------------------------------------------------------------------------------------


@every_device
@every_configuration
def test_rows_of_different_lengths_decode_as_each_alone(config, device):
    """Past a window's end, beside a slot that nobody uses; and the caches are the same in the end."""
    model = twin(config, device)
    rows, prompted = Slots(model, 4, 24), texts(model, *LENGTHS)
    alone = {rows.put(prompt): Alone(model, prompt) for prompt in prompted}
    together(rows, alone, 6)
    assert rows.lengths.tolist() == [n + 6 for n in LENGTHS] + [0]
    for slot, row in alone.items():
        assert_same_cache(rows.cache(slot), row.cache)


@every_configuration
def test_it_is_the_reference(config):
    """Logits are those of the whole text, read at once by NumPy; one row, from its first token on."""
    truth = lively(config)
    rows, ids = Slots(TORCH.model(truth), 1, 12), prompts(config, 1, 12)
    rows.put(Cache(config, 1))
    got = torch.stack([rows.step(torch.tensor(ids[:, t])) for t in range(12)], dim=1)
    assert_same(got, truth(ids).logits)


@every_device
@pytest.mark.parametrize("dtype, within", [(torch.float32, ROUNDING), (torch.bfloat16, 0.05)])
def test_in_the_types_that_a_gpu_decodes_in(dtype, within, device):
    """One expert of one is always the same one: else rounding would choose. 0.05: a few bfloat16 roundings a layer."""
    model = twin(small(num_local_experts=2, num_experts_per_tok=2), device, dtype)
    rows = Slots(model, 2, 16)
    prompt = texts(model, 7)[0]
    assert rows.step(torch.zeros(2, dtype=torch.int64, device=device)).dtype == dtype
    together(rows, {rows.put(prompt): Alone(model, prompt)}, 4, within=within)
    assert rows.layers[0].state.dtype == torch.float32 and rows.layers[2].slots.dtype == dtype


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_choices_gather_experts_and_many_ask_them_all(rows):
    model = twin(small(num_local_experts=5, num_experts_per_tok=2))
    moe, x = model.model.layers[0].mlp, torch.randn(rows, 1, 32, dtype=torch.float64)
    with torch.no_grad():
        assert_same(slots.mix_experts(moe, x), moe(x)[0])


@every_device
def test_the_plain_form_is_the_same(device):
    model = twin(small(), device)
    rows, prompt = Slots(model, 2, 16), texts(model, 5)[0]
    alone = {rows.put(prompt): Alone(model, prompt)}
    with plain():
        together(rows, alone, 2)
    together(rows, alone, 2)


# --- Slots come and go ---------------------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("window", [None, 4])
def test_a_slot_that_is_used_again_shows_nothing_of_its_former_row(window, device):
    """It held a longer text, then lay idle while others went on; a state of NaN, keys of NaN leave nothing either."""
    model = twin(small(LIGHTNING, SOFTMAX, sliding_window=window), device)
    rows = Slots(model, 2, 32)
    first, second, third = texts(model, 12, 5, 2)
    alone = {rows.put(first): Alone(model, first), rows.put(second): Alone(model, second)}
    together(rows, alone, 3)
    rows.layers[0].state[0] = rows.layers[1].slots[:, 0] = torch.nan
    assert rows.step(torch.tensor([3, 4], device=device))[0].isnan().any()  # it was looked at
    alone[1].step(4)
    rows.free(0)
    del alone[0]
    together(rows, alone, 2, seed=1)
    rows.layers[0].state[0] = rows.layers[1].slots[:, 0] = torch.nan
    assert rows.put(third) == 0
    alone[0] = Alone(model, third)
    together(rows, alone, 4, seed=2)
    assert rows.lengths.tolist() == [6, 15]


@every_device
def test_a_row_of_nan_stays_alone(device):
    """In use or not: every other row gets the very bits that it gets without."""
    model = twin(small(), device)
    found = []
    for spoilt in (False, True):
        rows = Slots(model, 3, 16)
        for prompt in texts(model, 4, 6):
            rows.put(prompt)
        for memory in rows.layers if spoilt else []:
            for held in (memory.state,) if hasattr(memory, "state") else memory.slots:
                held[0], held[2] = torch.nan, torch.nan
        found.append(torch.stack([rows.step(torch.tensor([3, 4, 5], device=device)) for _ in range(3)]))
    assert found[1][:, 0].isnan().all() and torch.equal(found[0][:, 1], found[1][:, 1])


def test_tokens_of_unused_slots_are_not_looked_up():
    model = twin(small())
    rows, prompt = Slots(model, 2, 16), texts(model, 3)[0]
    rows.put(prompt)
    assert_same(rows.step(torch.tensor([7, -1]))[0], Alone(model, prompt).step(7))


@every_device
@pytest.mark.parametrize("window", [None, 4, 40])
def test_a_text_goes_on_elsewhere_and_comes_back(window, device):
    """A cache out of a slot is the model's own; one that the model has advanced goes into another slot."""
    model = twin(small(LIGHTNING, SOFTMAX, sliding_window=window), device)
    rows, prompt = Slots(model, 2, 20), texts(model, 6)[0]
    row = Alone(model, prompt)
    slot = rows.put(prompt)
    together(rows, {slot: row}, 3)
    moved = Alone(model)
    moved.cache = rows.cache(slot)
    for token in (8, 9, 10):
        assert_same(moved.step(token), row.step(token))
    rows.free(slot)
    back = rows.put(moved.cache)
    together(rows, {back: row}, 3)
    assert_same_cache(rows.cache(back), row.cache)


def test_a_cache_that_is_given_or_taken_is_a_copy():
    model = twin(small())
    rows, prompt = Slots(model, 1, 16), texts(model, 5)[0]
    given = Alone(model, prompt)
    rows.put(given.cache)
    taken = rows.cache(0)
    together(rows, {0: Alone(model, prompt)}, 3)
    want = Alone(model, prompt)
    assert_same_cache(given.cache, want.cache)
    assert_same_cache(taken, want.cache)


def test_its_memory_is_what_the_layers_need():
    config = small(LIGHTNING, SOFTMAX, SOFTMAX)
    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert Slots(twin(config), 3, 10).nbytes == 3 * 8 * (H * d * d + 2 * 2 * G * 10 * d)
    window = small(LIGHTNING, SOFTMAX, SOFTMAX, sliding_window=4)
    assert Slots(twin(window), 3, 10).nbytes == 3 * 8 * (H * d * d + 2 * 2 * G * 4 * d)


# --- Generation ----------------------------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.5, "top_k": 40, "seed": 3}], ids=str)
def test_tokens_are_those_of_generate(options, device):
    """Seven texts in two slots, that end at different times: each gets what it gets from the model alone."""
    model = twin(small(), device)
    prompted, stops = texts(model, 3, 8, 1, 5, 12, 2, 4), [5, 9, 77, *range(100, 130)]
    got = Slots(model, 2, 24).generate(prompted, max_new_tokens=9, eos_token_id=stops, **options)
    want = []
    for r, prompt in enumerate(prompted):
        mine = options if "seed" not in options else {**options, "seed": options["seed"] + r}
        want.append(model.generate(prompt[None], max_new_tokens=9, eos_token_id=stops, **mine)[0, len(prompt) :])
    assert got == [x.tolist() for x in want]
    assert len({len(x) for x in got}) > 1


def test_no_slot_is_idle_while_a_text_waits(monkeypatch):
    model = twin(small())
    rows, busy = Slots(model, 2, 24), []
    step = rows.step
    monkeypatch.setattr(rows, "step", lambda tokens: busy.append(rows.held.count(None)) or step(tokens))
    got = rows.generate(texts(model, 3, 8, 1, 5), max_new_tokens=6, eos_token_id=[])
    assert [len(x) for x in got] == [6] * 4 and busy == [0] * 10  # the first token of each comes of its prompt
    assert rows.held == [None, None] and not rows.used.any()
    assert rows.generate([[4, 5]], max_new_tokens=0) == [[]] and rows.generate([]) == []


def test_what_fails_leaves_the_slots_free():
    model = twin(small())
    rows = Slots(model, 2, 24)
    with torch.no_grad():
        model.model.embed_tokens.weight[200] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        rows.generate([[3, 4], [200]], max_new_tokens=5, eos_token_id=[])
    assert rows.held == [None, None]


# --- What it refuses -----------------------------------------------------------------------------------------------


def test_a_full_slot_is_refused_before_anything_is_written():
    model = twin(small())
    rows = Slots(model, 2, 6)
    for prompt in texts(model, 4, 2):
        rows.put(prompt)
    together(rows, {}, 2)
    before = [x.clone() for x in (rows.lengths, rows.layers[0].state, rows.layers[2].slots)]
    with pytest.raises(ValueError) as told:
        rows.step(torch.tensor([3, 4]))
    assert_one_sentence(told.value, "Slot 0", "6 tokens", "free")
    assert all(torch.equal(a, b) for a, b in zip(before, (rows.lengths, rows.layers[0].state, rows.layers[2].slots)))
    rows.free(0)
    rows.step(torch.tensor([3, 4]))


def test_what_does_not_fit_is_refused(unchecked):
    model = twin(small())
    rows = Slots(model, 1, 6)
    with pytest.raises(ValueError) as told:
        rows.put(texts(model, 7)[0])
    assert_one_sentence(told.value, "7 tokens", "6")
    with pytest.raises(ValueError) as told:
        rows.free(0)
    assert_one_sentence(told.value, "slot 0")
    rows.put(texts(model, 3)[0])
    with pytest.raises(ValueError) as told:
        rows.put(texts(model, 3)[0])
    assert_one_sentence(told.value, "1 slots", "free")
    with pytest.raises(ValueError) as told:
        rows.cache(1)
    assert_one_sentence(told.value, "slot 1", "[0]")
    with pytest.raises(ValueError) as told:
        rows.generate([[3]])
    assert_one_sentence(told.value, "all slots")
    rows.free(0)
    with pytest.raises(ValueError) as told:
        rows.generate([[3, 4, 5], [3]], max_new_tokens=5)
    assert_one_sentence(told.value, "8 tokens", "6")
    with pytest.raises(ValueError) as told:
        rows.generate([[3], []])
    assert_one_sentence(told.value, "empty prompt")
    assert rows.held == [None]


def test_another_models_cache_is_refused():
    model, rows = twin(small()), Slots(twin(small()), 1, 16)
    others = [
        (Alone(MiniMaxForCausalLM.from_reference(lively(small(), seed=5)), texts(model, 3)[0]).cache, "weights"),
        (Alone(twin(small(SOFTMAX)), texts(model, 3)[0]).cache, "configuration"),
        (Alone(model.float(), texts(model, 3)[0]).cache, "float32"),
        (Cache(small(), 2), "2 rows"),
    ]
    for cache, fragment in others:
        with pytest.raises(ValueError) as told:
            rows.put(cache)
        assert_one_sentence(told.value, fragment)
    assert rows.held == [None]


def test_a_step_takes_one_id_a_slot(unchecked):
    rows = Slots(twin(small()), 2, 6)
    for tokens in (torch.tensor([3]), torch.tensor([[3], [4]]), torch.tensor([3.0, 4.0])):
        with pytest.raises(ValueError) as told:
            rows.step(tokens)
        assert_one_sentence(told.value, "2 ids")


def test_models_that_cannot_be_recorded_are_refused(tmp_path, unchecked):
    lively(small()).save_pretrained(tmp_path)
    models = [
        (MiniMaxForCausalLM.from_pretrained(tmp_path, stream=True), "streamed"),
        (MiniMaxForCausalLM.from_pretrained(tmp_path, torch.float32, quantization="int8"), "quantised"),
        (MiniMaxModel(small()), "MiniMaxModel"),
    ]
    for model, fragment in models:
        with pytest.raises(ValueError) as told:
            Slots(model, 1, 8)
        assert_one_sentence(told.value, fragment)
    for size in ((0, 8), (1, 0)):
        with pytest.raises(ValueError) as told:
            Slots(twin(small()), *size)
        assert_one_sentence(told.value, "at least one")


def test_nobody_looks_in_vain():
    """A hook would not be called, and a swapped op not be run: a step says so."""
    model = twin(small())
    rows = Slots(model, 1, 8)
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *call: None)
    with pytest.raises(ValueError) as told:
        rows.step(torch.tensor([3]))
    assert_one_sentence(told.value, "hook")
    handle.remove()
    with ops.using(mix_experts=lambda x, *rest: x), pytest.raises(ValueError) as told:
        rows.step(torch.tensor([3]))
    assert_one_sentence(told.value, "mix_experts")
    rows.step(torch.tensor([3]))
    model.float()
    with pytest.raises(ValueError) as told:
        rows.step(torch.tensor([3]))
    assert_one_sentence(told.value, "float32", "new ones")


# --- On a GPU ------------------------------------------------------------------------------------------------------


def test_the_step_asks_the_device_nothing(monkeypatch):
    """Else it could not be recorded: nothing in it turns a tensor into a number, or into a shape."""
    model = twin(small(shared_intermediate_size=24))
    rows = Slots(model, 4, 16)
    for prompt in texts(model, 4, 2):
        rows.put(prompt)

    def asked(self, *arguments):
        raise AssertionError("the step asks the device")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, asked)
    for name in ("bincount", "nonzero", "unique"):
        monkeypatch.setattr(torch, name, asked)
    with torch.no_grad():
        rows._step()


def test_everything_stays_at_its_place():
    """A graph knows addresses: texts come and go, and none of them changes."""
    model = twin(small())
    rows = Slots(model, 2, 24)

    def places():
        static = [rows.tokens, rows.lengths, rows.used, *(x for m in rows.layers for x in vars(m).values())]
        return [x.data_ptr() for x in static if isinstance(x, torch.Tensor)]

    before = places()
    rows.generate(texts(model, 3, 8, 1), max_new_tokens=3)
    for prompt in texts(model, 4, 2):
        rows.put(rows.model(prompt[None], use_cache=True).cache)
    rows.step(torch.tensor([3, 4]))
    rows.cache(1)
    assert places() == before


class Recorded:
    """A CUDA graph as the host sees it; what it replays, a CPU computes again."""

    def __init__(self, rows: Slots):
        self.replay = lambda: rows._logits.copy_(rows._step())


def test_a_recording_leaves_the_texts_as_they_were(monkeypatch):
    """Trial steps come before it, in the midst of texts too, where weights have moved; and it is made once."""
    model, made = twin(small(LIGHTNING, SOFTMAX, sliding_window=5)), []
    rows = Slots(model, 3, 24)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda it: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Recorded(rows)) or made[-1])
    rows._records = True
    alone = {rows.put(prompt): Alone(model, prompt) for prompt in texts(model, 7, 2)}
    together(rows, alone, 3)
    assert len(made) == 1
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    together(rows, alone, 3, seed=1)
    assert len(made) == 2
    with plain():
        together(rows, alone, 2, seed=2)
    assert len(made) == 2 and rows.used.tolist() == [1, 1, 0]
    first, second = rows.step(torch.tensor([3, 4, 5])), rows.step(torch.tensor([6, 7, 8]))
    assert not torch.equal(first, second)  # what was given out is not written over


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph is recorded on a GPU alone")
def test_weights_that_move_are_recorded_anew():
    model = twin(small(), "cuda")
    other = MiniMaxForCausalLM.from_reference(lively(small(), seed=3), device="cuda")
    rows, prompt = Slots(model, 2, 24), texts(model, 5)[0]
    alone = {rows.put(prompt): Alone(model, prompt)}
    together(rows, alone, 3)
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    together(rows, alone, 3, seed=1)
    model.load_state_dict(other.state_dict())  # in place: the same graph
    graph = rows._graph
    together(rows, alone, 3, seed=2)
    assert rows._graph is graph


def test_what_does_not_fit_in_memory_says_what_would(monkeypatch):
    gpu = torch.empty(1, device="meta", dtype=torch.bfloat16)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 10**9, 80 * 10**9))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    config = small(LIGHTNING, SOFTMAX, num_attention_heads=64, num_key_value_heads=8, head_dim=128)
    slots.check_memory(config, 18, 2**20, gpu)
    with pytest.raises(torch.OutOfMemoryError) as told:
        slots.check_memory(config, 32, 2**20, gpu)
    assert_one_sentence(told.value, "32 slots", "137.6 GB", "18 would fit")


def test_arrays_of_lengths_are_lengths():
    """What the host knows and what the device knows are the same."""
    model = twin(small())
    rows = Slots(model, 3, 16)
    for prompt in texts(model, 4, 2):
        rows.put(prompt)
    together(rows, {}, 2)
    rows.free(0)
    together(rows, {}, 1)
    assert np.array_equal(array(rows.lengths), [n or 0 for n in rows.held]) and rows.held == [None, 5, None]


# --- Mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = {  # what was planted: the line as it is, as it is then
    "the state is not kept": ("            self.state.copy_(state)\n", ""),
    "a token's key lies one place too far": ("lengths % self.capacity]", "(lengths + 1) % self.capacity]"),
    "a token does not see itself": ("(q, self.slots[0], self.slots[1], lengths + 1)\n        return", "(q, self.slots[0], self.slots[1], lengths)\n        return"),  # noqa: E501
    "rows are at each other's positions": ("turn(heads, lengths[:, None])", "turn(heads, lengths.flip(0)[:, None])"),
    "keys are not turned": ("for heads in (q, k))", "for heads in (q, k)); k = ops.split_heads(attention.k_proj(x), G)"),  # noqa: E501
    "what lies past the end is seen": ("device=q.device) < lengths[:, None]", "device=q.device) < lengths[:, None] + 1"),  # noqa: E501
    "lengths do not grow": ("        self.lengths += self.used\n", ""),
    "lengths of unused slots grow": ("self.lengths += self.used", "self.lengths += 1"),
    "a state is put beside the old one": ("self.state[slot].copy_(memory", "self.state[slot].add_(memory"),
    "a new text begins with the old one's state": ("            self.state[slot].zero_()\n", "            pass\n"),
    "a text is put one key short": ("        held = min(length, self.capacity)\n        if", "        held = min(length, self.capacity) - 1\n        if"),  # noqa: E501
    "every token asks the first one's experts": ("[indices, torch", "[indices[:1], torch"),
    "slopes are the first layer's": ("decay_slopes(H, attention.layer_idx,", "decay_slopes(H, 0,"),
    "the gate is left out": ("ops.output_gate(y, x, attention.output_gate)", "y"),
}  # fmt: skip


def furthest(kind) -> float:
    """The largest error of rows of different lengths, with a window and without, while a slot changes hands."""
    found = []
    for config in (small(LIGHTNING, LIGHTNING, SOFTMAX), small(LIGHTNING, SOFTMAX, sliding_window=5)):
        model = twin(config)
        rows = kind(model, 3, 24)
        alone = {rows.put(prompt): Alone(model, prompt) for prompt in texts(model, 4, 9)}
        for steps, next_one in enumerate((texts(model, 2)[0], None, None), start=2):
            for tokens in prompts(config, steps, 3, seed=steps):
                got = rows.step(torch.tensor(tokens))
                found += [error(got[slot], row.step(int(tokens[slot]))) for slot, row in alone.items()]
            rows.free(0)
            row = Alone(model, next_one)
            alone[rows.put(row.cache if next_one is None else next_one)] = row
        found.append(float(rows.lengths.tolist() != [0, 9 + 2 + 3 + 4, 0]))
    return float(np.max(found))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake, tmp_path):
    assert not furthest(edited(tmp_path, slots, *MISTAKES[mistake]).Slots) <= 1e-6  # NaN is noticed as well


def test_an_edit_that_changes_nothing_passes(tmp_path):
    """Else the mistakes above could be noticed for being edited."""
    assert (
        furthest(
            edited(tmp_path, slots, "lengths % self.capacity]", "(lengths + self.capacity) % self.capacity]").Slots
        )
        < 1e-11
    )
