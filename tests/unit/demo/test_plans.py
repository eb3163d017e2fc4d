"""What a demo trains: rows that can be split, questions that no dataset has, graders that take the right answer."""

import pytest
from pydantic import TypeAdapter

from zhub.demo.language_tasks import LANGUAGE_TASKS, LanguageTask
from zhub.demo.plans import PLANS
from zhub.graders import Grader, GradingTools, Sample, grade_all

tasks = pytest.mark.parametrize("task", LANGUAGE_TASKS.values(), ids=list(LANGUAGE_TASKS))


def rewards(task: LanguageTask, item: dict[str, str], *answers: str) -> list[float]:
    grader: Grader = TypeAdapter(Grader).validate_python(task.grader)
    return [grade.reward for grade in grade_all(grader, [Sample(text, item, 1) for text in answers], GradingTools())]


@pytest.mark.parametrize("base", PLANS)
def test_a_question_of_a_demo_is_in_none_of_its_datasets(base: str) -> None:
    plan = PLANS[base]()
    for task in plan.tasks:
        assert task.question["messages"] not in [row["messages"] for row in task.rows]
    assert len(plan.tasks) >= plan.min_tasks


@tasks
def test_the_right_answer_is_worth_one_alone_and_in_a_sentence(task: LanguageTask) -> None:
    for row in task.sample_rows(20, seed=3):
        answer = row["answer"]
        assert rewards(task, {"answer": answer}, answer, f"The answer is {answer}.", "", "I do not know.") == [
            1,
            1,
            0,
            0,
        ]


@pytest.mark.parametrize(("name", "labels"), [("kinds", "animal fruit tool"), ("sentiment", "positive negative")])
def test_all_labels_at_once_are_no_answer(name: str, labels: str) -> None:
    assert rewards(LANGUAGE_TASKS[name], {"answer": labels.split()[0]}, labels, labels.replace(" ", ", ")) == [0, 0]


@tasks
def test_rows_are_the_same_for_the_same_seed_and_their_prompts_differ(task: LanguageTask) -> None:
    rows = task.sample_rows(300, seed=1)
    assert rows == task.sample_rows(300, seed=1) != task.sample_rows(300, seed=2)
    assert len({row["messages"][0]["content"] for row in rows}) == 300


def test_more_rows_than_a_task_has_are_refused() -> None:
    always_one = LanguageTask("one", lambda rng: ("What is 1?", "1"), {}, 4)
    with pytest.raises(ValueError, match="task 'one': expected 2 distinct prompts, found 1"):
        always_one.sample_rows(2, seed=1)
