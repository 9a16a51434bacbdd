"""``minimax-twin generate``: ids, text or a chat in; what the model goes on with out, at the end or as it comes."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from .checkpoint import write_whole
from .config import MiniMaxConfig
from .extras import optional
from .forecast import Forecast, forecast
from .model import MiniMaxForCausalLM
from .quantize import KINDS, check_kind
from .text import Tokenizer

DTYPES = ("float64", "float32", "bfloat16", "float16")
PROMPTS = ("ids", "text", "chat", "messages")
# options that the model's own generate takes under the same name; what is not given is left to its defaults
PASSED_ON = (
    *("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed", "num_beams", "length_penalty"),
    "prefill_chunk",
)


def add_options(sub: ArgumentParser) -> None:
    """The options of the command, but for the checkpoint."""
    prompt = sub.add_argument_group("the prompt, one of these")
    prompt.add_argument("--ids", metavar="1,2,3", help="token ids; several rows are separated by semicolons")
    prompt.add_argument("--text", action="append", help="a text to continue; may be given several times")
    prompt.add_argument("--chat", action="append", metavar="TEXT", help="a question; given again, another chat's")
    prompt.add_argument("--messages", type=Path, metavar="FILE", help="a chat as JSON: a list of role and content")
    prompt.add_argument("--system", metavar="TEXT", help="the system's message before --chat or --messages")

    choice = sub.add_argument_group("the choice of tokens; greedy by default")
    choice.add_argument("--max-new-tokens", type=int, metavar="N", help="at most this many; 20 by default")
    choice.add_argument("--eos", metavar="2,5", help="ids that end a row; by default the configuration's")
    choice.add_argument("--do-sample", action="store_true", default=None, help="draw tokens by their probabilities")
    choice.add_argument("--temperature", type=float, metavar="X", help="divides the logits before drawing")
    choice.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest")
    choice.add_argument("--top-p", type=float, metavar="X", help="draw from the likeliest that make up X together")
    choice.add_argument("--seed", type=int, metavar="N", help="the same draws every time, in both twins")
    choice.add_argument("--num-beams", type=int, metavar="N", help="search with this many beams")
    choice.add_argument("--length-penalty", type=float, metavar="X", help="above 0 favours longer beams")

    output = sub.add_argument_group("what is shown")
    output.add_argument("--stream", action="store_true", help="show one prompt's tokens as they come")
    output.add_argument("--logprobs", action="store_true", help="show each token's log-probability")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON, too")

    run = sub.add_argument_group("how it runs")
    run.add_argument("--dtype", choices=DTYPES, default="float32", help="what the model computes in")
    run.add_argument("--twin", action="store_true", help="generate with minimax_torch")
    run.add_argument("--device", help="where the twin runs; cpu by default")
    run.add_argument("--quantization", choices=KINDS, help="hold the weights in 4 or 8 bits")
    streamed = "read weights from the shards as they are used: for checkpoints larger than memory"
    run.add_argument("--stream-weights", action="store_true", help=streamed)
    run.add_argument("--prefill-chunk", type=int, metavar="N", help="read a long prompt N tokens at a time")


def run_generate(options) -> int:
    """Continue ids, a text or a chat: greedily, by drawing or with beams."""
    check_choices(options)
    given = None if options.eos is None else tuple(numbers(options.eos, "--eos"))
    tokenizer = Tokenizer(options.checkpoint) if options.ids is None else None
    ids, mask = read_prompts(options, tokenizer)
    if options.stream_weights:
        print(f"minimax-twin: {foretell(options, ids)}", file=sys.stderr)
    model, wrap = load(options)
    arguments = {name: value for name in PASSED_ON if (value := getattr(options, name)) is not None}
    if given is not None:
        arguments["eos_token_id"] = given
    if options.prefill_chunk is not None:
        arguments["progress"] = tell_progress
    if options.stream:
        follow(model.stream(wrap(ids), wrap(mask), **arguments), tokenizer)
        return 0
    if options.logprobs:
        arguments["output_logprobs"] = True
    out = model.generate(wrap(ids), wrap(mask), **arguments)
    found, logprobs = out if options.logprobs else (out, None)
    eos = arguments.get("eos_token_id", model.config.eos_token_id)
    stops = () if eos is None else np.atleast_1d(eos)
    results = []
    for r, row in enumerate(found.tolist()):
        new = until_stop(row[ids.shape[1] :], stops)
        result = {"prompt_ids": ids[r][mask[r]].tolist(), "ids": new}
        if tokenizer:
            result["text"] = tokenizer.decode(new)
        if logprobs is not None:
            result["logprobs"] = logprobs[r].tolist()[: len(new)]
        results.append(result)
    try:
        if options.json:
            text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
            write_whole(options.json, lambda file: file.write_text(text, encoding="utf-8"))
    finally:
        show(results, tokenizer)
    return 0


def foretell(options, ids: np.ndarray) -> Forecast:
    """What a streamed run will read and hold."""
    rows, n = len(ids) * (options.num_beams or 1), 20 if options.max_new_tokens is None else options.max_new_tokens
    dtype = "float64" if options.dtype == "float64" else "float32"
    config = MiniMaxConfig.from_pretrained(options.checkpoint)
    chunk = options.prefill_chunk
    return forecast(options.checkpoint, config, ids.shape[1], n, rows=rows, chunk=chunk, dtype=dtype)


def check_choices(options) -> None:
    """Refuse, before anything is read, options that contradict each other or would do nothing."""
    given = {name for name, value in vars(options).items() if value is not None and value is not False}
    if len(given & set(PROMPTS)) != 1:
        raise ValueError("Give one prompt: --ids, --text, --chat or --messages.")
    if options.num_beams == 1:  # is no search
        given.discard("num_beams")
    needs = dict.fromkeys(("temperature", "top_k", "top_p", "seed"), "do_sample")
    needs |= {"length_penalty": "num_beams", "device": "twin"}
    for name, needed in needs.items():
        if name in given and needed not in given:
            raise ValueError(f"{flag(name)} does nothing without {flag(needed)}; give both or neither.")
    if "system" in given and not given & {"chat", "messages"}:
        raise ValueError("--system opens a chat; give --chat or --messages, or leave it out.")
    for name in ("num_beams", "logprobs", "json"):
        if "stream" in given and name in given:
            raise ValueError(f"--stream and {flag(name)} exclude each other: {flag(name)} needs the whole answer.")
    check_kind(options.quantization, options.stream_weights)
    if options.dtype == "bfloat16" and not options.twin:
        raise ValueError("NumPy has no bfloat16; give another --dtype, or --twin.")


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def read_prompts(options, tokenizer: Tokenizer | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] and mask [B, T] of the prompts, padded on the left."""
    if tokenizer is None:
        rows = [numbers(row, "--ids") for row in options.ids.split(";")]
        width = max(map(len, rows))
        ids = np.array([[0] * (width - len(row)) + row for row in rows], dtype=np.int64)
        mask = np.array([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    elif options.text:
        ids, mask = tokenizer.encode(options.text)
    else:
        ids, mask = tokenizer.encode_chat(read_chats(options))
    if not mask.any(axis=1).all():
        raise ValueError(f"Prompt {int(np.argmin(mask.any(axis=1)))} is empty; give at least one token.")
    if options.stream and len(ids) > 1:
        raise ValueError(f"--stream shows one prompt, and there are {len(ids)}; leave it out or give one.")
    return ids, mask


def read_chats(options) -> list[list]:
    """The messages of each chat, the system's before them."""
    if options.chat:
        chats = [[{"role": "user", "content": text}] for text in options.chat]
    else:
        try:
            chats = [json.loads(options.messages.read_text(encoding="utf-8"))]
        except (ValueError, RecursionError):
            raise ValueError(f"{options.messages} is not JSON; it should hold a list of messages.") from None
        if not isinstance(chats[0], list):
            raise ValueError(f"{options.messages} should hold a list of messages, each with a role and a content.")
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return [system + chat for chat in chats]


def load(options) -> tuple:
    """The model, of either package, and what makes its arrays of NumPy's."""
    more = {} if options.quantization is None else {"quantization": options.quantization}
    more |= {"stream": True} if options.stream_weights else {}
    if not options.twin:
        return MiniMaxForCausalLM.from_pretrained(options.checkpoint, np.dtype(options.dtype), **more), np.asarray
    twin, torch = optional("minimax_torch", "torch"), optional("torch", "torch")
    device = options.device or "cpu"
    dtype = getattr(torch, options.dtype)
    model = twin.MiniMaxForCausalLM.from_pretrained(options.checkpoint, dtype=dtype, device=device, **more)
    return model, lambda x: torch.from_numpy(x).to(device)


def follow(tokens, tokenizer: Tokenizer | None) -> None:
    """Print one row's tokens as they come; an interrupt ends the line, too."""
    text = tokenizer and tokenizer.stream()
    try:
        for n, token in enumerate(tokens):
            print(text.push(token[0]) if text else f"{',' if n else ''}{int(token[0])}", end="", flush=True)
    except KeyboardInterrupt:
        print()
        raise
    print(text.finish() if text else "")


def show(results: list[dict], tokenizer: Tokenizer | None) -> None:
    """Print what each row goes on with; several texts are numbered."""
    for r, result in enumerate(results):
        number = f"[{r}] " if tokenizer and len(results) > 1 else ""
        print(number + result["text"] if tokenizer else ",".join(map(str, result["ids"])))
        for token, logprob in zip(result["ids"], result.get("logprobs", ())):
            piece = repr(tokenizer.decode([token], skip_special_tokens=False)) if tokenizer else ""
            print(f"{logprob:12.4f}  {token:6}  {piece}".rstrip())


def tell_progress(done: int, total: int) -> None:
    """How much of the prompt is read, on one line that is written again and again."""
    print(f"read {done:,} of {total:,} tokens", end="\n" if done >= total else "\r", file=sys.stderr, flush=True)


def until_stop(new: list[int], stops) -> list[int]:
    """A row up to its first stop; pads follow it."""
    end = next((n for n, token in enumerate(new, start=1) if token in stops), len(new))
    return new[:end]


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers separated by commas, as NumPy holds them."""
    try:
        return np.array([int(part) for part in text.split(",")], np.int64).tolist()
    except ValueError:
        raise ValueError(f"{option} is {text!r}; give whole numbers separated by commas.") from None
    except OverflowError:
        raise ValueError(f"{option} is {text!r}; it holds a number of more than 64 bits.") from None
