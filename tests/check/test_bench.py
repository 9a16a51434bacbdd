"""The bench: what it reports is checked on rows with known answers; no test here asks how fast anything is."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import pytest
import torch
from minimax_numpy.cli import main
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_torch import bench, ops
from minimax_torch.bench import block, contest, contestants, models, tell
from minimax_torch.bench.contest import Machine, Row, noting
from minimax_torch.bench.contestants import Ours, Slotted, Transformers, built, with_weights

single = importlib.import_module("minimax_torch.bench.ops")
CPU = torch.device("cpu")
HERE = Machine(CPU, torch.float32, 1e12, 1e10)
WIDE = Machine(CPU, torch.float64, 1e12, 1e10)


def run(*arguments) -> int:
    return main([str(x) for x in arguments])


# --- Every contest, so small that only the command is tried ---------------------------------------------------------


@pytest.mark.parametrize("what", ["ops", "models", "layers", "block"])
def test_a_contest_measures_everybody_beside_float64(what, tmp_path, capsys):
    file, drawing = tmp_path / "it.json", tmp_path / "it.svg"
    asked = ("bench", what, "--small", "--repeat", 1, "--lengths", "16,32", "--json", file, "--plot", drawing)
    assert run(*asked) == 0
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["ceilings"]["matmul"] > 0 and told["ceilings"]["memory"] > 0 and told["dtype"] == "float32"
    measured = [row for row in told["rows"] if row["seconds"] is not None]
    assert measured and drawing.read_text(encoding="utf-8").count("<path") > 10
    for row in measured:
        assert row["floor"] > 0 and row["share"] == pytest.approx(row["floor"] / row["seconds"])
        if what != "block" and row["contestant"] != "softmax, SDPA":
            assert row["error"] < (5e-2 if "int8" in row["contestant"] else 1e-5), row
    notes = {row["contestant"]: row["note"] for row in told["rows"] if row["seconds"] is None}
    assert all(note and note.startswith("absent: ") for note in notes.values()), notes
    assert what == "layers" or "fla" in notes
    printed = capsys.readouterr().out
    assert "16 tokens" in printed and "32 tokens" in printed and "of floor" in printed


def test_ops_judge_the_state_and_whether_the_bits_are_the_same(tmp_path):
    run("bench", "ops", "--small", "--repeat", 1, "--lengths", "16,32", "--json", tmp_path / "it.json")
    rows = json.loads((tmp_path / "it.json").read_text(encoding="utf-8"))["rows"]
    ours = [row for row in rows if row["contestant"] == "lightning"]
    assert {row["contest"] for row in ours} == {"forward", "forward + backward", "decode"}
    assert all(row["same"] for row in ours)
    assert all(row["state_error"] < 1e-5 for row in ours if row["contest"] != "forward + backward")


def test_a_token_after_few_and_many(capsys, monkeypatch):
    """A state is as large after either; keys and values are as many as the tokens."""
    monkeypatch.setattr(bench, "PASTS", (16, 256))
    assert run("bench", "decode", "--repeat", 1) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "after" in line and "tokens  " in line]
    sizes = {line.split("tokens")[0]: line.split("(")[-1] for line in lines}
    assert len(sizes) == 6
    for told, size in sizes.items():
        assert (size == "  16.00 ×)") is ("softmax" in told and "256" in told), told


def test_the_reference_beside_transformers(capsys):
    pytest.importorskip("transformers")
    assert run("bench", "prefill", "--length", 16, "--repeat", 1) == 0
    assert "its tokens per second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("ops", "--device", "cuda"), "There is no device 'cuda' on this machine"),
        (("block",), "The true-size block is for a GPU: give --device cuda, or --small"),
        (("block", "--small", "--layers", 0), "--layers N is how many layers bench block builds, at least 1"),
        (("ops", "--layers", 3), "--layers N is how many layers bench block builds"),
        (("prefill", "--dtype", "bfloat16"), "are for models, layers, ops, block; not for prefill"),
        (("models", "--lengths", "16,x"), "--lengths is '16,x'; give whole numbers from 2 on"),
        (("layers", "--repeat", 0), "at least 2 tokens and 1 run"),
    ],
)
def test_a_bad_option_is_one_sentence(asked, told, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if "cuda" in asked and torch.cuda.device_count():
        pytest.skip("this machine has a GPU")
    assert run("bench", *asked) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_a_rival_that_is_not_installed_is_a_line(monkeypatch):
    def absent(*_):
        raise ModuleNotFoundError("transformers is not installed")

    monkeypatch.setattr(models, "Transformers", absent)
    notes: dict[str, str] = {}
    found = models.contestants(built(models.SMALL, HERE), HERE, notes)
    assert notes == {"transformers": "absent: transformers is not installed"}
    assert [c.name for c in found] == ["ours", "ours, as written", "ours, eager form"]


# --- Times, ratios, floors ------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_the_rounds():
    """The machine was busy in the second round, for both."""
    ours, theirs = (
        Row("prefill", "ours", 8, times=[1.0, 10.0, 1.0]),
        Row("prefill", "theirs", 8, times=[2.0, 30.0, 2.0]),
    )
    assert contest.ratio(ours, theirs) == 2.0
    assert contest.ratio(ours, Row("prefill", "nobody", 8)) is None


def test_contestants_are_asked_in_turn_and_the_slow_one_once(monkeypatch):
    asked = []
    clock = {"quick": [0.5] * 3, "slow": [1e3], "compiled first": [1e3, 0.5, 0.5], "slow at last": [0.5, 1e3]}

    def seconds(function, device=CPU, calls=None):
        return clock[function()].pop(0)

    monkeypatch.setattr(contest, "seconds", seconds)
    rows = [Row("prefill", name, 100, flops=20 * 10**12 if name == "slow" else 10**11) for name in clock]
    contest.compete(rows, [lambda name=name: asked.append(name) or name for name in clock], 2, HERE, tokens=10)
    assert asked == [*clock, "quick", "compiled first", "slow at last", "quick", "compiled first"]
    assert [row.seconds for row in rows] == [0.05, 100.0, 0.05, 100.0]
    assert rows[0].share == pytest.approx(2) and rows[0].rate == pytest.approx(2000)


def test_who_fails_is_asked_no_more_and_the_others_go_on():
    asked = []

    def fails():
        asked.append("fails")
        if len(asked) > 1:
            raise RuntimeError("no kernel image\nand a long trace")

    rows = [Row("forward", "fails", 8), Row("forward", "works", 8)]
    contest.compete(rows, [fails, lambda: None], 3, HERE)
    assert asked == ["fails", "fails"]
    assert rows[0].seconds is None and rows[0].note == "failed: RuntimeError: no kernel image"
    assert len(rows[1].times) == 3 and rows[1].note is None


def test_floors_of_the_real_layer():
    """A lightning layer takes 1.189 GFLOP a token, and a decode step reads 1.19, 4.95 or 10.3 GB in bfloat16."""
    layer = dataclasses.replace(models.TRUE, layer_types=(LIGHTNING,), vocab_size=1)
    assert models.flops(layer, 4096) / 4096 == pytest.approx(1.189e9, rel=2e-3)
    for batch, gigabytes in ((1, 1.19), (8, 4.95), (32, 10.3)):
        assert models.bytes_read(layer, batch, 4096, 2) == pytest.approx(gigabytes * 1e9, rel=1e-2)
    softmax = dataclasses.replace(layer, layer_types=(SOFTMAX,))
    longer = models.bytes_read(softmax, 1, 2 << 20, 2) - models.bytes_read(softmax, 1, 1 << 20, 2)
    assert longer == (1 << 20) * 4096  # keys and values of 8 heads


def test_a_ceiling_is_the_best_that_was_seen(monkeypatch):
    """The machine was busy when it was first asked: what is measured later counts, in both directions."""
    monkeypatch.setattr(contest, "READ", {})
    clock = iter([2.0] * 9 + [1.0] * 2 + [0.5] * 3 + [4.0] * 5)  # read; again: matmul, read; once more
    monkeypatch.setattr(contest, "seconds", lambda *_: next(clock))
    machine, row = Machine(CPU, torch.float32, 1.0, 1.0, size=16), Row("decode", "it", 1, flops=100, nbytes=1 << 20)
    assert machine.floor(row) == 100
    machine.floor(row, again=True)
    assert machine.matmul == 2 * 16**3 and machine.floor(row) == 0.5
    machine.floor(row, again=True)
    assert machine.matmul == 2 * 16**3 and machine.floor(row) == 0.5 and next(clock, None) is None


# --- Errors ---------------------------------------------------------------------------------------------------------


def test_a_form_that_is_wrong_or_never_the_same_is_seen():
    inputs, slopes = single.drawn(HERE, single.Shape(2, 16, 1, 8), 40, many=4), ops.decay_slopes(2, 1, 8)

    def judged(form, backward) -> Row:
        row = Row("forward", "it", 40)
        single.judge(row, lambda: single.step(form, inputs, slopes, backward), inputs, slopes, backward)
        return row

    for backward in (False, True):
        assert judged(single.chunked, backward).error < 1e-6
        assert judged(lambda q, k, v, s: single.chunked(q, k, v * 1.01, s), backward).error > 5e-3
    state = judged(lambda q, k, v, s: (single.chunked(q, k, v, s)[0], single.chunked(q, k, v, s)[1].bfloat16()), False)
    assert state.error < 1e-6 and 1e-4 < state.state_error < 1e-2
    noise = judged(lambda q, k, v, s: tuple(x + torch.rand(()) for x in single.chunked(q, k, v, s)), False)
    assert noise.same is False


def test_a_step_that_forgets_to_write_its_state_is_seen():
    shape = single.Shape(2, 16, 1, 8)
    qkv, slopes, state = single.drawn(HERE, shape, 1, 3), ops.decay_slopes(2, 1, 8), torch.randn(3, 2, 16, 16)
    row = Row("decode", "it", 1)
    single.judge_step(row, lambda S: single.in_place(*qkv, slopes, S), qkv, slopes, state)
    assert row.error < 1e-5 and row.state_error < 1e-5
    single.judge_step(row, lambda S: (single.in_place(*qkv, slopes, S.clone())[0], S), qkv, slopes, state)
    assert row.error < 1e-5 and row.state_error > 1e-2


# --- The contestants ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twin():
    config = dataclasses.replace(models.SMALL, layer_types=(LIGHTNING, LIGHTNING, SOFTMAX), num_key_value_heads=1)
    return built(config, WIDE)


def test_a_long_prefill_is_read_in_pieces_with_the_same_logits(twin, monkeypatch):
    ids, ours = models.drawn_ids(twin.config, WIDE, 1, 37), Ours("ours", twin)
    want = ours.prefill(ids)
    calls: list = []
    seen = twin.model.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(contestants, "PIECE", 10)
    assert contest.off(ours.prefill(ids), want) < 1e-11
    seen.remove()
    assert len(calls) == 4


def test_from_one_random_past_slots_and_cache_say_the_same(twin, monkeypatch):
    past, ids = contestants.random_cache(twin, 1, 50, 20), models.drawn_ids(twin.config, WIDE, 3, 4)
    monkeypatch.setattr(contestants, "random_cache", lambda *_: past.fork())
    slots = Slotted("slots", twin)
    got, held = slots.decode(slots.past(3, 50, 20), ids)
    each = [Ours("ours", twin).decode(past.fork(), row[None])[0] for row in ids]
    assert held.lengths.tolist() == [54] * 3
    assert contest.off(got, torch.cat(each)) < 1e-11


def test_transformers_runs_on_the_very_same_weights():
    pytest.importorskip("transformers")
    model = built(models.SMALL, HERE)
    theirs = Transformers(model, "eager")
    shared = dict(model.state_dict())
    for name, x in theirs.model.named_parameters():
        assert x.data_ptr() == shared[name].data_ptr(), name
    ids = models.drawn_ids(models.SMALL, HERE, 2, 20)
    assert contest.off(theirs.prefill(ids), Ours("ours", model).prefill(ids)) < 1e-5
    logits, (_, seen) = theirs.decode(theirs.past(2, 30, 0), ids)
    assert logits.isfinite().all() and seen == 50


# --- What does not fit ----------------------------------------------------------------------------------------------


class OnGpu(Machine):
    """A machine that takes its CPU for a GPU."""

    on_gpu = property(lambda self: True)


@pytest.fixture
def gpu(monkeypatch):
    """Numbers in place of a GPU's memory: some gigabytes free, nothing held."""
    memory = SimpleNamespace(free=5e9)
    told = {"memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0}
    told |= dict.fromkeys(("reset_peak_memory_stats", "synchronize", "empty_cache"))
    for name, answer in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (memory.free, 8e9))
    return memory


GPU = OnGpu(CPU, torch.float32, 1e12, 1e10)


def test_out_of_memory_says_what_was_needed_and_what_would_fit(gpu):
    row = Row("decode", "ours", 1_000_000, 32, needed=20 * 10**9)
    assert not contest.fits(row, GPU)
    assert row.note == (
        "out of memory: about 20.0 GB are needed and 5.0 GB are free; 8 rows, or 250,000 tokens in each would fit"
    )
    row = Row("prefill", "ours", 1000)
    with noting(row, GPU):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 18.63 GiB. GPU 0 has …\nmore")
    assert row.note == "out of memory: about 20.0 GB are needed and 5.0 GB are free; 249 tokens would fit"
    row = Row("prefill", "ours", 1000)
    with noting(row, GPU):
        raise torch.OutOfMemoryError("in words that nobody foresaw")
    assert row.note and "more than the 5.0 GB that are free" in row.note


def test_on_a_gpu_who_does_not_fit_is_left_out_and_the_next_goes_on(gpu, twin):
    exact, narrow = (
        Ours("float64", twin),
        with_weights(twin.config, twin.weights, GPU, torch.float32),
    )
    found, ids = (
        [Ours("ours", narrow), Slotted("slots", narrow)],
        models.drawn_ids(twin.config, GPU, 2, 30),
    )
    rows = models.decode(found, exact, ids, GPU, 1)
    assert [len(row.times) for row in rows] == [2, 2] and all(row.error < 1e-5 for row in rows)
    gpu.free = 1000
    rows = models.decode(found, None, ids, GPU, 1, past=64) + models.prefill(found, None, ids[:1], GPU, 1)
    assert len(rows) == 4 and all(row.note.startswith("out of memory: about") for row in rows)


@pytest.mark.parametrize(
    ("gigabytes", "asked", "softmax", "layers"),
    [(140, None, [7], 8), (72, None, [5], 6), (140, 3, [2], 3), (12, None, [0], 1), (200, 16, [7, 15], 16)],
)
def test_as_many_layers_as_fit_with_softmax_last(gigabytes, asked, softmax, layers, capsys):
    config = block.planned(models.TRUE, asked, gigabytes * 1e9, 2)
    assert config.num_hidden_layers == layers
    assert [i for i, kind in enumerate(config.layer_types) if kind == SOFTMAX] == softmax
    assert ("fit into" in capsys.readouterr().out) == (layers < (asked or 8))


def test_where_no_layer_fits_a_sentence_says_what_one_takes():
    with pytest.raises(ValueError, match=r"takes 11\.4 GB, and 9\.0 GB can be had"):
        block.planned(models.TRUE, None, 9e9, 2)


# --- What is printed and drawn --------------------------------------------------------------------------------------


def example() -> list[Row]:
    rows = []
    for length in (1024, 4096):
        for name, slower in (("ours", 1), ("theirs", 3)):
            times = [slower * length / 1e5] * 3
            rows.append(Row("prefill", name, length, 1, times[0], times, floor=length / 2e5, memory=length << 10))
    for batch in (1, 8):
        rows.append(Row("decode", "ours", 1024, batch, batch / 100, [batch / 100], floor=1 / 200))
    return [*rows, Row("prefill", "absent one", 4096, note="absent: it is not installed")]


def test_a_table_shows_ratios_shares_and_notes():
    lines = tell.table(example(), "ours").splitlines()
    ours, theirs = (next(line for line in lines if line.startswith(f"  {name}")) for name in ("ours", "theirs"))
    assert "50%" in ours and "1.00" in ours and "100,000" in ours
    assert "3.00" in theirs and "17%" in theirs and "33,333" in theirs
    assert any(line.split() == ["absent", "one", "absent:", "it", "is", "not", "installed"] for line in lines)


def test_plots_run_over_lengths_or_over_rows(tmp_path):
    panels = [(title, along, len(rows)) for title, along, rows in tell.panels_of(example()[:-1])]
    assert panels == [("prefill", "length", 4), ("decode", "batch", 2)]
    tell.write(tmp_path / "it.json", example(), HERE, {})
    tell.redraw(str(tmp_path / "it.json"), str(tmp_path / "it.svg"))
    drawn = (tmp_path / "it.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn and drawn.count("<!-- 3 × -->") == 1


def test_nobody_is_left_out_of_a_plot_for_want_of_colours(tmp_path):
    names = [f"number {n}" for n in range(len(tell.COLOURS) + 3)]
    rows = [Row("prefill", name, length, 1, 1.0, [1.0]) for name in names for length in (8, 16)]
    tell.plot(tmp_path / "it.svg", rows, names[0])
    drawn = (tmp_path / "it.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in drawn for name in names)
