"""A frozen base model: loaded from a local directory, with its tokenizer, and nothing it can run on its own.

Remote code is never trusted and pickled weights are never opened, so a directory that somebody else wrote
can be loaded safely; what cannot be loaded that way is refused with a remedy.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME, logging

from zhub.errors import InvalidRequestError, UnsupportedModelError

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
STANDARD_ROLES = {"developer": "system"}  # the newer word; most templates drop or refuse a role that they do not name
CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")

# What transformers raises for files that are missing, cut short, or say things that contradict each other.
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)


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


def load_base_model(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> BaseModel:
    """Load the model in ``path``, a directory as ``save_pretrained`` writes it.

    The weights' fingerprint depends on ``dtype``: load a base in one dtype everywhere. On the device ``meta`` the model
    has its layers and their shapes, and no weights.

    Raises:
        UnsupportedModelError: says which file or property is missing, and what to do.
    """
    logging.disable_progress_bar()
    _check_files(path)
    config = _load_config(path)
    tokenizer = _load_tokenizer(path)
    loaded = _without_weights if torch.device(device).type == "meta" else _load_weights
    model = loaded(path, config, dtype).to(device).eval().requires_grad_(False)
    arguments = frozenset(inspect.signature(model.forward).parameters)
    _check_model(path, model, tokenizer, arguments)
    stop_ids = _stop_ids(model, tokenizer)
    if not stop_ids:
        raise UnsupportedModelError(
            f"{path.name}: no end-of-sequence token. Set eos_token in tokenizer_config.json or generation_config.json."
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


def model_of_config(path: Path) -> tuple[Any, torch.dtype]:
    """The model that a ``config.json`` describes, or the one in a directory, on the device ``meta``: no weights.

    Returns:
        The model as ``load_base_model`` would load it, and the dtype of its files as far as the config names it.

    Raises:
        UnsupportedModelError: see ``load_base_model``.
    """
    config = _load_config(path)
    stored_as: torch.dtype = config.get_text_config().dtype or torch.float32
    return _without_weights(path, config, torch.float32), stored_as


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return the layers that an expert adapts, by name, sorted: every nn.Linear and Conv1D but the output embedding.

    Fused projections (GPT-2's ``c_attn``) count as one matrix. Embeddings, tied to the output or not, stay as they are.
    """
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in sorted(model.named_modules())
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        # A layer that shares its weight with the output embedding would change it from below.
        and not (output is not None and module.weight is output.weight)
    }


def layer_weight(module: nn.Module) -> Tensor:
    """Return a layer's weight as ``(m=out, n=in)``."""
    return oriented(module, module.weight)  # type: ignore[arg-type]


def oriented(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight of this layer as ``(m=out, n=in)``; a Conv1D stores it the other way round, so it gives a view."""
    return weight.T if isinstance(module, Conv1D) else weight


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


def load_prompts(path: Path) -> Prompts:
    """Load the tokenizer and the context of the model in ``path``. Raises UnsupportedModelError."""
    return Prompts(_load_tokenizer(path), _context_length(_load_config(path)))


def tensor_bytes(tensor: Tensor) -> Any:
    """The tensor's values in row-major order, as stored, as a buffer; works for bfloat16, which numpy lacks."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def render_prompt(base: BaseModel | Prompts, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the token ids of a conversation, up to where the assistant's answer begins.

    Training, evaluation and serving all come through here, and the text is tokenised once.

    Raises:
        InvalidRequestError: the chat template refuses these messages.
    """
    template = str(base.tokenizer.chat_template)
    known = [
        {"role": role if role in template else STANDARD_ROLES.get(role, role), "content": message["content"]}
        for message in messages
        for role in [message["role"]]
    ]
    try:
        ids = base.tokenizer.apply_chat_template(known, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as exc:
        raise InvalidRequestError(
            f"The base model's chat template refuses these messages: {exc}", param="messages"
        ) from exc
    return [int(token) for token in ids]


def render_target(base: BaseModel, target: str) -> list[int]:
    """Return the token ids of an answer to be learnt, with the end-of-sequence token that closes it."""
    return [*base.tokenizer(target, add_special_tokens=False)["input_ids"], base.eos_id]


def _check_files(path: Path) -> None:
    if not path.is_dir():
        raise UnsupportedModelError(f"{path}: not a directory. Give the directory that holds the model's config.json.")
    if not (path / "config.json").is_file():
        raise UnsupportedModelError(f"{path.name}: no config.json. Give a directory as save_pretrained() writes it.")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
    if pickled:
        raise UnsupportedModelError(
            f"{path.name}: its weights are pickled ({pickled[0]}), and opening a pickle runs whatever it holds. "
            "Convert it where you trust it: load it there and call save_pretrained(), which writes safetensors."
        )
    raise UnsupportedModelError(f"{path.name}: no weights: expected *.safetensors, found none.")


def _load_config(path: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except LOAD_ERRORS as exc:
        raise UnsupportedModelError(f"{path.name}: cannot read config.json: {exc}") from exc
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"{path.name}: its weights are quantised. Add the unquantised checkpoint: singular values of rounded "
            "weights are not those of the model."
        )
    architectures = config.architectures or []
    causal = any(name.endswith(CAUSAL_SUFFIXES) for name in architectures)
    if config.is_encoder_decoder or (architectures and not causal):
        raise UnsupportedModelError(
            f"{path.name}: {', '.join(architectures) or config.model_type} is not a causal language model. "
            "zhub adapts decoder-only text models (…ForCausalLM)."
        )
    return config


def _load_tokenizer(path: Path) -> Any:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
    if not any((path / name).is_file() for name in names):
        raise UnsupportedModelError(f"{path.name}: no tokenizer: expected tokenizer.json beside config.json.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except LOAD_ERRORS as exc:
        raise UnsupportedModelError(f"{path.name}: cannot load its tokenizer: {exc}") from exc
    if not tokenizer.chat_template:
        raise UnsupportedModelError(
            f"{path.name}: no chat template, so messages cannot become a prompt. Add chat_template.jinja to the "
            "directory, and add the base model again."
        )
    return tokenizer


def _load_weights(path: Path, config: Any, dtype: torch.dtype) -> Any:
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except LOAD_ERRORS as exc:
        raise UnsupportedModelError(f"{path.name}: cannot load it as a causal language model: {exc}") from exc
    # A checkpoint of another kind (a classifier, an encoder) loads with its missing parts drawn at random.
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedModelError(
            f"{path.name}: the weights lack {len(missing)} tensors of {type(model).__name__}, first '{missing[0]}'. "
            "Add the base model from a complete checkpoint of a causal language model."
        )
    return model


def _without_weights(path: Path, config: Any, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if (path / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    except LOAD_ERRORS as exc:
        raise UnsupportedModelError(f"{path.name}: cannot load it as a causal language model: {exc}") from exc
    return model


def _check_model(path: Path, model: Any, tokenizer: Any, forward_arguments: frozenset[str]) -> None:
    """Refuse a model that zhub cannot generate with, or cannot adapt."""
    if "past_key_values" not in forward_arguments:
        raise UnsupportedModelError(f"{path.name}: {type(model).__name__} has no key-value cache; zhub needs one.")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UnsupportedModelError(
            f"{path.name}: the tokenizer has {len(tokenizer)} tokens and the model {rows}: they do not fit together."
        )
    if not linear_layers(model):
        raise UnsupportedModelError(
            f"{path.name}: {type(model).__name__} has no linear layer that zhub can adapt (torch.nn.Linear or Conv1D)."
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
