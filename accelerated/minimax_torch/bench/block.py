"""`minimax-twin bench block`: the real hybrid block of MiniMax-Text-01, 7 lightning layers and a softmax one.

Random weights in bfloat16, about 90 GB, are made on the device; where memory holds fewer layers, the softmax layer
stays the last. Prefill is timed against the least arithmetic at the rate of a matmul, decode against the bytes that a
step must move. Long texts are read in pieces through the cache; what comes before a decoded token is drawn at random.
Errors against float64 are those of ``bench layers``, where the layer fits in float64, too.
"""

import dataclasses
from typing import Any

from minimax_numpy.config import LIGHTNING, SOFTMAX, MiniMaxConfig
from minimax_numpy.counts import count

from .contest import Row, free, lengths_of, machine_of, shape_of
from .models import NEW, SMALL, TRUE, Ours, Slotted, Transformers, built, decode, drawn_ids, prefill, tell
from .tell import finish

LAYERS = 8
SPARE = 8e9  # bytes for what layers work in
BATCHES = (1, 8, 32)


def block(options: Any) -> int:
    """Build it, run the contests and print them."""
    if options.device != "cuda" and not options.small:
        raise ValueError("The true-size block is for a GPU: give --device cuda, or --small for a toy block on a CPU.")
    machine = machine_of(options)
    size, spare = machine.dtype.itemsize, 0 if options.small else SPARE
    config = planned(SMALL if options.small else TRUE, options.layers, free(machine) - spare, size)
    lengths = lengths_of(options, (64, 128) if options.small else (2048, 8192, 32_768, 131_072, 1_048_576))
    pasts = lengths_of(options, (64, 128) if options.small else (8192, 131_072, 1_048_576))
    print(f"{machine}\n{shape_of(config)}; {count(config).total * size / 1e9:.1f} GB of weights", flush=True)
    model, rows = built(config, machine), list[Row]()
    absent = {"fla": "absent: it has the op, not the layer; bench ops names it"}
    ours, rivals = Ours("ours", model), list[Any]()
    try:
        rivals = [Transformers(model), Transformers(model, "eager")]
    except ImportError as error:
        absent["transformers"] = f"absent: {error}"
    for length in lengths:
        ids = drawn_ids(config, machine, 1, length)
        tell(rows, prefill([ours, *rivals], None, ids, machine, options.repeat), absent)
    for batch in BATCHES[: 2 if options.small else None]:
        for past in pasts:
            ids = drawn_ids(config, machine, batch, NEW)
            found = [Slotted("ours", model), Ours("ours, by the model's call", model), *rivals]
            tell(rows, decode(found, None, ids, machine, options.repeat, past), absent)
    return finish(rows, machine, options, "ours", layers=config.layer_types)


def planned(config: MiniMaxConfig, asked: int | None, room: float, size: int) -> MiniMaxConfig:
    """As many layers as are asked for and fit, seven lightning ones before each softmax one, which is the last.

    Raises ValueError where not even one fits.
    """
    wanted = asked or LAYERS
    one, two = (count(dataclasses.replace(config, layer_types=(LIGHTNING,) * n)).total * size for n in (1, 2))
    fit = int((room - (2 * one - two)) // (two - one))
    if fit < 1:
        raise ValueError(
            f"A layer of this block takes {(two - one) / 1e9:.1f} GB, and {max(room, 0) / 1e9:.1f} GB can be had "
            "beside what it works in; it needs a larger GPU, or --small."
        )
    if fit < wanted:
        print(f"{wanted} layers take {wanted * (two - one) / 1e9:.1f} GB; {fit} fit into {room / 1e9:.1f} GB")
    layers = min(fit, wanted)
    kinds = [SOFTMAX if i % LAYERS == 0 else LIGHTNING for i in range(layers)]
    return dataclasses.replace(config, layer_types=tuple(reversed(kinds)))
