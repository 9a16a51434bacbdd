"""Train the models of the recall experiment with the twin: `python -m recall.train`, in the folder notebooks/.

Models of one seed see the same sequences in the same order for the same number of steps, so that a gap between two of
them is not one of schedule. Keys are drawn from as many as there are pairs: among 64 keys from the start, models of
this size stay with guessing one of the values that they saw.
"""

import json
import math
import time

import numpy as np
import torch
from minimax_torch import MiniMaxForCausalLM

from .task import HERE, accuracy, config, draw

PATTERNS = "LLLS", "LLLL", "SSSS"
SEEDS = 0, 1, 2
PAIRS = 8, 16, 24, 32, 40, 48, 56, 64
SCHEDULE = (8, 200), (16, 60), (32, 100), (64, 440)  # pairs, steps
TOKENS = 2048  # a step


def train(pattern, seed, schedule=SCHEDULE):
    """Train a model; return it and the mean loss of every 20 steps."""
    model, rng = MiniMaxForCausalLM(config(pattern), seed=seed), np.random.default_rng(1000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    stages, losses = [pairs for pairs, steps in schedule for _ in range(steps)], []
    for step, pairs in enumerate(stages):
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * step / len(stages))) / 2
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 50) * cosine
        ids, answers = (torch.from_numpy(x) for x in draw(rng, TOKENS // (3 * pairs), pairs, keys=pairs))
        logits = model(ids, logits_to_keep=pairs).logits  # (B, N, V)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model, np.reshape(losses, (-1, 20)).mean(1).round(3).tolist()


def main():
    """Train every pattern with every seed; keep the first seed's weights in bfloat16, and what all of them measure."""
    measured = {"schedule": SCHEDULE, "seeds": SEEDS, "pairs": PAIRS, "parameters": {}, "accuracy": {}, "loss": {}}
    for seed in SEEDS:
        for pattern in PATTERNS:
            start = time.perf_counter()
            model, losses = train(pattern, seed)
            model.to(torch.bfloat16)
            if seed == SEEDS[0]:
                model.save_pretrained(HERE / pattern)
            model.to(torch.float32)  # measured as it is stored
            right = [accuracy(model, pairs) for pairs in PAIRS]
            measured["parameters"][pattern] = sum(x.numel() for x in model.weights.values())
            measured["accuracy"].setdefault(pattern, []).append(right)
            measured["loss"].setdefault(pattern, []).append(losses)
            print(
                f"{pattern} seed {seed}: {right[-1]:.1%} of {PAIRS[-1]} pairs, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    lines = json.dumps(measured, indent=1)
    (HERE / "measured.json").write_text(lines + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
