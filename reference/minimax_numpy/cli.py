"""The command line: ``minimax-twin demo · crosscheck · golden · grade · generate · inspect · make · bench``.

Exit status: 0 the same (or done), 1 different, 2 bad input, told in one sentence, 130 interrupted, 141 not read to
the end.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .check import crosscheck
from .check.crosscheck import foretell
from .check.golden import judge_golden, write_model, write_op
from .check.grade import describe as describe_marks
from .check.grade import grade, write_marks
from .check.report import Report
from .check.single import check_op
from .check.targets import load_object
from .checkpoint import Checkpoint
from .config import LIGHTNING, SOFTMAX, MiniMaxConfig
from .counts import count, describe
from .extras import optional
from .forecast import decimal
from .making import make_checkpoint
from .model import MiniMaxForCausalLM
from .quantize import KINDS
from .shipped import TINY
from .talk import DTYPES, add_options, numbers, run_generate

OK, DIFFERENT, BAD_INPUT, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = parser().parse_args(arguments)
    try:
        if os.getcwd() not in sys.path:  # as python -m has it, so that --against finds a module that lies here
            sys.path.insert(0, os.getcwd())
        check_options(options)
        with warnings.catch_warnings():
            warnings.showwarning = tell_warning
            status = options.run(options)
            sys.stdout.flush()  # now, while an error can be told
            return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read, as head does, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except Exception as error:  # a traceback would exit 1, which says "different"
        print(f"minimax-twin: {sentence(error)}", file=sys.stderr)
        return BAD_INPUT


def tell_warning(message: Warning | str, *_, **__) -> None:
    """A warning is for whoever typed the command: the sentence, without the line of code that it comes from."""
    print(f"minimax-twin: {message}", file=sys.stderr)


def sentence(error: Exception) -> str:
    """The first line of an error; one that nobody foresaw is told with its type."""
    told = (str(error).splitlines() or ["no message"])[0]
    foreseen = isinstance(error, ValueError | OSError | ImportError) and str(error)
    return told if foreseen else f"{type(error).__name__}: {told}"


def check_options(options) -> None:
    """Refuse before the run what could not be used after it: a negative seed, files that cannot be written."""
    given = vars(options)
    if (given.get("seed") or 0) < 0:
        raise ValueError(f"--seed is {options.seed}; it must be 0 or more.")
    for option in ("json", "plot"):
        if file := given.get(option):
            check_target(file, f"--{option}")
    if given.get("plot"):
        if options.plot.suffix not in (".svg", ".png"):
            raise ValueError(f"--plot is {str(options.plot)!r}; plots are written as .svg or .png.")
        optional("matplotlib", "notebooks")


def check_target(file: Path, option: str) -> None:
    """A file can be written only where its folder is, and not over a folder."""
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{option} is {str(file)!r}; there is no folder {file.parent}, so make it first.")
    if file.exists() and not file.is_file():
        raise ValueError(f"{option} is {str(file)!r}, which is a folder or a device; give a file.")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(f"{option} is {str(file)!r}; nothing can be written to its folder, so give another one.")


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(
        prog="minimax-twin", description="MiniMax-Text-01 twice, and a cross-check between the two."
    )
    commands = top.add_subparsers(required=True, metavar="command")

    def command(run, told: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__.removeprefix("run_"), help=told, description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    def checkpoint(sub, told: str = "a folder of safetensors; without it, the small model that ships with the package"):
        sub.add_argument("checkpoint", nargs="?", type=Path, default=TINY, metavar="CHECKPOINT", help=told)

    command(run_demo, "cross-check the small model and generate from both twins")

    sub = command(run_crosscheck, "compare a model, an op or a file of numbers with the reference")
    checkpoint(sub)
    streamed = "read weights from the shards as they are used: for a checkpoint larger than memory"
    others = "minimax_torch, transformers, package.module:factory, or a trace or answers in .safetensors"
    sub.add_argument("--against", default="minimax_torch", metavar="OTHER", help=others)
    sub.add_argument("--op", metavar="NAME", help="check one op; --against names the function")
    sub.add_argument(
        "--golden", type=Path, metavar="DIR", help="judge answers by golden vectors; --against names their file"
    )
    sub.add_argument("--dtype", choices=DTYPES, help="what the other side computes in")
    sub.add_argument("--device", default="cpu", help="where a torch target runs")
    sub.add_argument("--length", type=int, help="tokens of the prefill; by default 130, or two blocks and two")
    sub.add_argument("--decode", type=int, default=4, help="tokens one by one after it")
    sub.add_argument("--layers", metavar="3,7", help="only the parts of these layers")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--stream-weights", action="store_true", help=streamed)
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="draw error by depth, .svg or .png")

    sub = command(run_golden, "write inputs and answers for programs in other languages")
    sub.add_argument("folder", type=Path, metavar="DIR")
    sub.add_argument("--op", metavar="NAME", help="vectors of one op")
    sub.add_argument(
        "--model", nargs="?", type=Path, const=TINY, metavar="CHECKPOINT", help="every part of a model's prefill"
    )
    sub.add_argument("--seed", type=int, default=0)

    sub = command(run_grade, "grade Python files: ten functions, 100 points")
    sub.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a submission, or a folder of them")
    sub.add_argument("--seed", type=int, default=0, help="draws the numbers; another seed, other numbers")
    sub.add_argument("--time-limit", type=float, default=20, metavar="SECONDS", help="for each function")
    sub.add_argument("--json", type=Path, metavar="OUT", help="write points and messages as JSON")

    sub = command(run_generate, "continue ids, a text or a chat")
    checkpoint(sub)
    add_options(sub)

    sub = command(run_inspect, "parameters, bytes, FLOPs and memory")
    checkpoint(sub, "a config.json, a folder, or text-01; without it, the small model")
    sub.add_argument("--length", type=int, default=1_048_576, help="tokens in the cache")
    sub.add_argument("--quantization", choices=KINDS, help="also the bytes with attention and experts quantised")
    sub.add_argument("--layers", metavar="3,7", help="list the shards that these layers need, by the index alone")

    sub = command(run_make, "write a checkpoint of true shape with random weights")
    sub.add_argument("folder", type=Path, metavar="DIR")
    sub.add_argument("--config", default="text-01", metavar="FILE", help="a config.json, a folder, or text-01")
    kinds = "linear or full for each layer; by default linear,full for text-01, else the configuration's own"
    sub.add_argument("--layer-types", metavar="linear,full", help=kinds)
    sub.add_argument("--seed", type=int, default=0)

    sub = command(run_bench, "measure; prints ratios of one run")
    contests = "models, layers, ops, block"
    kinds = ("models", "layers", "ops", "block", "prefill", "loading", "decode", "streaming")
    sub.add_argument("what", choices=kinds, help=f"{contests}: contests beside rivals; block is the real layer")
    sub.add_argument("--length", type=int, default=4096, help="tokens of the prefill")
    sub.add_argument("--lengths", metavar="1024,4096", help=f"{contests}: these lengths instead of their own")
    sub.add_argument("--repeat", type=int, default=3, help="runs of each contestant, taken in turn")
    sub.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=f"{contests}: where")
    dtypes, told = ("float32", "bfloat16", "float16"), "of ours and the rivals; by default bfloat16 on a GPU"
    sub.add_argument("--dtype", choices=dtypes, help=f"{contests}: type {told}, else float32")
    sub.add_argument("--layers", type=int, metavar="N", help="block: so many layers instead of 8")
    sub.add_argument("--small", action="store_true", help=f"{contests}: so small that only the command is tried")
    sub.add_argument("--json", type=Path, metavar="FILE", help=f"{contests}: write what was measured as JSON")
    sub.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"{contests}: draw time and memory by length, .svg or .png"
    )
    sub.add_argument("--quantization", choices=KINDS, help="what loading quantises to")
    return top


def run_demo(options) -> int:
    """Cross-check the small model that ships with the package, and generate from it with both twins."""
    prompt = np.array([[1, 77, 105, 110, 105, 77, 97, 120], [0, 0, 0, 1, 116, 119, 105, 110]])  # left-padded
    mask = prompt != 0
    ids = MiniMaxForCausalLM.from_pretrained(TINY).generate(prompt, mask, max_new_tokens=12)
    try:
        twin = optional("minimax_torch", "torch")
    except ModuleNotFoundError as error:
        report = crosscheck(TINY, MiniMaxForCausalLM.from_pretrained(TINY), dtype="float32")
        print(report, f"\n{error}\nWithout it, this was the reference in float32 against itself in float64.")
        print("\ngenerated:", *(row.tolist() for row in ids[:, prompt.shape[1] :]), sep="\n  ")
        return OK if report.ok else DIFFERENT
    torch = optional("torch", "torch")
    report = crosscheck(TINY, "minimax_torch")
    print(report, "\n")
    model = twin.MiniMaxForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    twin_ids = model.generate(torch.from_numpy(prompt), torch.from_numpy(mask), max_new_tokens=12).numpy()
    for name, found in (("minimax_numpy", ids), ("minimax_torch", twin_ids)):
        print(f"{name} generates", *(row.tolist() for row in found[:, prompt.shape[1] :]), sep="\n  ")
    same = bool((ids == twin_ids).all())
    print("token for token the same" if same else "the tokens differ")
    return OK if report.ok and same else DIFFERENT


def run_crosscheck(options) -> int:
    """Compare with the reference: a whole model, one op (--op), or a file of answers (--golden)."""
    if options.op and options.golden:
        raise ValueError("--op and --golden are two checks; give one of them.")
    if options.golden:
        report = judge_golden(options.golden, options.against)
    elif options.op:
        name = options.against if options.against != "minimax_torch" else f"minimax_torch.ops:{options.op}"
        report = check_op(options.op, load_object(name), dtype=options.dtype or "float64", seed=options.seed)
    else:
        layers = None if options.layers is None else sorted(set(numbers(options.layers, "--layers")))
        part = bool(layers) and bool(Checkpoint(options.checkpoint).absent())  # is streamed without being told to
        if options.stream_weights or (part and options.against == "minimax_torch"):
            asked = (options.dtype, options.length, options.decode, layers, options.against)
            told = foretell(options.checkpoint, *asked)
            print(f"minimax-twin: {told}", file=sys.stderr)
        report = crosscheck(
            options.checkpoint, options.against, dtype=options.dtype, length=options.length, decode=options.decode,
            layers=layers, seed=options.seed, device=options.device,
            stream=options.stream_weights,
        )  # fmt: skip
    return tell(report, options)


def tell(report: Report, options) -> int:
    """Print a report, write what was asked for, and turn its verdict into an exit status."""
    try:
        if options.json:
            report.to_json(options.json)
        if options.plot:
            report.plot(options.plot)
    finally:  # the files before the table, which may be read by somebody who stops; the table whatever becomes of them
        print(report)
    return OK if report.ok else DIFFERENT


def run_golden(options) -> int:
    """Write golden vectors: inputs.safetensors, expected.safetensors and golden.json."""
    if bool(options.op) == bool(options.model):
        raise ValueError("Give --op NAME or --model, one of the two.")
    if options.op:
        folder = write_op(options.folder, options.op, options.seed)
    else:
        folder = write_model(
            options.folder, MiniMaxForCausalLM.from_pretrained(options.model, np.float64), seed=options.seed
        )
    print(f"wrote {folder}/inputs.safetensors, expected.safetensors and golden.json")
    return OK


def run_grade(options) -> int:
    """Grade submissions, each function in a process of its own; marks are no verdict, so all is well with 0 points."""
    marks = grade(options.files, options.seed, options.time_limit)
    print(describe_marks(marks))
    if options.json:
        write_marks(marks, options.seed, options.json)
    return OK


def run_inspect(options) -> int:
    """Count a model's parameters, bytes, FLOPs and memory, exactly, from its configuration."""
    if options.length < 1:
        raise ValueError(f"--length is {options.length}; it must be at least 1.")
    if options.layers is not None:
        print(describe_shards(Checkpoint(options.checkpoint), sorted(set(numbers(options.layers, "--layers")))))
        return OK
    if str(options.checkpoint) == "text-01":
        print(describe(MiniMaxConfig.text_01(), options.length, quantization=options.quantization))
        return OK
    config, stored = MiniMaxConfig.from_pretrained(options.checkpoint), None
    if options.checkpoint.is_dir() and any(options.checkpoint.glob("*.safetensors")):
        checkpoint = Checkpoint(options.checkpoint)
        stored = None if checkpoint.absent() else checkpoint.nbytes
    print(describe(config, options.length, stored, options.quantization))
    return OK


def describe_shards(checkpoint: Checkpoint, layers: list[int]) -> str:
    """The shards that some layers lie in, and which of them are there; by the index, so none needs be."""
    known = checkpoint.layers()
    for i in layers:
        if i not in known:
            raise ValueError(f"{checkpoint.path} knows nothing of a layer {i}; it tells of {len(known)} layers.")
    files = checkpoint.shards(layers)
    width = max(len(file.name) for file in files)
    lines = [
        f"{file.name:<{width}}  {file.stat().st_size:>18,} bytes" if file.is_file() else f"{file.name:<{width}}  absent"
        for file in files
    ]
    absent = sum(not file.is_file() for file in files)
    told = ", ".join(map(str, layers))
    return "\n".join([*lines, f"layers {told}: {len(files)} of {checkpoint.files} shards, {absent} of them absent"])


def run_make(options) -> int:
    """Write a checkpoint of true shape with random weights in bfloat16, to try streaming on."""
    original = options.config == "text-01"
    config = MiniMaxConfig.text_01() if original else MiniMaxConfig.from_pretrained(options.config)
    kinds = options.layer_types or ("linear,full" if original else None)
    if kinds:
        names = [{"linear": LIGHTNING, "full": SOFTMAX}.get(kind, kind) for kind in kinds.split(",")]
        config = replace(config, layer_types=tuple(names))
    print(f"{decimal(count(config).bytes_bf16)} are to be written to {options.folder}", file=sys.stderr)
    total = make_checkpoint(options.folder, config, options.seed)
    print(f"wrote {total:,} bytes, {config.num_hidden_layers} layers, to {options.folder}")
    return OK


def run_bench(options) -> int:
    """Measure: the reference's prefill beside transformers', or the memory that loading or streaming takes."""
    return optional("minimax_torch.bench", "torch").main(options)


if __name__ == "__main__":
    sys.exit(main())
