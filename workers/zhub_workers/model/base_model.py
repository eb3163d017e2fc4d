"""A frozen base model: loaded from a local directory, with its tokenizer, and nothing it can run on its own.

Remote code is never trusted and pickled weights are never opened, so a directory that somebody else wrote
can be loaded safely; what cannot be loaded that way is refused with a remedy.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, logging

from zhub.errors import InvalidRequestError, UnsupportedModelError
from zhub_workers.model.layers import linear_layers
from zhub_workers.model.weight_files import check_weight_files, device_memory_bytes

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
STANDARD_ROLES = {"developer": "system"}  # the newer word; most templates drop or refuse a role that they do not name
CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")

# What transformers raises for files that are missing, cut short, or say things that contradict each other.
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Batching:
    """Which ways of reading several rows at once leave each row as it is alone; ``try_batching`` finds out.

    ``together``: several rows of one length. ``padded``: rows of unequal length, padded on the left. ``selected``: rows
    leave the cache of a batch, or are copied within it. ``continued``: several tokens at once follow what is cached.
    """

    together: bool = True
    padded: bool = True
    selected: bool = True
    continued: bool = True


@dataclass(frozen=True)
class BaseModel:
    """A causal language model in eval mode without gradients, and what is needed to talk to it.

    ``context_length`` counts prompt and answer together; None when the architecture has no bound.
    ``forward_arguments`` are the names that the model's forward takes, because not all take position_ids.
    """

    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    eos_id: int
    pad_id: int
    context_length: int | None
    forward_arguments: frozenset[str]
    device: torch.device
    batching: Batching = Batching()


def load_base_model(
    path: Path, *, name: str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> BaseModel:
    """Load the model in ``path``, a directory as ``save_pretrained`` writes it.

    The weights' fingerprint depends on ``dtype``: load a base in one dtype everywhere. On the device ``meta`` the model
    has its layers and their shapes, and no weights.

    Args:
        name: what errors call it; the directory's name where that says it.

    Raises:
        UnsupportedModelError: says which file or property is missing, and what to do.
    """
    logging.disable_progress_bar()
    name = name or path.name
    _check_files(path, name)
    config = _load_config(path, name)
    _check_generation_config(path, name, config)
    is_meta = torch.device(device).type == "meta"
    if not is_meta:
        _check_memory(name, check_weight_files(path, name) * dtype.itemsize, torch.device(device))
    tokenizer = _load_tokenizer(path, name)
    loaded = _without_weights if is_meta else _load_weights
    model = loaded(path, name, config, dtype).to(device).eval().requires_grad_(False)
    arguments = frozenset(inspect.signature(model.forward).parameters)
    _check_model(name, model, tokenizer, arguments)
    stop_ids = _stop_ids(model, tokenizer)
    if not stop_ids:
        raise UnsupportedModelError(
            f"{name}: no end-of-sequence token. Set eos_token in tokenizer_config.json or generation_config.json."
        )
    eos_id = min(stop_ids) if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        eos_id=eos_id,
        # Padding is always masked, so any id will do where the tokenizer has none.
        pad_id=eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        context_length=_context_length(config),
        forward_arguments=arguments,
        device=torch.device(device),
    )


def model_of_config(path: Path, name: str | None = None) -> tuple[Any, torch.dtype]:
    """The model that a ``config.json`` describes, or the one in a directory, on the device ``meta``: no weights.

    Returns:
        The model as ``load_base_model`` would load it, and the dtype of its files as far as the config names it.

    Raises:
        UnsupportedModelError: see ``load_base_model``.
    """
    name = name or path.name
    config = _load_config(path, name)
    stored_as: torch.dtype = config.get_text_config().dtype or torch.float32
    return _without_weights(path, name, config, torch.float32), stored_as


def weights_fingerprint(model: Any) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, however the files were cut; tied weights once."""
    digest = hashlib.sha256()
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, tensor in sorted(model.state_dict().items()):
        memory = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and memory in seen:
            continue
        seen.add(memory)
        digest.update(tensor_header(name, tensor))
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_header(name: str, tensor: Tensor) -> bytes:
    """What goes before a tensor's bytes in the fingerprint of weights."""
    return f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode()


@dataclass(frozen=True)
class Prompts:
    """The tokenizer of a base model with its context: enough to know how long rows are. No weights."""

    tokenizer: Any
    context_length: int | None


def load_prompts(path: Path, name: str | None = None) -> Prompts:
    """Load the tokenizer and the context of the model in ``path``. Raises UnsupportedModelError."""
    name = name or path.name
    return Prompts(_load_tokenizer(path, name), _context_length(_load_config(path, name)))


def tensor_bytes(tensor: Tensor) -> Any:
    """The tensor's values in row-major order, as stored, as a buffer; works for bfloat16, which numpy lacks."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def render_prompt(
    base: BaseModel | Prompts, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Return the token ids of a conversation, up to where the assistant's answer begins.

    Training, evaluation and serving all come through here, and the text is tokenised once. ``tools`` are those that
    the answer may call; a message's ``tool_calls`` and ``tool_call_id`` go to the template with it.

    Raises:
        InvalidRequestError: the chat template refuses these messages.
    """
    template = str(base.tokenizer.chat_template)
    known = []
    for message in messages:
        role = message["role"] if message["role"] in template else STANDARD_ROLES.get(message["role"], message["role"])
        more = {name: message[name] for name in ("tool_calls", "tool_call_id") if message.get(name)}
        known.append({"role": role, "content": message["content"], **more})
    try:
        ids = base.tokenizer.apply_chat_template(
            known, tools=list(tools) or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as exc:
        raise InvalidRequestError(
            f"The base model's chat template refuses these messages: {exc}", param="messages"
        ) from exc
    return [int(token) for token in ids]


def render_text(base: BaseModel | Prompts, text: str) -> list[int]:
    """Return the token ids of a text to go on from, with what the tokenizer puts before every text.

    Raises:
        InvalidRequestError: it comes to no token.
    """
    ids = [int(token) for token in base.tokenizer(text)["input_ids"]]
    if not ids:
        raise InvalidRequestError("The prompt is empty: give at least one character to go on from.", param="prompt")
    return ids


def render_target(base: BaseModel, target: str) -> list[int]:
    """Return the token ids of an answer to be learnt, with the end-of-sequence token that closes it."""
    return [*base.tokenizer(target, add_special_tokens=False)["input_ids"], base.eos_id]


def _check_files(path: Path, name: str) -> None:
    if not path.is_dir():
        raise UnsupportedModelError(f"{path}: not a directory. Give the directory that holds the model's config.json.")
    if not (path / "config.json").is_file():
        raise UnsupportedModelError(f"{name}: no config.json. Give a directory as save_pretrained() writes it.")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
    if pickled:
        raise UnsupportedModelError(
            f"{name}: its weights are pickled ({pickled[0]}), and opening a pickle runs whatever it holds. "
            "Convert it where you trust it: load it there and call save_pretrained(), which writes safetensors."
        )
    raise UnsupportedModelError(f"{name}: no weights: expected *.safetensors, found none.")


def _check_memory(name: str, needed: int, device: torch.device) -> None:
    """Refuse a model that this worker cannot hold, before it is read."""
    total = device_memory_bytes(device)
    if needed > total:
        raise UnsupportedModelError(
            f"{name}: its weights take {needed / 1e9:,.1f} GB of memory, and the worker has {total / 1e9:,.1f} GB. "
            "Start workers with more memory (--cluster names those of an agent), or add a smaller model."
        )


def _load_config(path: Path, name: str) -> Any:
    try:
        json.loads((path if path.is_file() else path / "config.json").read_text("utf-8"))
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except LOAD_ERRORS as exc:
        raise UnsupportedModelError(f"{name}: cannot read config.json: {exc}") from exc
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"{name}: its weights are quantised. Add the unquantised checkpoint: singular values of rounded "
            "weights are not those of the model."
        )
    architectures = config.architectures or []
    causal = any(of.endswith(CAUSAL_SUFFIXES) for of in architectures)
    if config.is_encoder_decoder or (architectures and not causal):
        raise UnsupportedModelError(
            f"{name}: {', '.join(architectures) or config.model_type} is not a causal language model. "
            "zhub adapts decoder-only text models (…ForCausalLM)."
        )
    return config


def _check_generation_config(path: Path, name: str, config: Any) -> None:
    """Refuse a file that transformers would pass over in silence, and stop tokens that the model cannot give."""
    file = path / "generation_config.json"
    if not file.is_file():
        return
    try:
        declared = json.loads(file.read_text("utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as exc:
        raise UnsupportedModelError(
            f"{name}: generation_config.json is not a JSON object: {exc}. Mend it, or leave it out: then the "
            "tokenizer's eos_token alone ends an answer."
        ) from exc
    size = config.get_text_config().vocab_size
    for token in declared if isinstance(declared, list) else [declared]:
        if token is not None and not (isinstance(token, int) and 0 <= token < size):
            raise UnsupportedModelError(
                f"{name}: generation_config.json has the eos_token_id {token!r}, and the model's tokens are the "
                f"numbers 0 to {size - 1}. Without a token that it can give, its answers never end: correct it there."
            )


def _load_tokenizer(path: Path, name: str) -> Any:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
    if not any((path / file).is_file() for file in files):
        raise UnsupportedModelError(f"{name}: no tokenizer: expected tokenizer.json beside config.json.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except LOAD_ERRORS as exc:
        if not (path / "tokenizer.json").is_file():
            # transformers would have a package installed here, on the worker, which the user cannot do.
            raise UnsupportedModelError(
                f"{name}: no tokenizer.json, and what there is instead cannot be read here. Where the packages "
                "sentencepiece and tiktoken are installed, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) "
                "writes one. Add the model again with it."
            ) from exc
        raise UnsupportedModelError(f"{name}: cannot load its tokenizer: {exc}") from exc
    if not tokenizer.chat_template:
        raise UnsupportedModelError(
            f"{name}: no chat template, so messages cannot become a prompt. Add chat_template.jinja to the "
            "directory, and add the base model again."
        )
    return tokenizer


def _load_weights(path: Path, name: str, config: Any, dtype: torch.dtype) -> Any:
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except LOAD_ERRORS as exc:
        raise UnsupportedModelError(f"{name}: cannot load it as a causal language model: {exc}") from exc
    if mismatched := sorted(loading["mismatched_keys"]):
        tensor, stored, expected = mismatched[0]
        raise UnsupportedModelError(
            f"{name}: {len(mismatched)} weights are of other sizes than config.json says, first '{tensor}': "
            f"{tuple(stored)}, expected {tuple(expected)}. Take config.json and weights from one checkpoint."
        )
    # A checkpoint of another kind (a classifier, an encoder) loads with its missing parts drawn at random.
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedModelError(
            f"{name}: the weights lack {len(missing)} tensors of {type(model).__name__}, first '{missing[0]}'. "
            "Add the base model from a complete checkpoint of a causal language model."
        )
    return model


def _without_weights(path: Path, name: str, config: Any, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if (path / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    except LOAD_ERRORS as exc:
        raise UnsupportedModelError(f"{name}: cannot load it as a causal language model: {exc}") from exc
    return model


def _check_model(name: str, model: Any, tokenizer: Any, forward_arguments: frozenset[str]) -> None:
    """Refuse a model that zhub cannot generate with, or cannot adapt."""
    if "past_key_values" not in forward_arguments:
        raise UnsupportedModelError(
            f"{name}: {type(model).__name__} has no key-value cache, which answers are read on. Add a model "
            "with attention layers, which hybrids have too."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UnsupportedModelError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model {rows}: they do not fit together. Add "
            "the tokenizer that the model was trained with, or a model with embeddings for all of its tokens."
        )
    if not linear_layers(model):
        raise UnsupportedModelError(
            f"{name}: {type(model).__name__} has no linear layer that zhub can adapt (torch.nn.Linear or Conv1D)."
        )


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = declared if isinstance(declared, list) else [declared]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)


def _context_length(config: Any) -> int | None:
    text_config = config.get_text_config()
    for name in CONTEXT_FIELDS:
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
