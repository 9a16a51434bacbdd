"""The small model that ships with the package: random weights, every feature of the architecture, and a tokenizer.

``python -m minimax_numpy.shipped`` makes it again, to the byte; the tokenizer needs the extra ``text``. Two files are
written by hand and stay: ``corpus.txt``, from which the tokenizer learns, and ``chat_template.jinja``.
"""

import json
from pathlib import Path

import numpy as np

from .checkpoint import save_checkpoint
from .config import MiniMaxConfig, is_router
from .extras import optional
from .model import fresh_weights
from .trace import float32_to_bfloat16

TINY = Path(__file__).parent / "tiny"
SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<beginning_of_sentence>",
    "eos_token": "<end_of_sentence>",
}  # ids 0, 1, 2


def make(folder: Path = TINY) -> None:
    """Write the checkpoint: bfloat16, float32 routers, gains that are not all one; then its tokenizer."""
    # slopes by transformers' rule, so that transformers differs by its rotary alone
    config = MiniMaxConfig.tiny(vocab_size=512, slope_rule="transformers")
    weights = fresh_weights(config, "MiniMaxForCausalLM", seed=1, dtype=np.dtype(np.float32))
    rng = np.random.default_rng(2)
    for name, x in weights.items():
        if x.ndim == 1:
            x = x + np.float32(0.2) * rng.standard_normal(x.shape, np.float32)
        weights[name] = x if is_router(name) else float32_to_bfloat16(x)
    save_checkpoint(folder, config, "MiniMaxForCausalLM", weights, max_shard_bytes=10**9)
    make_tokenizer(folder, config)


def make_tokenizer(folder: Path, config: MiniMaxConfig) -> None:
    """Train a byte-level BPE, special tokens first, then all 256 bytes, then merges; write what goes with it."""
    tokenizers = optional("tokenizers", "text")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    for file in ("corpus.txt", "chat_template.jinja"):
        text = (TINY / file).read_bytes()
        (folder / file).write_bytes(text)
    tokenizer.train_from_iterator((TINY / "corpus.txt").read_text(encoding="utf-8").splitlines(), trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIAL,
        "model_max_length": config.max_position_embeddings,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    stops = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    texts = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "generation_config.json": json.dumps(stops, indent=2),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    make()
