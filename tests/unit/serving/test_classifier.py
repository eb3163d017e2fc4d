"""A release whose classifier is asked which expert a prompt is for, on a tiny model."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from served_engines import Served, text_of

from zhub.answering import Classifier, ExpertReference, Label
from zhub.generation import Started
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import read_z
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.question import CLASSIFIER_QUESTION
from zhub_workers.serving import strategies

LETTERS = "ABC"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    directory = tmp_path_factory.mktemp("model")
    shutil.copytree(model_directory("llama"), directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    # The letters that a classifier answers with, in place of some that no prompt here has.
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {LETTERS["xyz".index(c)] if c in "xyz" else c: i for c, i in vocabulary.items()}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return Served(tmp_path_factory.mktemp("served"), directory)


@pytest.fixture(scope="module")
def experts(served: Served) -> list[ExpertReference]:
    """Two candidates, and the classifier."""
    names = ("main.numbers@v1", "main.letters@v2", "main.which@v3")
    return [served.expert(name, seed, [f"{name} {i}" for i in range(40)]) for seed, name in enumerate(names)]


@pytest.fixture(scope="module")
def classifier(experts: list[ExpertReference]) -> Classifier:
    labels = [Label(label="numbers", candidate=experts[0].name), Label(label="letters", candidate=experts[1].name)]
    return Classifier(expert=experts[2], labels=labels)


def started_of(served: Served, experts: list[ExpertReference], classifier: Classifier, **more: Any) -> Started:
    asked = {"candidates": experts[:2], "router": "classifier", "classifier": classifier, "release": "main.s@v1"}
    line = served.ask(served.request("add 12 and 19", max_new_tokens=1, **asked | more))[0]
    assert isinstance(line, Started), line
    return line


@pytest.fixture
def opinion(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Have the classifier give its labels these probabilities."""

    def hold(probabilities: Sequence[float]) -> None:
        monkeypatch.setattr(strategies, "label_probabilities", lambda *_, **__: list(probabilities))

    return hold


@pytest.mark.parametrize(
    "probabilities,name,words",
    [
        ([0.7, 0.2, 0.1], "main.numbers@v1", "the classifier main.which@v3 said 'numbers' (70%, then 'letters' 20%)"),
        ([0.2, 0.7, 0.1], "main.letters@v2", "said 'letters'"),
        ([0.2, 0.1, 0.7], None, "base: the classifier main.which@v3 said 'other'"),
        ([0.5, 0.3, 0.2], None, "base: the classifier main.which@v3 was not sure"),
        ([0.4, 0.4, 0.2], None, "was not sure"),
    ],
    ids=["the first", "the second", "other", "half", "a tie"],
)
def test_the_expert_that_the_classifier_names_answers_and_the_base_where_it_does_not_know(
    served: Served,
    experts: list[ExpertReference],
    classifier: Classifier,
    opinion: Callable[[Sequence[float]], None],
    probabilities: list[float],
    name: str | None,
    words: str,
) -> None:
    opinion(probabilities)
    started = started_of(served, experts, classifier)
    assert started.strategy == "classifier"
    assert [expert.name for expert in started.experts] == ([name] if name else [])
    assert words in started.reason and started.choice_s > 0


def test_an_expert_that_the_release_does_not_have_is_not_asked(
    served: Served, experts: list[ExpertReference], classifier: Classifier, opinion: Callable[[Sequence[float]], None]
) -> None:
    opinion([0.9, 0.05, 0.05])
    labels = [Label(label="numbers", candidate=None), classifier.labels[1]]
    started = started_of(served, experts, classifier.model_copy(update={"labels": labels}))
    assert started.experts == [] and "which the release does not have" in started.reason


def test_a_chosen_expert_answers_with_its_weight(
    served: Served, experts: list[ExpertReference], classifier: Classifier, opinion: Callable[[Sequence[float]], None]
) -> None:
    opinion([0.9, 0.05, 0.05])
    weak = [experts[0].model_copy(update={"weight": 0.5}), experts[1]]
    assert [e.weight for e in started_of(served, experts, classifier, candidates=weak).experts] == [0.5]


def asked_of(model: AdaptedModel, z: dict[str, torch.Tensor], text: str) -> list[float]:
    """What the model with these multipliers gives the letters as its next token after the question, of all three."""
    base = model.base
    prompt = render_prompt(base, [{"role": "user", "content": text + CLASSIFIER_QUESTION}])
    firsts = [base.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in LETTERS]
    assert len(set(firsts)) == len(LETTERS)
    with model.merged(z), torch.no_grad():
        return base.model(torch.tensor([prompt])).logits[0, -1][firsts].softmax(-1).tolist()  # type: ignore[no-any-return]


def test_the_question_is_asked_of_the_classifier_and_the_answer_is_the_chosen_experts_own(
    served: Served, experts: list[ExpertReference], classifier: Classifier
) -> None:
    text = "add 12 and 19"
    model = AdaptedModel(served.base, served.basis)
    path = served.root / f"{experts[2].name}.z"
    probabilities = asked_of(model, read_z(path, sha256=experts[2].z_sha256, basis=served.basis), text)
    ones = asked_of(model, {}, text)
    best = max(range(3), key=probabilities.__getitem__)
    label = [*(known.label for known in classifier.labels), "other"][best]
    started = started_of(served, experts, classifier)
    assert f"'{label}' ({probabilities[best]:.0%}" in started.reason
    assert f"{probabilities[best]:.0%}" != f"{ones[best]:.0%}", "the base would have said another thing"


def test_the_classifier_changes_no_answer(
    served: Served, experts: list[ExpertReference], classifier: Classifier, opinion: Callable[[Sequence[float]], None]
) -> None:
    opinion([0.9, 0.05, 0.05])
    chosen = served.request("add 12 and 19", candidates=experts[:2], router="classifier", classifier=classifier)
    by_name = served.request("add 12 and 19", experts=[experts[0]])
    assert text_of(served.ask(chosen)) == text_of(served.ask(by_name))


def test_answers_that_run_go_on_while_the_classifier_is_asked(
    served: Served, experts: list[ExpertReference], classifier: Classifier
) -> None:
    running = served.request("spell it out", experts=[experts[1]], max_new_tokens=24)
    alone = text_of(served.ask(running))
    asking = served.request("add 1", candidates=experts[:2], router="classifier", classifier=classifier)
    beside = served.ask_all([running, asking, asking])
    assert text_of(beside[0]) == alone


def test_a_prompt_that_leaves_no_room_for_the_question_is_the_bases(
    served: Served, experts: list[ExpertReference], classifier: Classifier
) -> None:
    request = served.request("add 12 and 19", candidates=experts[:2], router="classifier", classifier=classifier)
    short = AdaptedModel(dataclasses.replace(served.base, context_length=4), served.basis)
    chosen, reason = strategies.choose_by_classifier(short, request, classifier, None)  # type: ignore[arg-type]
    assert (chosen, reason.startswith("base: with the question")) == ([], True)
