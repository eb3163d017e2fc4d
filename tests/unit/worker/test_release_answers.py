"""The rows of an evaluation, answered by a release as serving answers."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from served_engines import Served, text_of

from zhub.answering import Answering, ExpertReference
from zhub.datasets.rows import Row
from zhub.errors import TrainingError
from zhub.generation import Started
from zhub.graders import StringCheckGrader
from zhub.specs import EvaluateSpec, StoredFile
from zhub_workers.evaluation.grading import EncodedRow
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import render_prompt
from zhub_workers.serving.experts import Experts
from zhub_workers.worker.release_answers import ReleaseAnswers

GRADER = StringCheckGrader(type="string_check", name="any", operation="eq", input="a", reference="a")
TEXTS = [*(f"add {i} and {i + 9}" for i in range(6)), *(f"spell the word {chr(100 + i) * 3}" for i in range(6))]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    return Served(tmp_path_factory.mktemp("served"), model_directory("llama"))


@pytest.fixture(scope="module")
def experts(served: Served) -> list[ExpertReference]:
    return [
        served.expert("numbers", 1, [f"add {i} and {i + 7}" for i in range(40)]),
        served.expert("letters", 2, [f"spell the word {chr(97 + i % 26) * 3}{i}" for i in range(40)]),
    ]


def rows_of(served: Served, texts: Sequence[str]) -> list[EncodedRow]:
    rows = [Row(line, [{"role": "user", "content": text}], {}) for line, text in enumerate(texts, 1)]
    return [EncodedRow(row, render_prompt(served.base, row.prompt), [], []) for row in rows]


@pytest.fixture
def release_answers(served: Served, tmp_path: Path) -> Callable[..., ReleaseAnswers]:
    def make(before_step: Callable[[], object] = lambda: None, **who: Any) -> ReleaseAnswers:
        spec = EvaluateSpec(
            base=served.source,
            basis=served.reference,
            z=None,
            release=Answering(release="main.support@v1", **who),
            file=StoredFile(name="suite.jsonl", key="k", sha256="0" * 64, size_bytes=1),
            grader=GRADER,
            max_new_tokens=12,
            k=1,
            n=0,
            temperature=0.0,
            seed=0,
        )
        assert spec.release is not None
        model = AdaptedModel(served.base, served.basis).weight_sharing_view()
        return ReleaseAnswers(model, spec.release, spec, Experts(served.store, tmp_path), before_step)

    return make


@pytest.mark.parametrize("router", [True, False], ids=["centroid", "mixture"])
def test_each_row_has_the_answer_that_serving_gives(
    served: Served, experts: list[ExpertReference], release_answers: Callable[..., ReleaseAnswers], router: bool
) -> None:
    mixed = [expert.model_copy(update={"weight": 0.5}) for expert in experts]
    who: dict[str, Any] = {"candidates": experts, "router": "centroid"} if router else {"experts": mixed}
    answers = release_answers(**who)(rows_of(served, TEXTS))
    said = [served.ask(served.request(text, release="main.support@v1", **who)) for text in TEXTS]
    assert [answer.text for answer in answers] == [text_of(lines) for lines in said]
    started = [lines[0] for lines in said if isinstance(lines[0], Started)]
    assert [answer.experts for answer in answers] == [[e.name for e in first.experts] for first in started]
    chosen = {name for answer in answers for name in answer.experts or ()}
    assert chosen == {"numbers", "letters"}


def test_sampled_answers_are_those_of_their_seeds(
    served: Served, experts: list[ExpertReference], release_answers: Callable[..., ReleaseAnswers]
) -> None:
    answering, rows = release_answers(experts=experts), rows_of(served, TEXTS[:3])
    first, other = answering(rows, 1.0, [1, 2, 3]), answering(rows, 1.0, [1, 2, 4])
    assert [answer.text for answer in first[:2]] == [answer.text for answer in other[:2]]
    assert first[2].text != other[2].text


def test_a_row_that_cannot_be_answered_is_named_by_its_line(
    served: Served,
    experts: list[ExpertReference],
    release_answers: Callable[..., ReleaseAnswers],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enormous = experts[0].model_copy(update={"weight": 1e38})
    with pytest.raises(TrainingError, match=r"^line 1: .*not finite"):
        release_answers(experts=[enormous])(rows_of(served, TEXTS[:1]))


class Ended(Exception):
    """What the one who asks says when the evaluation should end."""


def test_it_ends_between_two_steps(
    served: Served, experts: list[ExpertReference], release_answers: Callable[..., ReleaseAnswers]
) -> None:
    steps = 0

    def before_step() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Ended

    before = threading.active_count()
    with pytest.raises(Ended):
        release_answers(before_step, candidates=experts, router="centroid")(rows_of(served, TEXTS))
    assert steps == 3
    assert threading.active_count() == before  # what was being read has come to its end
