"""The ``adapter_config.json`` of a LoRA that PEFT wrote: what of it is honoured, ignored, or refused by its name.

A setting is refused where leaving it out would give other answers than PEFT gives, and so is one that this release does
not know, unless it is off. Read of peft 0.21 (``peft/tuners/lora/config.py``).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zhub.errors import InvalidRequestError, UnsupportedAdapterError
from zhub.pydantic_errors import refusal
from zhub.registry.names import HUB_ID, REVISION
from zhub.specs import BaseModelSource, LoraSettings
from zhub.suggestions import did_you_mean

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_RANK = 512
MAX_PATTERNS = 4096

# These are about the training, about where PEFT puts matrices (which the names in the file say), or about layouts.
IGNORED = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
)  # fmt: skip
READ = ("alpha_pattern", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_dora", "use_rslora")

PLAIN_LORA = "an expert changes matrices of the base, and nothing else"
REFUSED: dict[str, str] = {
    "alora_invocation_tokens": "its matrices act only after these tokens (aLoRA)",
    "arrow_config": "it routes between adapters by token",
    "bias": f"it trains biases of the base, and {PLAIN_LORA}",
    "kasa_config": "it cuts off singular values of the base (KaSA)",
    "layer_replication": "it repeats layers of the base",
    "lora_bias": f"it adds a bias to its matrices, and {PLAIN_LORA}",
    "megatron_config": "it was made on layers of Megatron",
    "modules_to_save": f"it replaces whole modules of the base, and {PLAIN_LORA}",
    "monteclora_config": "it samples its matrices",
    "target_parameters": "it changes parameters that are no linear layers",
    "trainable_token_indices": f"it trains embeddings of tokens, and {PLAIN_LORA}",
    "use_bdlora": "its matrices are block-diagonal",
    "use_qalora": "it pools what its matrices are given",
    "velora_config": "it is a variant of LoRA",
}
OFF: tuple[Any, ...] = (None, False, "", "none", [], {})
SAME_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""What ``init_lora_weights`` may be: those that begin beside the weights of the base, and leave these as they are."""


class _Config(BaseModel):
    """Strict: "8" and true are no numbers."""

    model_config = ConfigDict(extra="ignore", strict=True)
    r: Annotated[int, Field(ge=1, le=MAX_RANK)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Annotated[dict[str, Annotated[int, Field(ge=1, le=MAX_RANK)]], Field(max_length=MAX_PATTERNS)] = {}
    alpha_pattern: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]], Field(max_length=MAX_PATTERNS)
    ] = {}


def read_config(config: Mapping[str, Any]) -> LoraSettings:
    """What decides how the adapter answers.

    Raises:
        UnsupportedAdapterError: it is no LoRA, or one that would answer otherwise here.
        InvalidRequestError: a setting has a value that none can have.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapterError(
            f"'peft_type' is {kind!r}: LoRA and DoRA alone are imported. Where PEFT can turn the adapter into a LoRA "
            "(`peft.save_as_lora`), import that.",
            param="peft_type",
        )
    for name, value in config.items():
        if name in REFUSED and value not in OFF:
            raise _refused(name, REFUSED[name])
        if name not in (*READ, *IGNORED, *REFUSED) and value not in OFF:
            near = did_you_mean(name, (*READ, *REFUSED))
            raise _refused(
                name, f"this release does not know it, and it may change the answers.{near}".removesuffix(".")
            )
    _check_start(config.get("init_lora_weights", True))
    given = {name: value for name, value in config.items() if value is not None}
    try:
        read = _Config.model_validate(given)
    except ValidationError as exc:
        raise refusal(exc.errors(), subject=CONFIG_FILE) from exc
    return LoraSettings(
        rank=read.r,
        alpha=read.lora_alpha,
        ranks=read.rank_pattern,
        alphas=read.alpha_pattern,
        rank_stabilised=read.use_rslora,
        dora=read.use_dora,
    )


def scaling(settings: LoraSettings, rank: int, alpha: float) -> float:
    """What the product ``B A`` of a matrix is multiplied by."""
    return alpha / (math.sqrt(rank) if settings.rank_stabilised else rank)


def check_base(config: Mapping[str, Any], base: BaseModelSource) -> str:
    """What is known of whether the adapter was made on this base: PEFT notes a name of it, and no digest.

    Raises:
        InvalidRequestError: it was made on another model of the hub, or at another commit.
    """
    claimed, revision = (str(config.get(key) or "") for key in ("base_model_name_or_path", "revision"))
    unknown = (
        "PEFT notes a name, and no digest of the weights: names and shapes of the matrices were compared with this "
        "base's; whether the weights are the same is not known"
    )
    if not claimed:
        return f"The adapter does not say which base it was made on. {unknown}."
    if not (base.hub_id and HUB_ID.fullmatch(claimed)):
        return f"The adapter says that it was made on '{claimed}'. {unknown}."
    if claimed.lower() != base.hub_id.lower():
        raise InvalidRequestError(
            f"The adapter says that it was made on '{claimed}', and the base '{base.name}' is '{base.hub_id}'. Give "
            f"the base that it was made on. If the weights are the same, write '{base.hub_id}' as "
            f"'base_model_name_or_path' into {CONFIG_FILE}.",
            param="base_model_name_or_path",
        )
    if REVISION.fullmatch(revision) and revision != base.hub_revision:
        raise InvalidRequestError(
            f"The adapter was made on '{claimed}' at commit {revision}, and the base '{base.name}' is commit "
            f"{base.hub_revision}. Give a base of that commit. If the weights are the same, remove 'revision' from "
            f"{CONFIG_FILE}.",
            param="revision",
        )
    if revision == base.hub_revision:
        return f"The adapter says that it was made on '{claimed}' at the commit that the base '{base.name}' is."
    return f"The adapter says that it was made on '{claimed}', as the base '{base.name}' is, and not at which commit."


def _check_start(start: Any) -> None:
    if any(start is same or (isinstance(start, str) and start == same) for same in SAME_BASE):
        return
    raise UnsupportedAdapterError(
        f"'init_lora_weights' is {start!r}: PEFT has then changed the weights of the base before training, and the "
        "adapter belongs to what was left of them. Save it as a plain LoRA: "
        "`save_pretrained(..., path_initial_model_for_weight_conversion=...)`.",
        param="init_lora_weights",
    )


def _refused(name: str, reason: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"'{name}' of {CONFIG_FILE} is not supported: {reason}. Train the adapter without it.", param=name
    )
