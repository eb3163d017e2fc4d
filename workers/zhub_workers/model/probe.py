"""An expert tried on a few fixed prompts: before it is a version, and to tell how near an export comes to it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zhub.errors import UnsupportedAdapterError
from zhub.manifest import Probe
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel, render_prompt
from zhub_workers.model.changes import Change
from zhub_workers.model.rollout import generate
from zhub_workers.model.row_changes import following_rows

PROMPTS = (
    "What is 2 + 3?",
    "Name a colour.",
    "Write one sentence about the sea.",
    "Translate 'good morning' into French.",
)
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Answered:
    """A prompt and the base's greedy answer to it, in tokens."""

    content: str
    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Distance:
    """How far an approximation of an expert is from it, over the base's answers to the prompts.

    ``logits``: the Euclidean norm of the difference, as a share of that between expert and base; 0 where the expert is
    the base. ``mean_kl`` and ``max_kl``: from the approximation to the expert, in nats a token.
    """

    logits: float
    mean_kl: float
    max_kl: float


@torch.no_grad()
def try_expert(adapted: AdaptedModel, change: Change) -> Probe:
    """The KL divergence from expert to base, in nats a token, on the base's greedy answers, as serving computes it.

    Raises:
        UnsupportedAdapterError: with the expert the scores of the next token are not finite.
    """
    divergences = []
    for answered in base_answers(adapted.base):
        own = _logprobs(answer_logits(adapted, answered))
        with following_rows(adapted, [change]) as assign:
            assign([0])
            followed = _logprobs(answer_logits(adapted, answered))
        if torch.isnan(followed).any():
            raise UnsupportedAdapterError(
                f"With the expert the base's scores for the next token are not finite after '{answered.content}': it "
                "belongs to another base, or its training went wrong.",
                param="files",
            )
        divergences.append(_divergence(followed, own))
    by_token = torch.cat(divergences)
    return Probe(
        prompts=len(PROMPTS), tokens=len(by_token), mean_kl=float(by_token.mean()), max_kl=float(by_token.max())
    )


@torch.no_grad()
def distance(adapted: AdaptedModel, expert: Change, approximation: Change) -> Distance:
    """How far the approximation is from the expert."""
    divergences, off, moved = [], 0.0, 0.0
    for answered in base_answers(adapted.base):
        own = answer_logits(adapted, answered)
        with following_rows(adapted, [expert, approximation]) as assign:
            assign([0])
            exact = answer_logits(adapted, answered)
            assign([1])
            near = answer_logits(adapted, answered)
        off += float((near - exact).square().sum())
        moved += float((exact - own).square().sum())
        divergences.append(_divergence(_logprobs(near), _logprobs(exact)))
    by_token = torch.cat(divergences)
    return Distance(math.sqrt(off / moved) if moved else 0.0, float(by_token.mean()), float(by_token.max()))


def base_answers(base: BaseModel) -> Iterator[Answered]:
    """The prompts, each with the base's greedy answer."""
    for content in PROMPTS:
        prompt = render_prompt(base, [{"role": "user", "content": content}])
        answer = generate(base, [prompt], max_new_tokens=ANSWER_TOKENS, temperature=0.0, seeds=[0])[0].token_ids
        yield Answered(content, prompt, answer)


def answer_logits(adapted: AdaptedModel, answered: Answered) -> Tensor:
    """Of each token of the answer, and the one after it, ``(t + 1, vocabulary)``, float64."""
    ids = torch.tensor([[*answered.prompt, *answered.answer]], device=adapted.base.device)
    logits: Tensor = adapted.base.model(input_ids=ids, use_cache=False).logits
    return logits[0, len(answered.prompt) - 1 :].double().cpu()


def _logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1)


def _divergence(followed: Tensor, own: Tensor) -> Tensor:
    """The KL divergence of each token's distributions, ``(t,)``."""
    # A token that the base never writes has a log-probability of minus infinity with it and without.
    share = followed.exp()
    return torch.where(share > 0, share * (followed - own), 0.0).sum(-1).clamp_min(0.0)
