"""In transformers' place: after `register()` its Auto classes give our twin for model_type ``minimax``.

Each of the five classes here has transformers' outside (its configuration, its calls and outputs, its ``generate``)
and our twin inside: the two look at the same modules. Weights come and go through our own loader, so a tensor that is
missing, too much or of another shape raises, and nothing is ever filled in at random.

    from minimax_torch.transformers_bridge import register

    register()
    model = AutoModelForCausalLM.from_pretrained(folder)
"""

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Int
from minimax_numpy.cache import Cache as BaseCache
from minimax_numpy.checkpoint import Checkpoint
from minimax_numpy.config import MiniMaxConfig, is_original
from minimax_numpy.extras import optional
from minimax_numpy.model import ModelOutput
from torch import Tensor, nn

from . import model as twins
from . import ops
from .cache import Cache
from .model import DTYPES, Pretrained, check_device, load_weights
from .ops.attention import check_implementation
from .streaming import TYPES

transformers = optional("transformers", "hf")
outputs = optional("transformers.modeling_outputs", "hf")

REACH = 64
"""How many columns a crop goes back, at most, without running a longer call again."""
SHOWN = ("output_hidden_states", "output_router_logits")
BALANCED = ("auto", "balanced", "balanced_low_0", "sequential")
FROM_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
OF_NO_CONCERN = {  # what the Auto classes add, and what asks for what is done anyway
    *("_from_auto", "adapter_kwargs", "trust_remote_code", "low_cpu_mem_usage", "use_safetensors", "weights_only"),
}

Columns = dict[str, Tensor]
"""What a call says of its tokens, [B, T, …] each: ids or embeddings, mask, positions."""


def register() -> None:
    """Let transformers' Auto classes give our twin for model_type ``minimax``; more than once is once."""
    for auto, model in REGISTERED.items():
        getattr(transformers, auto).register(transformers.MiniMaxConfig, model, exist_ok=True)


def unregister() -> None:
    """Let them give transformers' own MiniMax again."""
    for auto in REGISTERED:
        getattr(transformers, auto)._model_mapping._extra_content.pop(transformers.MiniMaxConfig, None)


class Call(NamedTuple):
    """One call that a crop may have to take back: how much had been run before it, the cache then, and its tokens."""

    start: int
    memory: BaseCache
    columns: Columns


class MiniMaxCache(transformers.Cache):
    """``past_key_values``: our cache, and how many columns it has seen, padding included.

    A token cannot be taken out of a state again. So while the past is recorded (``generate`` asks for it where it
    guesses) each call leaves a fork of the cache from before it. `crop` goes back to the last fork that is early
    enough; the tokens between are kept, and the next call runs them first.
    """

    def __init__(self):
        super().__init__(layers=[])
        self.memory: BaseCache | None = None
        self.ran = 0  # columns that the memory has seen
        self.kept: Columns = {}  # columns that it has yet to see again
        self.calls: list[Call] | None = None  # None: not recorded

    def run(self, twin: Pretrained, columns: Columns, asked: dict[str, Any]) -> ModelOutput:
        """Call the twin on these columns and remember them.

        Of a long call whose beginning nobody asks about, the end is a call of its own: a crop then goes back to there.
        """
        x = next(iter(columns.values()))
        if self.ran == 0:
            self.memory = Cache(twin.config, len(x), x.device)
        unasked, settled = [self.kept], width(columns) - max(REACH, asked.get("logits_to_keep") or width(columns))
        if self.calls is not None and settled > 0 and not any(asked[name] for name in SHOWN):
            unasked, columns = [*unasked, part(columns, 0, settled)], part(columns, settled)
        for early in filter(None, unasked):
            self._call(getattr(twin, "model", twin), early)
            self.kept = {}
        return self._call(twin, columns, **asked)

    def _call(self, model: nn.Module, columns: Columns, **asked) -> ModelOutput:
        before = None if self.calls is None or self.memory is None else self.memory.fork()
        out = model(**columns, cache=self.memory, **asked)
        if before is not None:
            recent = [call for call in self.calls or () if call.start + width(call.columns) > self.ran - REACH]
            self.calls = [*recent, Call(self.ran, before, columns)]
        self.ran += width(columns)
        return out

    def activate_past_recording(self) -> None:
        """Keep what `crop` needs, from the next call on."""
        self.calls = self.calls or []

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns; their number is given as transformers gives it, below zero.

        Raises ValueError where the past was not recorded, or not that far back.
        """
        length = self.get_seq_length() + tokens_to_remove
        if tokens_to_remove > 0 or length < 0:
            raise ValueError(
                f"crop takes −{self.get_seq_length()} … 0 here, the columns to forget; not {tokens_to_remove}."
            )
        if self.calls is None:
            raise ValueError("This cache kept no past to go back to; call activate_past_recording() before the calls.")
        if length >= self.ran:
            self.kept = part(self.kept, 0, length - self.ran)
        else:
            call = next((call for call in reversed(self.calls) if call.start <= length), None)
            if call is None:
                raise ValueError(f"This cache kept the past of its last calls only, which does not reach to {length}.")
            self.memory, self.ran, self.kept = call.memory, call.start, part(call.columns, 0, length - call.start)
        self.calls = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, padding included."""
        return self.ran + width(self.kept)

    def reorder_cache(self, beam_idx: Int[Tensor, "rows"]) -> None:
        """Take these rows, in this order; a crop goes back no further than here."""
        if self.memory is not None:
            self.memory.reorder(beam_idx.cpu().numpy())
        self.kept = {name: x[beam_idx.to(x.device)] for name, x in self.kept.items()}
        self.calls = None if self.calls is None else []

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.reorder_cache(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.memory, self.ran, self.kept = None, 0, {}
        self.calls = None if self.calls is None else []

    @property
    def batch_size(self) -> int:
        """Rows; −1 before the first call."""
        return -1 if self.memory is None else len(self.memory.lengths)

    @property
    def is_initialized(self) -> bool:
        """Whether anything is remembered."""
        return self.memory is not None

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """−1: there is none."""
        return -1

    def __len__(self) -> int:
        return 0 if self.memory is None else len(self.memory.layers)

    def __deepcopy__(self, memo: dict) -> "MiniMaxCache":
        other = MiniMaxCache()
        other.memory = None if self.memory is None else self.memory.fork()
        other.ran, other.kept, other.calls = self.ran, dict(self.kept), None if self.calls is None else []
        return other


def width(columns: Columns) -> int:
    """How many columns there are."""
    return next(iter(columns.values())).shape[1] if columns else 0


def part(columns: Columns, start: int, stop: int | None = None) -> Columns:
    """Some of the columns; none of them is nothing."""
    some = {name: x[:, start:stop] for name, x in columns.items()}
    return some if width(some) else {}


class Bridge(transformers.PreTrainedModel):
    """What the five classes share: transformers' outside, and a twin that has the same modules."""

    config_class = transformers.MiniMaxConfig
    base_model_prefix = "model"
    twin_class: type[Pretrained]
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = True
    accepts_loss_kwargs = False  # a Trainer averages over its steps itself

    def __init__(self, config, twin: Pretrained | None = None):
        attention = config._attn_implementation or "sdpa"
        check_implementation(attention)
        config._experts_implementation = "eager"  # the twin has its own, whatever this says
        super().__init__(config)
        if twin is None:
            empty = torch.get_default_device().type == "meta"  # somebody else fills it
            seed = None if empty else int(torch.randint(2**31, ()))
            dtype = torch.get_default_dtype()
            twin = self.twin_class(our_config(config), seed, dtype, attn_implementation=attention)
        self.__dict__["twin"] = twin  # not a module below this one:
        self._modules = twin._modules  # its modules are this one's
        self.post_init()

    def init_weights(self) -> None:
        """Nothing to do: the weights are the twin's."""

    def _ask(
        self,
        asked: dict[str, Any],
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values: MiniMaxCache | None = None,
        inputs_embeds=None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q=None,
        cu_seq_lens_k=None,
        max_length_q=None,
        max_length_k=None,
    ) -> dict[str, Any]:
        """Call the twin as transformers calls a model, and give what it said under transformers' names."""
        if output_attentions:
            raise ValueError("output_attentions is not offered: a lightning layer never has the weights of attention.")
        if past_key_values is not None and not isinstance(past_key_values, MiniMaxCache):
            kind = type(past_key_values).__name__
            raise TypeError(f"past_key_values is a {kind}; this model goes on from the MiniMaxCache that it returned.")
        x = input_ids if inputs_embeds is None else inputs_embeds
        if x is None or (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, one of the two.")
        B, T = x.shape[:2]
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        columns = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": this_calls(attention_mask, T, seen),
            "position_ids": None if position_ids is None else position_ids.expand(B, -1),
        }
        columns = {name: x for name, x in columns.items() if x is not None}
        asked = asked | {
            "output_hidden_states": given(output_hidden_states, self.config.output_hidden_states),
            "output_router_logits": given(output_router_logits, self.config.output_router_logits),
        }
        ends = cu_seq_lens_q
        if ends is None and attention_mask is None and past_key_values is None:
            ends = documents(columns.get("position_ids"))
        if ends is not None:
            out = self.twin(**columns, cu_seqlens=ends, **asked)
        elif past_key_values is not None or given(use_cache, self.config.use_cache and not self.training):
            past_key_values = MiniMaxCache() if past_key_values is None else past_key_values
            out = past_key_values.run(self.twin, columns, asked)
        else:
            out = self.twin(**columns, **asked)
        return {
            "logits": out.logits,
            "last_hidden_state": out.last_hidden_state,
            "loss": out.loss,
            "aux_loss": out.aux_loss,
            "past_key_values": past_key_values,
            # transformers leaves out the stream after the last layer, and gives its norm in its place
            "hidden_states": out.hidden_states and (*out.hidden_states[:-2], out.hidden_states[-1]),
            "router_logits": out.router_logits and tuple(x.flatten(0, 1) for x in out.router_logits),
        }

    def _tell(self, kind: Any, said: dict[str, Any], return_dict: bool | None):
        """What was said, as transformers' output of that kind, or as the tuple of it."""
        out = kind(**{name: x for name, x in said.items() if name in kind.__dataclass_fields__})
        return out if given(return_dict, self.config.return_dict) else out.to_tuple()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config=None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: dict | str | int | torch.device | None = None,
        max_memory: dict | None = None,
        offload_folder: str | os.PathLike | None = None,
        attn_implementation: str | None = None,
        quantization_config=None,
        output_loading_info: bool = False,
        subfolder: str = "",
        **others,
    ) -> Self | tuple[Self, dict]:
        """Load a folder, or a model of the hub, through our own loader; dtype None or "auto" keeps every stored type.

        Raises FileNotFoundError or ValueError, naming the tensor or file, where the folder does not hold this model.
        """
        hub = {name: others.pop(name) for name in FROM_HUB if name in others}
        folder = local_folder(pretrained_model_name_or_path, hub) / subfolder
        others = {name: x for name, x in others.items() if name not in OF_NO_CONCERN}
        if config is None:
            config, others = read_config(folder, others)
        config = copy.deepcopy(config)
        if others:
            raise TypeError(f"from_pretrained does not know {', '.join(map(repr, others))}.")
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        quantization, computed_in = as_quantization(quantization_config)
        dtype = as_dtype(torch_dtype if dtype is None else dtype) or computed_in

        device_map = as_device_map(device_map)
        if isinstance(device_map, str):
            device_map = spread(cls, config, folder, dtype, quantization, device_map, max_memory)
        places = set(device_map.values())
        alone = torch.device(places.pop()) if len(places) == 1 and "disk" not in places else None
        model = cls(config, load(cls.twin_class, config, folder, dtype, alone, quantization)).eval()
        if alone is None:
            accelerate = optional("accelerate", "hf")
            accelerate.dispatch_model(model, device_map, offload_dir=offload_folder, skip_keys=["past_key_values"])
        model.hf_device_map, config.dtype = device_map, model.dtype
        if cls.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        told = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")  # all empty: anything else raises
        return (model, {name: set() for name in told}) if output_loading_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, state_dict=None, max_shard_size="5GB"
    ) -> None:
        """Write the twin's folder, and beside it what transformers keeps: names of labels, how to generate."""
        if not is_main_process:
            return
        self.twin.save_pretrained(save_directory, transformers.utils.hub.convert_file_size_to_int(max_shard_size))
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(save_directory)
        if self.can_generate():
            self.generation_config.save_pretrained(save_directory)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Attend in that way from the next call on."""
        check_implementation(attn_implementation)
        for module in self.modules():
            if hasattr(module, "attn_implementation"):
                module.attn_implementation = attn_implementation
        self.config._attn_implementation_internal = attn_implementation

    def resize_token_embeddings(self, *args, **kwargs):
        """Not offered: raises NotImplementedError."""
        raise NotImplementedError("The vocabulary of this model is its checkpoint's; it cannot be resized.")


class MiniMaxModel(Bridge):
    """transformers' MiniMaxModel, with our twin inside."""

    twin_class = twins.MiniMaxModel

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, *, return_dict=None, **inputs):
        """transformers' call; MoeModelOutputWithPast."""
        said = self._ask({}, input_ids, attention_mask, position_ids, **inputs)
        return self._tell(outputs.MoeModelOutputWithPast, said, return_dict)


class MiniMaxForCausalLM(Bridge, transformers.GenerationMixin):
    """transformers' MiniMaxForCausalLM, with our twin inside."""

    twin_class = twins.MiniMaxForCausalLM
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        logits_to_keep: int | Int[Tensor, "n"] = 0,
        *,
        return_dict=None,
        **inputs,
    ):
        """transformers' call; MoeCausalLMOutputWithPast."""
        named = isinstance(logits_to_keep, Tensor)
        asked = {"labels": labels, "logits_to_keep": 0 if named else logits_to_keep}
        said = self._ask(asked, input_ids, attention_mask, position_ids, **inputs)
        if named:
            said["logits"] = said["logits"][:, logits_to_keep]
        return self._tell(outputs.MoeCausalLMOutputWithPast, said, return_dict)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        is_first_iteration=False,
        position_ids=None,
        **kwargs,  # of this name: it is how transformers knows that forward's arguments pass through here
    ):
        """transformers' own, which in assisted decoding forgets that a cache given has seen the beginning."""
        seen, T = 0 if past_key_values is None else past_key_values.get_seq_length(), input_ids.shape[1]
        from_start = position_ids is not None and position_ids.shape[1] == T and bool((position_ids[:, 0] == 0).all())
        if next_sequence_length is None and 0 < seen < T and from_start:
            next_sequence_length = T - seen
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length,
            past_key_values,
            attention_mask,
            inputs_embeds,
            is_first_iteration,
            position_ids=position_ids,
            **kwargs,
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *others) -> None:
        """A cache of our kind, where ``generate`` would make one of its own."""
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(f"cache_implementation is {kind!r}; this model has a cache of its own, so leave it out.")
        cache = model_kwargs.get("past_key_values")
        if cache is None and generation_config.use_cache:
            cache = model_kwargs["past_key_values"] = MiniMaxCache()
            if generation_config.is_assistant:
                cache.activate_past_recording()


class MiniMaxForSequenceClassification(Bridge):
    """transformers' MiniMaxForSequenceClassification, with our twin inside."""

    twin_class = twins.MiniMaxForSequenceClassification

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, labels=None, *, return_dict=None, **inputs
    ):
        """transformers' call; SequenceClassifierOutputWithPast, one row a document where they are packed."""
        said = self._ask({"labels": labels}, input_ids, attention_mask, position_ids, **inputs)
        return self._tell(outputs.SequenceClassifierOutputWithPast, said, return_dict)


class MiniMaxForTokenClassification(Bridge):
    """transformers' MiniMaxForTokenClassification, with our twin inside."""

    twin_class = twins.MiniMaxForTokenClassification

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, labels=None, *, return_dict=None, **inputs
    ):
        """transformers' call; TokenClassifierOutput."""
        said = self._ask({"labels": labels}, input_ids, attention_mask, position_ids, **inputs)
        return self._tell(outputs.TokenClassifierOutput, said, return_dict)


class MiniMaxForQuestionAnswering(Bridge):
    """transformers' MiniMaxForQuestionAnswering, with our twin inside."""

    twin_class = twins.MiniMaxForQuestionAnswering

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        start_positions=None,
        end_positions=None,
        *,
        return_dict=None,
        **inputs,
    ):
        """transformers' call; QuestionAnsweringModelOutput."""
        labels = None
        if start_positions is not None and end_positions is not None:
            T = (inputs["inputs_embeds"] if input_ids is None else input_ids).shape[1]
            labels = torch.stack([start_positions.reshape(-1), end_positions.reshape(-1)], dim=1)  # (B, 2)
            labels = torch.where(labels < T, labels, ops.losses.IGNORED)  # an end that was cut off counts for nothing
        said = self._ask({"labels": labels}, input_ids, attention_mask, position_ids, **inputs)
        said["start_logits"], said["end_logits"] = said.pop("logits").unbind(dim=-1)
        return self._tell(outputs.QuestionAnsweringModelOutput, said, return_dict)


REGISTERED = {
    "AutoModel": MiniMaxModel,
    "AutoModelForCausalLM": MiniMaxForCausalLM,
    "AutoModelForSequenceClassification": MiniMaxForSequenceClassification,
    "AutoModelForTokenClassification": MiniMaxForTokenClassification,
    "AutoModelForQuestionAnswering": MiniMaxForQuestionAnswering,
}


def our_config(config) -> MiniMaxConfig:
    """What a configuration of transformers says to us, its unknown keys included."""
    return MiniMaxConfig.from_dict(config.to_dict())


def given(value: bool | None, default: bool) -> bool:
    """What was asked for, or what the configuration says."""
    return default if value is None else value


def this_calls(mask: Tensor | None, T: int, seen: int) -> Tensor | None:
    """The columns of a mask that are this call's: transformers' mask speaks of all that the cache has seen, too."""
    if mask is not None and (mask.ndim != 2 or mask.shape[1] not in (T, seen + T)):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; it should be [B, {seen + T}], the past included."
        )
    return None if mask is None else mask[:, -T:]


def documents(position_ids: Int[Tensor, "B T"] | None) -> Int[Tensor, "N_plus_1"] | None:
    """Where documents begin and end in a row whose positions begin again; None where they do not."""
    if position_ids is None or not bool((position_ids.diff(dim=1) != 1).any()):
        return None
    if len(position_ids) > 1:
        raise ValueError("Positions that begin again mark packed documents, and those come in one row: [1, T].")
    starts = (position_ids[0].diff() != 1).nonzero()[:, 0] + 1
    return nn.functional.pad(torch.cat([starts, starts.new_tensor([position_ids.shape[1]])]), (1, 0))


def local_folder(path: str | os.PathLike, hub: dict[str, Any]) -> Path:
    """The folder itself, or where the hub's files of that name lie once they are here."""
    if Path(path).is_dir():
        return Path(path)
    patterns = ["*.json", "*.safetensors"]
    return Path(optional("huggingface_hub", "hf").snapshot_download(str(path), allow_patterns=patterns, **hub))


def read_config(folder: Path, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """transformers' configuration of a folder in either spelling, and those changes that it does not know."""
    ours = MiniMaxConfig.from_pretrained(folder)  # says in a sentence what is wrong with it
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values = ours.to_dict() if is_original(values) else values
    return transformers.MiniMaxConfig.from_dict(values, return_unused_kwargs=True, **changes)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A type of torch by itself or by name; None and "auto" are None, every stored type."""
    if dtype is None or dtype == "auto":
        return None
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype is {dtype!r}; it is 'auto' or one of {', '.join(DTYPES)}.")
    return found


def as_quantization(config) -> tuple[str | None, torch.dtype | None]:
    """Our name for what a BitsAndBytesConfig asks for, and the type to compute in where it names one."""
    if config is None:
        return None, None
    if isinstance(config, dict):
        config = transformers.BitsAndBytesConfig.from_dict(config)
    if not isinstance(config, transformers.BitsAndBytesConfig) or not (config.load_in_4bit or config.load_in_8bit):
        told = config if isinstance(config, bool | str) else type(config).__name__
        asked = "BitsAndBytesConfig(load_in_4bit=True) or (load_in_8bit=True)"
        raise TypeError(f"quantization_config is {told!r}, which asks for no bits; give a {asked}.")
    left_out = set(config.llm_int8_skip_modules or ()) - {"lm_head"}
    if left_out or config.llm_int8_has_fp16_weight:
        raise ValueError(
            f"llm_int8_skip_modules is {config.llm_int8_skip_modules} and llm_int8_has_fp16_weight "
            f"{config.llm_int8_has_fp16_weight}; all matrices of attention and experts are quantised, and nothing else."
        )
    if config.load_in_8bit:
        return "int8", None
    if config.bnb_4bit_quant_type != "nf4":  # "fp4" is what load_in_4bit=True alone asks for
        warnings.warn("bnb_4bit_quant_type is 'fp4'; the 4 bits here are always NF4's.", stacklevel=2)
    wanted = config.bnb_4bit_compute_dtype
    return "nf4-double" if config.bnb_4bit_use_double_quant else "nf4", None if wanted == torch.float32 else wanted


def as_device_map(device_map) -> dict[str, Any] | str:
    """A dictionary of places, or the name of a way to find one; a single device is where everything goes."""
    if device_map in BALANCED or isinstance(device_map, dict):
        return device_map
    return {"": torch.get_default_device() if device_map is None else device_map}


def spread(model: type[Bridge], config, folder: Path, dtype, quantization, how: str, max_memory) -> dict[str, Any]:
    """Share the layers out over the devices there are, as accelerate does."""
    accelerate = optional("accelerate.utils", "hf")
    checkpoint = Checkpoint(folder)
    kept = dtype or TYPES[checkpoint.entry(min(checkpoint.names())).dtype]
    empty = model(config, model.twin_class(our_config(config), seed=None).to(kept))
    least = {None: kept, "int8": torch.int8}.get(quantization, accelerate.CustomDtype.INT4)
    shape = {"no_split_module_classes": model._no_split_modules, "dtype": least}
    if how != "sequential":
        max_memory = accelerate.get_balanced_memory(empty, max_memory, low_zero=how == "balanced_low_0", **shape)
    return accelerate.infer_auto_device_map(empty, max_memory, **shape)


def load(cls: type[Pretrained], config, folder: Path, dtype, device, quantization) -> Pretrained:
    """Our twin of a folder, built as ``config`` says, which may be more than the folder's own says."""
    ours, device = our_config(config), check_device(device)
    twin = cls(ours, seed=None, attn_implementation=config._attn_implementation or "sdpa")
    twin._take(load_weights(folder, ours, cls.head, dtype, quantization, None, device), None, device)
    return twin
