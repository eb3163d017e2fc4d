"""How a release's experts are chosen or mixed, on a tiny model whose opinion of a prompt a test can set."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from served_engines import Served

from zhub.answering import ExpertReference
from zhub.generation import GenerationRequest, Started
from zhub_workers.serving import strategies
from zhub_workers.serving.strategies import OTHER, classification_messages


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    directory = tmp_path_factory.mktemp("model")
    shutil.copytree(model_directory("llama"), directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    # Room for the question of the first pass.
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return Served(tmp_path_factory.mktemp("served"), directory)


@pytest.fixture(scope="module")
def experts(served: Served) -> list[ExpertReference]:
    prompts = {"main.numbers@v1": [f"add {i} and {i + 7}" for i in range(40)]}
    prompts["main.letters@v2"] = [f"spell the word {chr(97 + i % 26) * 3}{i}" for i in range(40)]
    return [
        served.expert(name, seed, texts).model_copy(update={"description": f"about {name[5:12]}"})
        for seed, (name, texts) in enumerate(prompts.items())
    ]


def started_of(served: Served, **more: Any) -> Started:
    line = served.ask(served.request("add 12 and 19", max_new_tokens=1, **more))[0]
    assert isinstance(line, Started), line
    return line


@pytest.fixture
def opinion(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Have the base give the labels these probabilities: those of a random model are as good as any."""

    def hold(probabilities: Sequence[float]) -> None:
        monkeypatch.setattr(strategies, "calibrated_probabilities", lambda *_: list(probabilities))

    return hold


@pytest.mark.parametrize(
    "probabilities,name",
    [
        ([0.7, 0.2, 0.1], "main.numbers@v1"),
        ([0.2, 0.7, 0.1], "main.letters@v2"),
        ([0.2, 0.1, 0.7], None),
        ([0.4, 0.4, 0.2], None),
    ],
    ids=["the first", "the second", "other", "a tie"],
)
def test_the_expert_that_the_base_names_answers_and_the_base_where_it_names_none(
    served: Served,
    experts: list[ExpertReference],
    opinion: Callable[[Sequence[float]], None],
    probabilities: list[float],
    name: str | None,
) -> None:
    opinion(probabilities)
    started = started_of(served, candidates=experts, router="prompt")
    assert started.strategy == "prompt"
    assert [expert.name for expert in started.experts] == ([name] if name else [])
    assert started.reason.startswith("base: ") == (name is None)


def test_the_base_itself_is_asked_with_every_label(served: Served, experts: list[ExpertReference]) -> None:
    started = started_of(served, candidates=experts, router="prompt")
    labels = ("numbers", "letters", OTHER)
    assert started.strategy == "prompt"
    assert any(f"'{label}'" in started.reason for label in labels)
    assert [expert.reason for expert in started.experts] == [started.reason] * len(started.experts)


def test_a_chosen_expert_answers_with_its_weight(
    served: Served, experts: list[ExpertReference], opinion: Callable[[Sequence[float]], None]
) -> None:
    opinion([0.9, 0.05, 0.05])
    candidates = [experts[0].model_copy(update={"weight": 0.5}), experts[1]]
    assert [expert.weight for expert in started_of(served, candidates=candidates, router="prompt").experts] == [0.5]


def test_a_centroid_release_chooses_as_auto_does_under_its_own_name(
    served: Served, experts: list[ExpertReference]
) -> None:
    by_release = started_of(served, candidates=experts, router="centroid", release="main.support@v1")
    by_auto = started_of(served, candidates=experts)
    assert (by_release.strategy, by_auto.strategy) == ("centroid", "auto")
    assert [expert.name for expert in by_release.experts] == ["main.numbers@v1"]
    assert by_release.experts == by_auto.experts


def test_a_mixture_of_a_release_says_so(served: Served, experts: list[ExpertReference]) -> None:
    started = started_of(served, experts=experts, release="main.support@v1")
    assert (started.strategy, len(started.experts)) == ("mixture", 2)
    assert "main.support@v1" in started.reason
    one = started_of(served, experts=experts[:1], release="main.support@v1")
    assert one.strategy == "mixture", "a mixture of one is a mixture still"


def test_the_base_of_a_release_says_so(served: Served) -> None:
    started = started_of(served, release="main.support@v1")
    assert (started.strategy, "main.support@v1" in started.reason) == ("base", True)


def test_the_time_of_the_first_pass_is_told(served: Served, experts: list[ExpertReference]) -> None:
    assert started_of(served, candidates=experts, router="prompt").choice_s > 0


@pytest.mark.parametrize("router", ["prompt", "centroid", None])
def test_without_candidates_the_base_answers_and_says_how_to_promote_one(served: Served, router: Any) -> None:
    started = started_of(served, candidates=[], router=router)
    assert started.experts == []
    assert "zhub experts promote" in started.reason


def test_a_prompt_that_leaves_no_room_for_the_question_is_the_bases(
    served: Served, experts: list[ExpertReference]
) -> None:
    request = served.request("add 12 and 19", candidates=experts, router="prompt")
    short = dataclasses.replace(served.base, context_length=40)
    chosen, reason = strategies.choose_by_prompt(short, request, {})
    assert (chosen, reason.startswith("base: with the question")) == ([], True)


def classified(messages: list[dict[str, str]], prompt: str | None = None) -> Sequence[dict[str, Any]]:
    request = GenerationRequest.model_construct(messages=messages, prompt=prompt)
    return classification_messages(request, {"numbers": "sums", "letters": "letters"})


def test_the_first_pass_begins_with_what_the_second_reads() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "add 1 and 2"}]
    asked = classified(messages)
    assert asked[0] == messages[0]
    assert str(asked[1]["content"]).startswith("add 1 and 2\n")
    assert "- numbers: sums\n" in str(asked[1]["content"])
    assert "- letters\n" in str(asked[1]["content"]), "a name says no more twice"


def test_a_conversation_that_ends_with_an_answer_is_asked_about_in_a_message_of_its_own() -> None:
    messages = [{"role": "user", "content": "add 1 and 2"}, {"role": "assistant", "content": "3"}]
    asked = classified(messages)
    assert [*asked[:2]] == messages
    assert asked[2]["role"] == "user"


def test_a_text_to_go_on_from_is_asked_about_as_a_users() -> None:
    (asked,) = classified([], prompt="once upon")
    assert (asked["role"], str(asked["content"]).startswith("once upon\n")) == ("user", True)


def test_a_label_that_the_base_gives_to_every_text_says_nothing(
    served: Served, experts: list[ExpertReference], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def biased(_base: Any, prompt: Sequence[int], _labels: Any) -> list[float]:
        asked.append(strategies.NO_TEXT in bytes(prompt).decode())
        return [0.8, 0.1, 0.1] if asked[-1] else [0.7, 0.2, 0.1]

    monkeypatch.setattr(strategies, "label_probabilities", biased)
    monkeypatch.setattr(strategies, "render_prompt", lambda _base, messages: list(str(messages).encode()))
    request = served.request("spell the word abc", candidates=experts, router="prompt")
    wide, priors = dataclasses.replace(served.base, context_length=None), strategies.Priors()
    for _ in range(2):
        chosen, _reason = strategies.choose_by_prompt(wide, request, priors)
        assert [expert.name for expert in chosen] == ["main.letters@v2"]
    assert asked.count(True) == 1, "what the base gives no text is asked for once"
