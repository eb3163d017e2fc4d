"""The weights of a mixture from a few examples, by one backward pass: the slope of the loss along each expert.

In a mixture ``z = 1 + Σ α_k · (z_k − 1)`` the loss changes with ``α_k``, at the base where all α are zero, by
``⟨dL/dz, z_k − 1⟩``. So one gradient with respect to z has the slopes of all experts, however many there are, where the
paper's search generates answers for every set of weights that it tries.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.rollout import token_logprobs

Shot = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its right answer, as ``render_prompt`` and ``render_target`` give them."""


def loss_slopes(adapted: AdaptedModel, experts: Sequence[Mapping[str, Tensor]], shots: Sequence[Shot]) -> Tensor:
    """How the mean loss of the shots changes with each expert's weight at the base, ``(k,)`` float32 on the CPU.

    Negative where an expert helps. The loss of a shot is the mean negative log-probability of its answer's tokens.

    Args:
        experts: each its multipliers by matrix, ``(r,)``; a matrix that is missing is ones. At least one.
        shots: at least one, each answer of at least one token.
    """
    names = sorted({name for expert in experts for name in expert})
    stack = {name: zero.unsqueeze(0).requires_grad_() for name, zero in adapted.zero_delta(names).items()}
    prompts, answers = [prompt for prompt, _ in shots], [answer for _, answer in shots]
    with torch.enable_grad(), adapted.rows(stack) as assign:
        logprobs, mask = token_logprobs(adapted.base, prompts, answers, owners=[0] * len(shots), assign=assign)
        loss = -(logprobs.sum(1) / mask.sum(1)).mean()
        gradients = dict(zip(stack, torch.autograd.grad(loss, list(stack.values())), strict=True))
    flat = torch.cat([gradients[name].reshape(-1).float().cpu() for name in names])
    return torch.stack([flat @ _deltas(expert, stack, names) for expert in experts])


def mixture_weights(slopes: Tensor) -> list[float]:
    """Weights in proportion to how steeply each expert lowers the loss, of sum one; zeros where none lowers it."""
    helping = (-slopes).clamp_min(0.0)
    total = float(helping.sum())
    return [float(part) / total if total else 0.0 for part in helping]


def _deltas(expert: Mapping[str, Tensor], stack: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """``z − 1`` of all matrices, one after the other."""
    missing = {name: torch.zeros(stack[name].shape[1]) for name in names if name not in expert}
    return torch.cat([missing[name] if name in missing else expert[name].float().cpu() - 1.0 for name in names])
