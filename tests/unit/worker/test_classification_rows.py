"""The rows that a classifier learns from."""

import pytest

from zhub.datasets.rows import MAX_ROW_BYTES, value_digest
from zhub.errors import TrainingError
from zhub_workers.worker.classification_rows import Prompts, labelled_rows


def prompts(*texts: str) -> Prompts:
    conversations = [[{"role": "user", "content": text}] for text in texts]
    return {value_digest(messages): messages for messages in conversations}


def numbered(word: str, count: int) -> Prompts:
    return prompts(*(f"{word} {number}" for number in range(count)))


def rows_of(labels: dict[str, Prompts], others: Prompts | None = None, excluded: Prompts | None = None, count: int = 9):  # type: ignore[no-untyped-def]
    rows = labelled_rows(labels, others or {}, excluded=set(excluded or {}), rows_per_label=count, seed=1)
    return [(row["label"], row["messages"][0]["content"].removesuffix("\nTask?")) for row in rows]


def test_the_smallest_label_decides_how_many_rows_each_has() -> None:
    rows = rows_of({"a": numbered("a", 4), "b": numbered("b", 30)}, numbered("o", 30))
    assert [sum(label == name for label, _ in rows) for name in ("a", "b", "other")] == [4, 4, 4]


def test_no_label_has_more_rows_than_asked_for() -> None:
    rows = rows_of({"a": numbered("a", 30), "b": numbered("b", 30)}, count=9)
    assert [sum(label == name for label, _ in rows) for name in ("a", "b", "other")] == [9, 9, 0]


def test_labels_are_mixed() -> None:
    labels = [label for label, _ in rows_of({"a": numbered("a", 30), "b": numbered("b", 30)})]
    assert labels not in (sorted(labels), sorted(labels, reverse=True))


def test_a_prompt_of_two_labels_is_nobodys() -> None:
    shared = prompts("both", "and others")
    labels = {"a": numbered("a", 3) | prompts("both"), "b": numbered("b", 3) | shared}
    texts = [text for _, text in rows_of(labels, numbered("o", 3) | prompts("and others"))]
    assert len(texts) == 9 and not {"both", "and others"} & set(texts)


def test_a_prompt_to_evaluate_with_is_left_out() -> None:
    texts = [text for _, text in rows_of({"a": numbered("a", 4)}, excluded=prompts("a 2"))]
    assert sorted(texts) == ["a 0", "a 1", "a 3"]


def test_a_prompt_that_no_row_has_room_for_is_left_out() -> None:
    assert [text for _, text in rows_of({"a": prompts("a", "x" * MAX_ROW_BYTES)})] == ["a"]


def test_a_label_without_prompts_of_its_own_is_named() -> None:
    with pytest.raises(TrainingError, match="No prompt is left that is b's alone"):
        rows_of({"a": numbered("a", 4), "b": numbered("a", 2)})


def test_the_question_goes_after_the_conversation_that_an_expert_was_trained_on() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2"}]
    (row,) = labelled_rows({"a": {b"1": messages}}, {}, excluded=(), rows_per_label=1, seed=1)
    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2\nTask?"},
        {"role": "assistant", "content": "A"},
    ]
