"""Routing by the base's hidden states: own prompts go home, foreign ones to the base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zhub_workers
from zhub.datasets.splits import Split
from zhub.demo.task_families import sample_rows
from zhub_workers.model.base_model import load_base_model, render_prompt
from zhub_workers.model.routing import (
    Centroid,
    make_centroid,
    prompt_embeddings,
    route,
)

KINDS = ["llama", "gpt2", "neox"]


def texts(kind: str, start: int, count: int) -> list[str]:
    forms = {"sums": "{} + {} =", "words": "spell {}{}", "questions": "where is the {} of {}?"}
    places = ["door", "roof", "garden", "cellar", "gate"]
    if kind == "sums":
        return [forms[kind].format(n * 7 % 90 + 10, n * 13 % 90 + 10) for n in range(start, start + count)]
    return [forms[kind].format(places[n % 5], chr(97 + n * 5 % 26)) for n in range(start, start + count)]


def embeddings(base: Any, kind: str, start: int, count: int) -> Tensor:
    prompts = [render_prompt(base, [{"role": "user", "content": text}]) for text in texts(kind, start, count)]
    return prompt_embeddings(base, prompts)


@pytest.mark.parametrize("kind", [*KINDS, "mixtral", "llama4_text"])
def test_an_embedding_is_the_mean_hidden_state_whatever_the_padding(
    load_adapted: Callable[[str], Any], kind: str
) -> None:
    base = load_adapted(kind).base
    prompts = [[3, 9, 10, 4], [3, 11, 4], [3, 5, 6, 7, 8, 9, 10, 4]]
    found = prompt_embeddings(base, prompts)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            hidden = base.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
        slow = sum(hidden[position] for position in range(len(prompt))) / len(prompt)
        assert torch.allclose(found[row], slow, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_unseen_prompts_of_a_kind_go_to_its_expert_and_foreign_ones_to_the_base(
    load_adapted: Callable[[str], Any], kind: str
) -> None:
    base = load_adapted(kind).base
    experts = [
        make_centroid(embeddings(base, name, 0, 60), embeddings(base, name, 60, 20)) for name in ("questions", "words")
    ]
    for index, name in enumerate(("questions", "words")):
        routed = [route(e, experts).index for e in embeddings(base, name, 80, 20)]
        assert routed.count(index) >= 18
    foreign = [route(e, experts).index for e in embeddings(base, "sums", 0, 20)]
    assert foreign.count(None) >= 18


def test_the_distance_is_mahalanobis_with_the_fitted_covariance() -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([5.0, 2.0, 0.1, 0.1, 0.1, 0.1])
    points = torch.randn(200, 6, generator=generator) * scale
    centroid = make_centroid(points[:150], points[150:])
    spread = centroid.directions.T @ torch.diag(centroid.variances - centroid.noise) @ centroid.directions
    covariance = spread + centroid.noise * torch.eye(6)
    assert torch.allclose(covariance.diagonal().sqrt(), scale, rtol=0.2)
    for point in (points[0], torch.full((6,), 3.0)):
        offset = point - centroid.mean
        slow = float((offset @ covariance.inverse() @ offset / 6).sqrt())
        assert route(point, [centroid]).score == pytest.approx(slow / centroid.threshold, rel=1e-3)


def test_a_route_says_how_near_each_candidate_was() -> None:
    def ball(centre: float) -> Centroid:
        return Centroid(torch.full((2,), centre), torch.empty(0, 2), torch.empty(0), 1.0, 2.0)

    found = route(torch.tensor([1.0, 1.0]), [ball(9.0), ball(0.0)])
    assert found.index == 1
    assert found.scores == pytest.approx([8 / 2, 1 / 2])
    assert found.score == min(found.scores) <= found.threshold
    assert route(torch.tensor([5.0, 5.0]), [ball(0.0)]).index is None


def test_without_candidates_the_base_answers() -> None:
    assert route(torch.zeros(3), []).index is None


def test_a_dataset_of_equal_prompts_still_has_a_centroid() -> None:
    same = torch.ones(4, 3)
    centroid = make_centroid(same, same[:1])
    assert route(same[0], [centroid]).index == 0
    assert route(torch.full((3,), 50.0), [centroid]).index is None


def test_a_prompt_of_another_kind_goes_to_the_base_though_its_expert_may_not_answer() -> None:
    mine = Centroid(torch.zeros(2), torch.empty(0, 2), torch.empty(0), 1.0, 3.0)
    other = Centroid(torch.full((2,), 4.0), torch.empty(0, 2), torch.empty(0), 1.0, 3.0)
    between = torch.tensor([2.5, 2.5])
    assert route(between, [mine]).index == 0
    routed = route(between, [mine], [other])
    assert routed.index is None and routed.other == pytest.approx((0, 1.5 / 3))
    assert route(torch.tensor([1.5, 1.5]), [mine], [other]).index == 0


@pytest.mark.parametrize(("offset", "noise"), [(0.4, 1.0), (0.4, 0.1), (4.0, 100.0)])
def test_an_expert_of_the_same_kind_takes_no_prompt_away_though_it_may_not_answer(offset: float, noise: float) -> None:
    """A trial on the same prompts, on a part of them, and on a mixture with others."""
    mine = Centroid(torch.zeros(2), torch.empty(0, 2), torch.empty(0), 1.0, 3.0)
    trial = Centroid(torch.full((2,), offset), torch.empty(0, 2), torch.empty(0), noise, 3.0)
    for prompt in (torch.full((2,), 0.5), torch.full((2,), 2.0)):
        routed = route(prompt, [mine], [trial])
        assert (routed.index, routed.other) == (0, None)


def test_on_the_shipped_base_prompts_to_reverse_do_not_go_to_sorting_while_reversal_may_not_answer() -> None:
    """The two differ by a word. Alone, the expert of sorting takes nearly all of them."""
    base = load_base_model(Path(zhub_workers.__file__).parent / "shipped_base")

    def of(family: str, split: Split, count: int) -> Tensor:
        rows = sample_rows(family, count, seed=1, split=split)
        return prompt_embeddings(base, [render_prompt(base, row["messages"]) for row in rows])

    sorting, reversal = (
        make_centroid(of(family, "train", 200), of(family, "validation", 50)) for family in ("sorting", "reversal")
    )
    reverse, sort = of("reversal", "test", 40), of("sorting", "test", 40)
    assert sum(route(prompt, [sorting]).index == 0 for prompt in reverse) > 30
    assert sum(route(prompt, [sorting], [reversal]).index == 0 for prompt in reverse) <= 6
    assert sum(route(prompt, [sorting], [reversal]).index == 0 for prompt in sort) >= 34
