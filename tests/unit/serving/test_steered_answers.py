"""Requests say how far, and in which layers, they follow an expert."""

from collections.abc import Callable
from pathlib import Path

import pytest
from served_engines import Served, text_of

from zhub.answering import ExpertReference
from zhub.generation import Failed, Started


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    return Served(tmp_path_factory.mktemp("served"), model_directory("llama"))


@pytest.fixture(scope="module")
def expert(served: Served) -> ExpertReference:
    return served.expert("numbers", 1, [f"add {i} and {i + 7}" for i in range(40)])


def ask(served: Served, *parts: ExpertReference) -> str:
    return text_of(served.ask(served.request("add 3 and 4", experts=list(parts))))


def test_an_expert_in_all_layers_by_number_answers_as_the_expert(served: Served, expert: ExpertReference) -> None:
    assert ask(served, expert.model_copy(update={"layers": [0, 1]})) == ask(served, expert)


def test_an_expert_in_one_layer_answers_otherwise_and_says_in_which(served: Served, expert: ExpertReference) -> None:
    part = expert.model_copy(update={"layers": [1]})
    lines = served.ask(served.request("add 3 and 4", experts=[part]))
    assert isinstance(lines[0], Started)
    assert lines[0].strategy == "mixture" and [chosen.layers for chosen in lines[0].experts] == [[1]]
    assert len({text_of(lines), ask(served, expert), ask(served)}) == 3


def test_an_expert_with_its_opposite_is_the_base(served: Served, expert: ExpertReference) -> None:
    opposite = expert.model_copy(update={"weight": -1.0})
    assert ask(served, expert, opposite) == ask(served) != ask(served, opposite)


def test_a_layer_that_the_base_lacks_fails_the_request_by_name(served: Served, expert: ExpertReference) -> None:
    wrong, right = expert.model_copy(update={"layers": [0, 7]}), served.request("add 3 and 4", experts=[expert])
    lines, others = served.ask_all([served.request("add 3 and 4", experts=[wrong]), right])
    assert isinstance(lines[-1], Failed) and lines[-1].code == "invalid_request"
    assert "no layer 7" in lines[-1].message and "0-1" in lines[-1].message
    assert not isinstance(others[-1], Failed)


def test_what_is_followed_differs_by_weight_and_by_layers(expert: ExpertReference) -> None:
    steered = [
        expert,
        expert.model_copy(update={"weight": 2.0}),
        expert.model_copy(update={"layers": [0]}),
        expert.model_copy(update={"layers": [1]}),
    ]
    assert len({reference.steering for reference in steered}) == len(steered)
