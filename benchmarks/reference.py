"""The training algorithm of the authors' code, reimplemented as it is, to be measured against.

Source: SakanaAI/self-adaptive-llms at 03a41ae (utils.py, policy/base.py, optim_modules.py, svd_reinforce_hydra.py) and
arXiv:2501.06252. Kept, because it is what the code does:

- every parameter but the norms is decomposed and its factors are held, embeddings too; the MLP matrices are trained;
- parameters are logits of a sigmoid, around 0.1, and each matrix is rescaled to its nuclear norm at the start;
- each step composes ``U @ diag_embed(s * m) @ V.T`` anew, the product with the diagonal matrix included: for the
  forward, and with a graph for the backward;
- one sequence at a time, unpadded, logits at all positions; dense gradients of all trained matrices are added up;
- with KL, the base's weights are copied in and its log-probabilities over the whole vocabulary are kept; the
  divergence is KL(base ‖ policy), summed over the vocabulary;
- rewards are +1 and -1 without a baseline, the loss is a sum over tokens and a mean over sequences; Adam at 2e-3, the
  gradient clipped to 1e-3;
- answers are greedy; every 10 steps all of train, validation and test is answered, and the step that is best on
  validation is kept, from 0 on.

Left out, each to the reference's advantage: bfloat16 (here everything is float32, so its Adam does not stall), the
copies between devices, the second process for rollouts, ``gc.collect`` and ``empty_cache`` after each step, and the
composition for the rollouts, which is counted where rollouts are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import Completion, generate
from zhub_workers.model.svf import decompose

BATCH_SIZE = 256
LEARNING_RATE = 2e-3
MAX_GRAD_NORM = 1e-3
EVALUATION_INTERVAL = 10
INITIAL_MEAN, INITIAL_STD = 0.1, 0.01

Tokens = Sequence[Sequence[int]]


class ReferenceTrainer:
    """One expert in training on ``base``, whose weights are the expert's from the first step until ``restore``."""

    def __init__(self, base: BaseModel, *, kl_coef: float, seed: int) -> None:
        self.base = base
        self._kl_coef = kl_coef
        self._factors: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._weights: dict[str, nn.Parameter] = {}
        for name, weight in base.model.named_parameters():
            if "norm" not in name and weight.ndim == 2:
                u, s, vh = decompose(weight)
                self._factors[name] = u, s, vh.T.contiguous()
            if "mlp" in name:
                self._weights[name] = weight
        self._base_weights = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._composed: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        self._logits = {
            name: (INITIAL_MEAN + INITIAL_STD * torch.randn(len(self._factors[name][1]), generator=generator))
            .to(base.device)
            .requires_grad_()
            for name in self._weights
        }
        self._optimizer = torch.optim.Adam(self._logits.values(), lr=LEARNING_RATE)

    @property
    def matrices(self) -> list[str]:
        """The layers that are trained, as ``linear_layers`` names them."""
        return sorted(name.removesuffix(".weight") for name in self._weights)

    def rollout(self, prompts: Tokens, *, max_new_tokens: int) -> list[Completion]:
        """Greedy answers of the policy. The generation is ours: the reference has another process for it."""
        self._compose_into_model()
        return generate(self.base, prompts, max_new_tokens=max_new_tokens, temperature=0.0, seeds=[0] * len(prompts))

    def step(self, prompts: Tokens, completions: Tokens, rewards: Sequence[float]) -> None:
        """Take one step on one completion, stop token included, to each prompt.

        Args:
            rewards: +1 or -1.
        """
        for weight in self._weights.values():
            weight.requires_grad_(True)
        references = self._reference_logprobs(prompts, completions) if self._kl_coef else [None] * len(prompts)
        self._compose_into_model()
        for prompt, completion, reward, reference in zip(prompts, completions, rewards, references, strict=True):
            logprobs = self._logprobs(prompt, completion)
            chosen = logprobs.gather(1, torch.tensor(completion, device=self.base.device).unsqueeze(1))
            loss = -reward * chosen.sum()
            if reference is not None:
                divergence = nn.functional.kl_div(logprobs, reference, log_target=True, reduction="sum")
                loss = loss + self._kl_coef * divergence
            torch.autograd.backward(loss / len(prompts))
        self._optimizer.zero_grad()
        for name, weight in self._weights.items():
            torch.autograd.backward(self._compose(name), weight.grad)
        torch.nn.utils.clip_grad_norm_(self._logits.values(), MAX_GRAD_NORM)
        self._optimizer.step()
        for weight in self._weights.values():
            weight.grad = None

    def restore(self) -> None:
        """Put the base's weights back."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._base_weights[name])
                weight.requires_grad_(False)

    def multipliers(self) -> dict[str, Tensor]:
        """What each singular value is multiplied by now, by layer."""
        found = {}
        with torch.no_grad():
            for name, logits in self._logits.items():
                s, mask = self._factors[name][1], torch.sigmoid(logits)
                found[name.removesuffix(".weight")] = mask * (s.sum() / (s * mask).sum())
        return found

    def held(self) -> Mapping[str, list[Tensor]]:
        """What is in memory between the backward and the update, by kind, activations and log-probabilities aside."""
        weights = list(self.base.model.parameters())
        return {
            "weights": [*weights, *self._base_weights.values(), *self._composed.values()],
            "factors": [factor for factors in self._factors.values() for factor in factors],
            "gradients": [*self._weights.values(), *self._logits.values()],  # as large as what they are of
            "optimiser": [*self._logits.values()] * 3,  # the parameters, and two moments
        }

    @torch.no_grad()
    def _reference_logprobs(self, prompts: Tokens, completions: Tokens) -> list[Tensor]:
        for name, weight in self._weights.items():
            weight.copy_(self._base_weights[name])
        return [self._logprobs(*pair).cpu() for pair in zip(prompts, completions, strict=True)]

    def _logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        """Log-probabilities over the whole vocabulary at the completion's tokens, ``(t, v)``."""
        ids = torch.tensor([[*prompt, *completion]], device=self.base.device)
        logits: Tensor = self.base.model(ids, use_cache=False).logits
        return logits[0, len(prompt) - 1 : -1].log_softmax(1)

    @torch.no_grad()
    def _compose_into_model(self) -> None:
        self._composed = {name: self._compose(name) for name in self._weights}
        for name, weight in self._weights.items():
            weight.copy_(self._composed[name])

    def _compose(self, name: str) -> Tensor:
        u, s, v = self._factors[name]
        masked = s * torch.sigmoid(self._logits[name])
        return (u @ torch.diag_embed(masked) @ v.T) * (s.sum() / masked.sum())
