"""An expert from elsewhere tried before it is a version: finite on a few fixed prompts, and how far from the base."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zhub.errors import UnsupportedAdapterError
from zhub.manifest import Probe
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import render_prompt
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


@torch.no_grad()
def try_expert(adapted: AdaptedModel, change: Change) -> Probe:
    """The KL divergence from expert to base, in nats a token, on the base's greedy answers, as serving computes it.

    Raises:
        UnsupportedAdapterError: with the expert the scores of the next token are not finite.
    """
    base = adapted.base
    divergences = []
    for content in PROMPTS:
        prompt = render_prompt(base, [{"role": "user", "content": content}])
        answer = generate(base, [prompt], max_new_tokens=ANSWER_TOKENS, temperature=0.0, seeds=[0])[0].token_ids
        own = _answer_logprobs(adapted, prompt, answer)
        with following_rows(adapted, [change]) as assign:
            assign([0])
            followed = _answer_logprobs(adapted, prompt, answer)
        if torch.isnan(followed).any():
            raise UnsupportedAdapterError(
                f"With the expert the base's scores for the next token are not finite after '{content}': it belongs to "
                "another base, or its training went wrong.",
                param="files",
            )
        # A token that the base never writes has a log-probability of minus infinity with it and without.
        share = followed.exp()
        divergences.append(torch.where(share > 0, share * (followed - own), 0.0).sum(-1).clamp_min(0.0))
    by_token = torch.cat(divergences)
    return Probe(
        prompts=len(PROMPTS), tokens=len(by_token), mean_kl=float(by_token.mean()), max_kl=float(by_token.max())
    )


def _answer_logprobs(adapted: AdaptedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Of each token of the answer, and the one after it, ``(t + 1, vocabulary)``, float64."""
    ids = torch.tensor([[*prompt, *answer]], device=adapted.base.device)
    logits: Tensor = adapted.base.model(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits[0, len(prompt) - 1 :].double(), -1).cpu()
