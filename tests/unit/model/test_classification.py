"""Constrained choice among labels, against the slow way: every token of every label read by itself."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zhub_workers.model.base_model import BaseModel, load_base_model, render_prompt
from zhub_workers.model.classification import label_probabilities

LABELS = ("sum", "summer", "sorting", "other")


@pytest.fixture(scope="module")
def base(model_directory: Callable[[str], Path]) -> BaseModel:
    return load_base_model(model_directory("llama"))


def token_ids(base: BaseModel, label: str) -> list[int]:
    ids: list[int] = base.tokenizer(label, add_special_tokens=False)["input_ids"]
    return ids


def prompt_of(base: BaseModel) -> list[int]:
    return render_prompt(base, [{"role": "user", "content": "add 3 and 4"}])


@torch.no_grad()
def slow_probability(base: BaseModel, prompt: list[int], label: list[int], labels: list[list[int]]) -> float:
    """Token after token, each in a forward of its own, among the tokens that some label has there."""
    probability = 1.0
    for position in range(len(label)):
        possible = sorted({other[position] for other in labels if other[:position] == label[:position]})
        logits = base.model(torch.tensor([[*prompt, *label[:position]]])).logits[0, -1]
        allowed = logits[possible].double().softmax(0)
        probability *= float(allowed[possible.index(label[position])])
    return probability


def test_a_labels_probability_is_that_of_decoding_where_only_labels_are_possible(base: BaseModel) -> None:
    ids = [token_ids(base, label) for label in LABELS]
    closed = [[*label, base.eos_id] for label in ids]
    prompt = prompt_of(base)
    expected = [slow_probability(base, prompt, label, closed) for label in closed]
    assert label_probabilities(base, prompt, ids) == pytest.approx(expected, rel=1e-3)
    assert min(expected) > 0 and max(expected) < 1, "the base must hesitate for this to mean anything"


def test_the_probabilities_sum_to_one_though_one_label_begins_another(base: BaseModel) -> None:
    ids = [token_ids(base, label) for label in LABELS]
    assert ids[1][: len(ids[0])] == ids[0], "one must begin the other for this to mean anything"
    assert math.fsum(label_probabilities(base, prompt_of(base), ids)) == pytest.approx(1.0, abs=1e-5)


def test_a_single_label_is_certain(base: BaseModel) -> None:
    assert label_probabilities(base, prompt_of(base), [token_ids(base, "sum")]) == pytest.approx([1.0])
