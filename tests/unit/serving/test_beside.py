"""What is read beside the answers takes a share of each step: it holds nobody's next token up, and reads the same."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from served_engines import Served, text_of

from zhub.errors import DigestMismatchError
from zhub.generation import EmbeddingRequest, Embeddings, Ended, Failed, Line, Started, Text
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.reading import tried
from zhub_workers.model.routing import prompt_embeddings
from zhub_workers.serving.asked import Asked
from zhub_workers.serving.beside import Beside, Reading, _layers, pause_between_layers
from zhub_workers.serving.experts import Experts
from zhub_workers.serving.lane import Lane

INPUTS = ["say a", "what is 2 + 3?"]


class Driven:
    """A lane that is moved by hand."""

    def __init__(self, served: Served) -> None:
        # Long enough for the question what a prompt is for; the model's positions go on.
        self.base = replace(tried(served.base), context_length=512)
        self.lane = Lane(AdaptedModel(self.base, served.basis), Experts(served.store, served.root / "cache"), 64 << 20)
        # No time in a step beside its tokens: so one part of each reading.
        self.lane._pace.step_s = 1e-9
        self.lane._pace.note = lambda *_: None  # type: ignore[method-assign]

    def start(self, request: Any) -> list[Any]:
        lines: list[Any] = []
        asked = Asked(request, lines.append, lambda _asked: None)
        self.lane.prepare(asked)
        self.lane.start(asked)
        return lines


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    return Served(tmp_path_factory.mktemp("served"), model_directory("llama"))


@pytest.fixture
def driven(served: Served) -> Driven:
    return Driven(served)


def tokens_while(driven: Driven, answer: list[Line], read: list[Any]) -> int:
    """How many pieces an answer gets until what is read has a first line."""
    before = sum(isinstance(line, Text) for line in answer)
    while not read:
        driven.lane.step()
    return sum(isinstance(line, Text) for line in answer) - before


@pytest.mark.parametrize("router", ["centroid", "prompt"])
def test_an_answer_goes_on_while_another_request_chooses_its_experts(
    served: Served, driven: Driven, router: str
) -> None:
    experts = [served.expert(name, seed, ["a", "b"]) for name, seed in (("one", 1), ("two", 2))]
    chooses = served.request("say b", candidates=experts, router=router)
    alone = driven.start(chooses)
    while not driven.lane.is_idle:
        driven.lane.step()
    answer = driven.start(served.request("say a", max_new_tokens=50))
    driven.lane.step()
    lines = driven.start(chooses)
    assert tokens_while(driven, answer, lines) >= len(_layers(driven.base.model))
    while not driven.lane.is_idle:
        driven.lane.step()
    assert isinstance(lines[0], Started) and lines[0].experts == alone[0].experts
    assert text_of(lines) == text_of(alone)


def test_an_answer_goes_on_while_texts_are_embedded_and_the_embeddings_are_the_same(
    served: Served, driven: Driven
) -> None:
    answer = driven.start(served.request("say a", max_new_tokens=50))
    driven.lane.step()
    lines = driven.start(EmbeddingRequest(base=served.source, inputs=list(INPUTS)))
    assert tokens_while(driven, answer, lines) >= len(INPUTS) * len(_layers(driven.base.model))
    (embedded,) = lines
    assert isinstance(embedded, Embeddings)
    ids = [render_prompt(served.base, [{"role": "user", "content": text}]) for text in INPUTS]
    torch.testing.assert_close(torch.tensor(embedded.vectors), prompt_embeddings(served.base, ids))


def test_a_choice_that_cannot_be_made_is_an_error_of_its_request_alone(
    served: Served, driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise DigestMismatchError("routing", expected="a", actual="b")

    monkeypatch.setattr(driven.lane._experts, "centroid", broken)
    failed = driven.start(served.request("x", candidates=[served.expert("one", 1, ["a", "b"])]))
    answered = driven.start(served.request("say a"))
    while not driven.lane.is_idle:
        driven.lane.step()
    assert isinstance(failed[-1], Failed) and failed[-1].code == "digest_mismatch"
    assert isinstance(answered[-1], Ended)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "mixtral", "qwen3_next", "bloom", "deepseek_v3"])
def test_the_layers_of_a_model_are_found_whatever_they_are_called(architecture: str, tmp_path: Path) -> None:
    model = families.tiny_model(architecture)
    assert len(_layers(model)) == model.config.num_hidden_layers > 1


def test_readings_of_one_organisation_let_those_of_another_come_between() -> None:
    beside, read = Beside(), list[str]()
    for name in ("a1", "a2", "a3", "b1"):
        beside.add(Reading(name[0], partial(read.append, name)))
    while not beside.is_idle:
        beside.go_on()
    assert read == ["a1", "b1", "a2", "a3"]


class TwoLayers(torch.nn.Module):
    """As much of a model as has layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.layers
        return second(first(x))  # type: ignore[no-any-return]


def test_a_reading_waits_before_each_part_and_nothing_waits_elsewhere() -> None:
    model = TwoLayers()
    pause_between_layers(model)
    expected = model(torch.ones(1, 2))  # in this thread
    beside, read, turns = Beside(), list[torch.Tensor](), 0
    beside.add(Reading("a", lambda: read.append(model(torch.ones(1, 2)))))
    while not beside.is_idle:
        beside.go_on()
        turns += 1
    assert turns == 3
    assert torch.equal(read[0], expected)
