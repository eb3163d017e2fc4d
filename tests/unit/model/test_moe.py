"""Experts on mixture-of-experts bases: every MoE expert's matrices follow a z in every state, and no router does."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from following import IDS, as_z, error, logits, random_delta, side_by_side
from tiny_moe import FAMILIES
from torch import Tensor

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.model.rollout import generate, token_logprobs

Load = Callable[[str], AdaptedModel]
LONG = torch.arange(6 * 40).view(6, 40) % 50  # enough tokens for merged weights of most MoE experts
OWNERS = [0, 0, 1, 1, 1, 2]
STORED_IN_OUT = {"gpt_oss", "llama4_text"}  # (E, in, out), as their checkpoints have it
MOE_MATRIX = re.compile(r"(.+\.experts\.\w+)\.(\d+)")
every_family = pytest.mark.parametrize("family", FAMILIES)


def weights_by_hand(adapted: AdaptedModel, family: str, delta: dict[str, Tensor]) -> dict[str, Tensor]:
    """All adapted parameters as ``U diag(s (1 + delta)) Vh`` in float64, differentiable in ``delta``."""
    composed, slices = {}, dict[str, dict[int, Tensor]]()
    for name, values in delta.items():
        u, s, vh = (factor.double() for factor in adapted.basis.factors[name])
        weight = (u * (s * (1 + values.double()))) @ vh
        if match := MOE_MATRIX.fullmatch(name):
            stored = weight.T if family in STORED_IN_OUT else weight
            slices.setdefault(match[1], {})[int(match[2])] = stored
        else:
            composed[f"{name}.weight"] = weight
    for parameter, made in slices.items():
        composed[parameter] = torch.stack([made[index] for index in range(len(made))])
    return composed


def slow_logits(adapted: AdaptedModel, family: str, delta: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Those of transformers' own eager forward on weights composed by hand, in float64."""
    model = copy.deepcopy(adapted.base.model).double()
    model.set_experts_implementation("eager")
    found: Tensor = torch.func.functional_call(model, weights_by_hand(adapted, family, delta), (ids,)).logits
    return found


@every_family
def test_each_moe_expert_has_matrices_of_its_own_and_routers_have_none(load_adapted: Load, family: str) -> None:
    names = load_adapted(family).layers.keys()
    by_parameter: dict[str, set[int]] = {}
    for match in filter(None, map(MOE_MATRIX.fullmatch, names)):
        by_parameter.setdefault(match[1], set()).add(int(match[2]))
    assert by_parameter.keys() >= {
        f"model.layers.1.{'feed_forward' if family == 'llama4_text' else 'mlp'}.experts.{parameter}"
        for parameter in ("gate_up_proj", "down_proj")
    }
    assert all(indices == {0, 1, 2, 3} for indices in by_parameter.values())
    assert not any(re.search(r"router|\.gate$|expert_gate", name) for name in names)


@every_family
def test_a_delta_of_zeros_answers_bit_for_bit_like_the_base(load_adapted: Load, family: str) -> None:
    adapted = load_adapted(family)
    base, zero = logits(adapted), adapted.zero_delta()
    with adapted.merged(as_z(zero)):
        assert torch.equal(logits(adapted), base)
    with adapted.rows({name: values.expand(3, -1) for name, values in zero.items()}) as assign:
        assign([0, 1, 2])
        assert torch.equal(logits(adapted), base)
    with adapted.training({name: values.requires_grad_() for name, values in zero.items()}):
        found = adapted.base.model(IDS).logits
    # Llama 4's own forward multiplies every token with every MoE expert, in another product.
    assert error(found, base) < 1e-6 if family == "llama4_text" else torch.equal(found, base)


def test_a_row_that_follows_nobody_is_the_base_beside_others(load_adapted: Load) -> None:
    adapted = load_adapted("mixtral")
    base, delta = logits(adapted), random_delta(adapted, 2)
    with adapted.rows({name: torch.stack([torch.zeros_like(values), values]) for name, values in delta.items()}) as a:
        a([0, 1, 1])
        mixed = logits(adapted)
    assert torch.allclose(mixed[0], base[0], atol=1e-5)
    assert not torch.allclose(mixed[1:], base[1:], atol=1e-2)


def test_gradients_of_micro_batches_may_be_taken_one_after_the_other(load_adapted: Load) -> None:
    adapted = load_adapted("mixtral")
    delta = {name: values.requires_grad_() for name, values in random_delta(adapted, 1).items()}
    with adapted.training(delta):
        whole = torch.autograd.grad(adapted.base.model(IDS).logits.square().sum(), list(delta.values()))
        parts = [
            torch.autograd.grad(adapted.base.model(IDS[row : row + 1]).logits.square().sum(), list(delta.values()))
            for row in range(len(IDS))
        ]
    for expected, *own in zip(whole, *parts, strict=True):
        assert not expected.any() or error(torch.stack(own).sum(0), expected) < 1e-4


@every_family
def test_all_states_give_the_logits_of_weights_composed_by_hand(load_adapted: Load, family: str) -> None:
    adapted = load_adapted(family)
    delta = random_delta(adapted, 1)
    expected = slow_logits(adapted, family, delta, IDS)
    assert error(logits(adapted), expected) > 0.1
    with adapted.merged(as_z(delta)):
        assert error(logits(adapted), expected) < 1e-4
    with adapted.training({name: values.requires_grad_() for name, values in delta.items()}):
        assert error(adapted.base.model(IDS).logits, expected) < 1e-4
    with adapted.rows({name: values.detach().unsqueeze(0) for name, values in delta.items()}) as assign:
        assign([0, 0, 0])
        assert error(logits(adapted), expected) < 1e-4


@every_family
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_gradient_of_training_is_autograd_through_weights_composed_by_hand(
    load_adapted: Load, family: str, scale: float
) -> None:
    adapted = load_adapted(family)
    delta = {name: (scale * values).requires_grad_() for name, values in random_delta(adapted, 1).items()}
    with adapted.training(delta):
        adapted.base.model(IDS).logits.square().mean().backward()
    leaves = {name: values.detach().double().requires_grad_() for name, values in delta.items()}
    torch.autograd.backward([slow_logits(adapted, family, leaves, IDS).square().mean()])
    for name, leaf in leaves.items():
        expected, found = leaf.grad, delta[name].grad
        assert expected is not None and found is not None
        if expected.any():
            assert error(found, expected) < 1e-3
        else:  # no token was routed to this MoE expert
            assert MOE_MATRIX.fullmatch(name) and not found.any()


@every_family
def test_multipliers_of_zero_have_a_gradient_too(load_adapted: Load, family: str) -> None:
    adapted = load_adapted(family)
    delta = random_delta(adapted, 2)
    for values in delta.values():
        values[::3] = -1.0
    with adapted.training({name: values.requires_grad_() for name, values in delta.items()}):
        output = adapted.base.model(IDS).logits
        output.square().mean().backward()
    leaves = {name: values.detach().double().requires_grad_() for name, values in delta.items()}
    expected = slow_logits(adapted, family, leaves, IDS)
    assert error(output, expected) < 1e-4
    torch.autograd.backward([expected.square().mean()])
    for name, values in delta.items():
        gradient = leaves[name].grad
        assert gradient is not None
        assert not gradient.any() or error(values.grad, gradient) < 1e-3


@every_family
@pytest.mark.parametrize("ids", [LONG[:, :3], LONG], ids=["factored", "merged"])
def test_experts_side_by_side_have_the_logits_and_gradients_that_each_has_alone(
    load_adapted: Load, family: str, ids: Tensor
) -> None:
    for of_expert in side_by_side(load_adapted(family), ids, OWNERS):
        assert error(of_expert.logits, of_expert.alone) < 1e-4
        for gradient, expected in of_expert.gradients:
            if expected is not None and expected.any():
                assert gradient is not None and error(gradient, expected) < 2e-3


@every_family
def test_answers_of_a_batch_are_those_of_each_expert_merged(load_adapted: Load, family: str) -> None:
    adapted = load_adapted(family)
    prompts = [[1, 5, 9], [1, 6, 7, 8, 20], [1, 5, 9], [1, 30]]
    owners, limits = [0, 0, 1, 2], [6, 2, 6, 4]  # rows leave the batch before others
    experts = [random_delta(adapted, seed) for seed in range(3)]
    settings: dict[str, Any] = {"temperature": 0.0, "seeds": [0] * 4, "max_new_tokens": limits}
    stack = {name: torch.stack([expert[name] for expert in experts]) for name in experts[0]}
    with adapted.rows(stack) as assign:
        together = generate(adapted.base, prompts, owners=owners, assign=assign, **settings)
        answers = [answer.token_ids for answer in together]
        with torch.no_grad():
            scored, _ = token_logprobs(adapted.base, prompts, answers, owners=owners, assign=assign)
    for row, owner in enumerate(owners):
        with adapted.merged(as_z(experts[owner])), torch.no_grad():
            alone = generate(
                adapted.base, prompts[row : row + 1], temperature=0.0, seeds=[0], max_new_tokens=limits[row]
            )
            expected, _ = token_logprobs(adapted.base, prompts[row : row + 1], answers[row : row + 1])
        assert alone[0].token_ids == answers[row]
        assert torch.allclose(scored[row, : len(answers[row])], expected[0], atol=1e-4)


def test_matrices_that_are_left_out_stay_at_the_base(load_adapted: Load) -> None:
    adapted = load_adapted("mixtral")
    name = "model.layers.1.mlp.experts.down_proj.2"
    few = {name: random_delta(adapted, 3)[name]}
    with adapted.merged(as_z(adapted.zero_delta() | few)):
        expected = logits(adapted)
    assert error(logits(adapted), expected) > 1e-3
    with adapted.merged(as_z(few)):
        assert torch.equal(logits(adapted), expected)
    with adapted.training(few):
        assert torch.allclose(logits(adapted), expected, atol=1e-4)
    with adapted.rows({name: few[name].unsqueeze(0)}) as assign:
        assign([0] * 3)
        assert torch.allclose(logits(adapted), expected, atol=1e-4)


def test_rows_without_an_expert_are_refused(load_adapted: Load) -> None:
    adapted = load_adapted("mixtral")
    name = "model.layers.1.mlp.experts.down_proj.2"
    with (
        adapted.rows({name: torch.ones(1, len(adapted.singular_values(name)))}),
        pytest.raises(RuntimeError, match="assign"),
    ):
        logits(adapted)


@every_family
def test_the_base_is_back_after_every_state(load_adapted: Load, family: str) -> None:
    adapted = load_adapted(family)
    base, delta = logits(adapted), random_delta(adapted, 5)
    own = dict(adapted.base.model.named_parameters())
    rows = {name: values.unsqueeze(0) for name, values in delta.items()}
    for state in (adapted.merged(as_z(delta)), adapted.training(delta), adapted.rows(rows)):
        with pytest.raises(ZeroDivisionError), state:
            raise ZeroDivisionError
        assert torch.equal(logits(adapted), base)
        assert all(parameter is own[name] for name, parameter in adapted.base.model.named_parameters())


def test_a_view_follows_an_expert_of_its_own(load_adapted: Load) -> None:
    adapted = load_adapted("mixtral")
    view, z, base = adapted.weight_sharing_view(), as_z(random_delta(adapted, 1)), logits(adapted)
    with view.merged(z):
        followed = logits(view)
        assert torch.equal(logits(adapted), base)
    with adapted.merged(z):
        assert torch.equal(logits(adapted), followed)
        assert torch.equal(logits(view), base)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_bfloat16_base_agrees_in_every_state(
    model_directory: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    base = load_base_model(model_directory(family), dtype=torch.bfloat16)
    adapted = AdaptedModel(base, load_basis(tmp_path, decompose_base(base, tmp_path)))
    plain = logits(adapted, LONG)
    with adapted.training({name: values.requires_grad_() for name, values in adapted.zero_delta().items()}):
        assert torch.equal(adapted.base.model(LONG).logits, plain)
    # Of one layer's MoE experts only: what is rounded before a router may go another way behind it.
    delta = {name: values for name, values in random_delta(adapted, 5).items() if ".1.mlp.experts." in name}
    with adapted.merged(as_z(delta)):
        merged = logits(adapted, LONG)
    distance = error(plain, merged)
    with adapted.training(delta):
        assert error(logits(adapted, LONG), merged) < distance / 5
    with adapted.rows({name: values.unsqueeze(0) for name, values in delta.items()}) as assign:
        assign([0] * 6)
        assert error(logits(adapted, LONG), merged) < distance / 5
