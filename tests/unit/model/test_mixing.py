"""Mixtures of multipliers, against the formula matrix by matrix."""

import pytest
import torch

from zhub_workers.model.mixing import ALL, OUTSIDE, Mixer

NAMES = ("model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head")


def experts(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [{name: 1 + torch.randn(4, generator=generator) for name in NAMES} for _ in range(count)]
    del made[1][NAMES[1]]  # it leaves one as it is
    return made


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [("global", [ALL] * 4), ("layer", ["0", "0", "1", OUTSIDE]), ("matrix", list(NAMES))],
)
def test_a_mixture_is_the_weighted_sum_of_what_experts_change(granularity: str, groups: list[str]) -> None:
    of = experts()
    mixer = Mixer(of, granularity, "cpu")  # type: ignore[arg-type]
    weights = torch.randn(mixer.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert mixer.shape == (3, len(set(groups)))
    values = mixer.values(weights)
    for name, group in zip(NAMES, groups, strict=True):
        column = mixer.groups.index(group)
        parts = [float(weights[k, column]) * (z[name] - 1) for k, z in enumerate(of) if name in z]
        assert torch.allclose(values[name], torch.stack(parts).sum(0), atol=1e-6)


def test_one_expert_alone_is_that_expert_bit_for_bit() -> None:
    of = experts()
    values = Mixer(of, "global", "cpu").values(torch.tensor([[0.0], [0.0], [1.0]]))
    assert all(torch.equal(values[name], of[2][name] - 1) for name in NAMES)
