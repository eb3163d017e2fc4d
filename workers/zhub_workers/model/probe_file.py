"""What an expert answers to a few fixed prompts, kept in a file, so that another machine can see whether it answers so.

Of each position of the base's greedy answers the file has the most probable tokens, with their log-probabilities.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zhub.errors import ArtifactError, UnsupportedAdapterError
from zhub.manifest import canonical_json
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.basis import replace_file
from zhub_workers.model.changes import Change
from zhub_workers.model.probe import Answered, answer_logits, base_answers
from zhub_workers.model.row_changes import following_rows

PROBE_FORMAT = "zhub-probe-1"
KEPT_TOKENS = 1024
# In nats. Float32 on other processors gives some 1e-4; an expert on another base is off by whole nats.
TOLERANCE = 0.02
MAX_PROMPTS, MAX_TOKENS = 64, 4096  # of a file that somebody else wrote


@torch.no_grad()
def write_probe(path: Path, adapted: AdaptedModel, change: Change) -> None:
    """Write what the expert answers."""
    tensors: dict[str, Tensor] = {}
    answers = list(base_answers(adapted.base))
    for index, answered in enumerate(answers):
        logprobs = _followed(adapted, change, answered)
        top = logprobs.topk(min(KEPT_TOKENS, logprobs.shape[1]))
        tensors[f"{index}.ids"] = torch.tensor([*answered.prompt, *answered.answer])
        tensors[f"{index}.tokens"] = top.indices.int()
        tensors[f"{index}.logprobs"] = top.values.float()
    prompts = [{"content": answered.content, "tokens": len(answered.prompt)} for answered in answers]
    description = {"format": PROBE_FORMAT, "prompts": prompts}
    replace_file(path, save(tensors, metadata={"zhub": canonical_json(description).decode()}))


@torch.no_grad()
def check_probe(path: Path, adapted: AdaptedModel, change: Change) -> float:
    """Return how far the expert's log-probabilities are here from those of the file, at most.

    Raises:
        ArtifactError: no such file.
        UnsupportedAdapterError: they are further off than rounding takes them.
    """
    furthest, where = 0.0, ""
    for answered, tokens, logprobs in _read(path):
        if (
            max(*answered.prompt, *answered.answer, int(tokens.max()))
            >= adapted.base.model.config.get_text_config().vocab_size
        ):
            raise UnsupportedAdapterError(
                f"{path.name} has tokens that the base has not: it was made on another one.", param="files"
            )
        here = _followed(adapted, change, answered).gather(1, tokens.long()).float()
        off = float((here - logprobs).abs().nan_to_num(torch.inf).max())
        if off > furthest:
            furthest, where = off, answered.content
    if furthest > TOLERANCE:
        raise UnsupportedAdapterError(
            f"After '{where}' the expert's log-probabilities are {furthest:.3g} nats from those in {path.name}, and "
            f"rounding takes them {TOLERANCE} at most: it does not answer here as it did where it was exported.",
            param="files",
        )
    return furthest


def _followed(adapted: AdaptedModel, change: Change, answered: Answered) -> Tensor:
    with following_rows(adapted, [change]) as assign:
        assign([0])
        return torch.log_softmax(answer_logits(adapted, answered), -1)


def _read(path: Path) -> list[tuple[Answered, Tensor, Tensor]]:
    """Each prompt with the tokens and log-probabilities that were kept of it; of a file that nobody vouches for."""
    try:
        raw = path.read_bytes()
        tensors = load(raw)
        header_bytes = int.from_bytes(raw[:8], "little")
        description = json.loads(json.loads(raw[8 : 8 + header_bytes])["__metadata__"]["zhub"])
        if description["format"] != PROBE_FORMAT or not 0 < len(description["prompts"]) <= MAX_PROMPTS:
            raise ValueError(f"expected format '{PROBE_FORMAT}'")
        return [_entry(index, prompt, tensors) for index, prompt in enumerate(description["prompts"])]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as exc:
        raise ArtifactError(f"{path.name} holds no answers that zhub wrote: {exc}") from exc


def _entry(index: int, prompt: dict[str, object], tensors: dict[str, Tensor]) -> tuple[Answered, Tensor, Tensor]:
    ids = [int(token) for token in tensors[f"{index}.ids"]]
    tokens, logprobs = tensors[f"{index}.tokens"], tensors[f"{index}.logprobs"]
    length = int(str(prompt["tokens"]))
    positions = len(ids) - length + 1
    if not 0 < length <= len(ids) <= MAX_TOKENS or min(*ids, int(tokens.min())) < 0:
        raise ValueError(f"prompt {index} has no tokens, or too many")
    if tokens.shape != logprobs.shape or tokens.ndim != 2 or len(tokens) != positions:
        raise ValueError(f"prompt {index} has {tuple(tokens.shape)} tokens, expected {positions} rows")
    return Answered(str(prompt["content"]), ids[:length], ids[length:]), tokens, logprobs
