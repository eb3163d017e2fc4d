"""What the best expert has forgotten: base and expert answer the general suite after a training."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from zhub.errors import InvalidRequestError, TrainingError
from zhub.evaluation.forgetting import GENERAL, forgetting_of, split_of
from zhub.manifest import Evaluation
from zhub_workers.compute.requests import Generate
from zhub_workers.evaluation.answer_pairs import AnswerPair
from zhub_workers.evaluation.general_suite import (
    MAX_NEW_TOKENS,
    Question,
    choose_questions,
    grade_answers,
    suite_digest,
)
from zhub_workers.evaluation.grading import compare
from zhub_workers.model.adapters import Values
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.basis import replace_file
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.state import TrainState

# A base that always names the same letter has one right in twenty; what knows no more has nothing to lose.
MIN_BASE_SHARE = 0.1
ANSWERS_AT_ONCE = 96  # between two reports of progress


@dataclass(frozen=True)
class GeneralOutcome:
    """Evaluations of the whole suite and of each category, and both answers to each question; none of all where the
    suite could not tell anything."""

    evaluations: Sequence[Evaluation] = ()
    pairs: Sequence[AnswerPair] = ()


@dataclass(frozen=True)
class KeptAnswers:
    """The answers of bases to the general suite, in a directory of the node: no base answers it twice there."""

    directory: Path

    def read(self, base: str, questions: Sequence[Question]) -> list[str] | None:
        try:
            answers = json.loads(self._path(base, questions).read_bytes())
        except (OSError, ValueError):
            return None
        return answers if isinstance(answers, list) and len(answers) == len(questions) else None

    def write(self, base: str, questions: Sequence[Question], answers: Sequence[str]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        replace_file(self._path(base, questions), json.dumps(list(answers)).encode())

    def _path(self, base: str, questions: Sequence[Question]) -> Path:
        content = [base, suite_digest(), [question.question for question in questions]]
        return self.directory / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()}.json"


@dataclass(frozen=True)
class Suite:
    """The questions that a job puts, with their prompts' tokens."""

    questions: Sequence[Question]
    prompts: Sequence[Sequence[int]]


def measure_general(job: TrainingJob, state: TrainState, kept: KeptAnswers | None) -> GeneralOutcome:
    """Have base and best expert answer the general suite; say what the expert does better and worse.

    Nothing is asked where the expert is the base, where the job wants no questions, and where the base knows too little
    to lose anything. A suite that cannot be answered does not fail the training.

    Raises:
        Stopped: the job should stop.
    """
    if not job.hyper.general_questions or state.is_base:
        return GeneralOutcome()
    try:
        return _measured(job, state, kept)
    except (TrainingError, InvalidRequestError) as exc:
        job.on_event("warn", f"The general suite could not be answered: {exc}", None)
        return GeneralOutcome()


def _measured(job: TrainingJob, state: TrainState, kept: KeptAnswers | None) -> GeneralOutcome:
    suite = _fitting(job, choose_questions(job.hyper.general_questions))
    if not suite.questions:
        return GeneralOutcome()
    base_answers = _base_answers(job, suite, kept)
    base_rewards = grade_answers(suite.questions, base_answers)
    if fmean(base_rewards) < MIN_BASE_SHARE:
        right = f"it has {int(sum(base_rewards))} of {len(base_rewards)} general questions right"
        job.on_event("info", f"The base knows too little to lose anything: {right}. Forgetting is not measured.", None)
        return GeneralOutcome()
    expert_answers = _answers(job, job.member.adapter.imported(state.best), suite, "expert")
    expert_rewards = grade_answers(suite.questions, expert_answers)
    evaluations = _evaluations(suite.questions, base_rewards, expert_rewards)
    _tell(job, evaluations)
    answered = zip(suite.questions, base_answers, expert_answers, base_rewards, expert_rewards, strict=True)
    return GeneralOutcome(evaluations, [_pair(line, *both) for line, both in enumerate(answered, start=1)])


def _fitting(job: TrainingJob, questions: Sequence[Question]) -> Suite:
    """The questions that leave room for an answer in the base's context; none where that are less than half."""
    base = job.member.base
    room = math.inf if base.context_length is None else base.context_length - MAX_NEW_TOKENS
    prompts = [render_prompt(base, _messages(question)) for question in questions]
    fitting = [place for place, prompt in enumerate(prompts) if len(prompt) <= room]
    if 2 * len(fitting) < len(questions):
        message = f"Only {len(fitting)} of {len(questions)} general questions fit the base's context"
        job.on_event("info", f"{message} of {base.context_length} tokens: forgetting is not measured.", None)
        return Suite([], [])
    return Suite([questions[place] for place in fitting], [prompts[place] for place in fitting])


def _base_answers(job: TrainingJob, suite: Suite, kept: KeptAnswers | None) -> list[str]:
    digest = job.spec.base.digest
    if kept is not None and (answers := kept.read(digest, suite.questions)) is not None:
        return answers
    answers = _answers(job, None, suite, "base")
    if kept is not None:
        kept.write(digest, suite.questions, answers)
    return answers


def _answers(job: TrainingJob, values: Values | None, suite: Suite, who: str) -> list[str]:
    answers: list[str] = []
    total = len(suite.prompts)
    while len(answers) < total:
        prompts = suite.prompts[len(answers) : len(answers) + ANSWERS_AT_ONCE]
        answers += [completion.text for completion in job.member.run(Generate(values, prompts, MAX_NEW_TOKENS))]
        data = {"type": "progress", "done": len(answers), "total": total}
        job.on_event("info", f"The {who} has answered {len(answers)} of {total} general questions.", data)
    return answers


def _evaluations(
    questions: Sequence[Question], base_rewards: Sequence[float], expert_rewards: Sequence[float]
) -> list[Evaluation]:
    whole = compare(base_rewards, expert_rewards, GENERAL)
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question.category, []).append(place)
    of_categories = [
        compare([base_rewards[at] for at in those], [expert_rewards[at] for at in those], split_of(category))
        for category, those in places.items()
    ]
    return [whole, *of_categories]


def _tell(job: TrainingJob, evaluations: Sequence[Evaluation]) -> None:
    forgetting = forgetting_of(evaluations)
    assert forgetting is not None
    worse = forgetting.names("worse")
    data = {
        "type": "general",
        "base": forgetting.whole.evaluation.base.mean,
        "expert": forgetting.whole.evaluation.expert.mean,
        "n": forgetting.whole.evaluation.base.n,
        "p_value": forgetting.whole.evaluation.p_value,
        "better": forgetting.names("better"),
        "worse": worse,
    }
    level = "warn" if worse or forgetting.whole.verdict == "worse" else "info"
    job.on_event(level, f"Beside its task: {forgetting.sentence}", data)


def _pair(
    line: int, question: Question, base: str, expert: str, base_reward: float, expert_reward: float
) -> AnswerPair:
    return AnswerPair(
        suite="general",
        line=line,
        prompt=_messages(question),
        expected=question.answer,
        base_answer=base,
        expert_answer=expert,
        base_reward=base_reward,
        expert_reward=expert_reward,
        category=question.category,
    )


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.question}]
