"""``/v1/fine_tuning/alpha/graders``: check a grader, and try it on one answer, in the OpenAI dialect."""

import queue
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Annotated, Any

from anyio import from_thread
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from zhub.database.sessions import tenant_session
from zhub.errors import (
    InvalidRequestError,
    NotFoundError,
    RewardError,
    RewardNotANumberError,
    RewardTimeoutError,
    UnavailableError,
)
from zhub.evaluation.grader_requests import check_grader
from zhub.generation import Text
from zhub.graders import (
    CodeTestsGrader,
    Grade,
    Grader,
    GraderJson,
    GradingTools,
    MultiGrader,
    PythonGrader,
    Sample,
    ScoreModelGrader,
    grade_all,
    judge_models,
    needs_sandbox,
    parse_grader,
)
from zhub.graders.grading import combine
from zhub.graders.limits import ANSWER_CHARACTERS, ITEM_CHARACTERS, TooLargeError, check_size
from zhub.graders.samples import Judge
from zhub.process.shares import Shares
from zhub.sandbox import Sandbox
from zhub.tenancy.keys import Caller
from zhub_api import serving_client
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.rights import needs

# The dialect's flags. Each is in every answer, set or not.
FLAGS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)


class Sandboxes:
    """One for each grader run at a time, made when it is first needed: no run waits for another's programs."""

    def __init__(self, places: int) -> None:
        self._free: queue.LifoQueue[Sandbox | None] = queue.LifoQueue()
        for _ in range(places):
            self._free.put(None)
        self._places = places

    @contextmanager
    def place(self) -> Iterator[Sandbox]:
        """A sandbox for as long as the block lasts. Raises SandboxUnavailableError."""
        sandbox = self._free.get()
        try:
            sandbox = sandbox or Sandbox(workers=1)
            yield sandbox
        finally:
            self._free.put(sandbox)

    def close(self) -> None:
        """Wait for what runs, and end every process."""
        for sandbox in [self._free.get() for _ in range(self._places)]:
            if sandbox is not None:
                sandbox.close()
            self._free.put(None)


@asynccontextmanager
async def _own_sandboxes(app: FastAPI) -> AsyncIterator[None]:
    app.state.sandboxes = Sandboxes(app.state.context.settings.grader_runs)
    yield
    await run_in_threadpool(app.state.sandboxes.close)


router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", lifespan=_own_sandboxes)


def runs_of(request: Request) -> Shares:
    runs: Shares = request.app.state.grader_runs
    return runs


# No organisation tries graders in all of the places that there are for it.
RunsDep = Annotated[Shares, Depends(runs_of)]


class ValidateRequest(Schema):
    model_config = ConfigDict(extra="forbid")
    grader: GraderJson


class RunRequest(Schema):
    """A grader, an answer to grade, and the row's columns."""

    model_config = ConfigDict(extra="forbid")
    grader: GraderJson
    model_sample: Annotated[str, Field(max_length=ANSWER_CHARACTERS)]
    item: dict[str, Any] = {}


@router.post("/validate", dependencies=[needs("jobs:write")])
def validate_grader(caller: CallerDep, context: ContextDep, runs: RunsDep, request: ValidateRequest) -> dict[str, Any]:
    """Check all of a grader that can be checked without a dataset; return it with its defaults filled in."""
    with runs.place(caller.org_id):
        return {"grader": _read(context, caller, request.grader).model_dump(mode="json")}


@router.post("/run", dependencies=[needs("jobs:write")])
def run_grader(
    caller: CallerDep, context: ContextDep, runs: RunsDep, http_request: Request, request: RunRequest
) -> dict[str, Any]:
    """Grade one answer. A grader that fails is answered with a flag and its message, and a reward of 0."""
    try:
        check_size(request.item, most=ITEM_CHARACTERS)
    except TooLargeError as exc:
        raise InvalidRequestError(f"The item {exc}. Shorten it.", param="item") from exc
    with runs.place(caller.org_id):
        return _run(caller, context, http_request, request)


def _run(caller: Caller, context: Context, http_request: Request, request: RunRequest) -> dict[str, Any]:
    grader = _read(context, caller, request.grader)
    if judge_models(grader):
        caller.require("chat")
    judge = _judge(context, caller, http_request.app.state.serving)
    with http_request.app.state.sandboxes.place() if needs_sandbox(grader) else nullcontext() as sandbox:
        return _graded(grader, request, GradingTools(sandbox=sandbox, judge=judge))


def _graded(grader: Grader, request: RunRequest, tools: GradingTools) -> dict[str, Any]:
    started = time.perf_counter()
    sample = Sample(request.model_sample, request.item)
    flags: dict[str, Any] = dict.fromkeys(FLAGS, False)
    if isinstance(grader, MultiGrader):
        grades = {name: _try(part, sample, tools, flags) for name, part in grader.graders.items()}
        total = _combine(grader, sample, grades, flags)
    else:
        grades, total = {}, _try(grader, sample, tools, flags)
    sub_rewards = {name: grade.reward for name, grade in grades.items()}
    return {
        "reward": total.reward,
        "sub_rewards": sub_rewards,
        "metadata": {
            "name": grader.name,
            "type": grader.type,
            "execution_time": time.perf_counter() - started,
            "scores": sub_rewards or {grader.name: total.reward},
            "token_usage": None,
            "sampled_model_name": None,
            "errors": flags,
            "detail": total.detail,
        },
        "model_grader_token_usage_per_model": {},
    }


def _judge(context: Context, caller: Caller, serving: serving_client.Serving) -> Judge:
    """A judge that answers through serving, as the caller's own requests are answered."""

    def answer(grader: ScoreModelGrader, conversation: list[dict[str, str]]) -> str:
        sampling = grader.sampling_params
        request, _ = serving_client.resolve(
            context,
            caller,
            grader.model,
            messages=conversation,
            max_new_tokens=sampling.max_completions_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )

        async def text() -> str:
            lines = serving_client.generate(serving, caller, request)
            return "".join([line.text async for line in lines if isinstance(line, Text)])

        # A `def` route runs in one of anyio's threads, the client in the event loop.
        return from_thread.run(text)

    return lambda grader, conversations: [answer(grader, conversation) for conversation in conversations]


def _read(context: Context, caller: Caller, given: Any) -> Grader:
    grader = parse_grader(given, param="grader")
    with tenant_session(context.engine, caller.org_id) as session:
        check_grader(session, caller.org_id, grader, param="grader")
    return grader


def _try(grader: Grader, sample: Sample, tools: GradingTools, flags: dict[str, Any]) -> Grade:
    """Grade; where the grader itself failed, set a flag instead of raising an error."""
    try:
        (grade,) = grade_all(grader, [sample], tools)
    except RewardTimeoutError as exc:
        flags["unresponsive_reward_error"] = True
        return _failed(grader, exc, flags)
    except RewardError as exc:
        if not isinstance(grader, PythonGrader):
            flags["invalid_variable_error" if "no column" in str(exc) else "other_error"] = True
        return _failed(grader, exc, flags)
    except (UnavailableError, NotFoundError) as exc:
        if not isinstance(grader, ScoreModelGrader):
            raise
        flags["model_grader_server_error"] = True
        flags["model_grader_server_error_details"] = str(exc)
        return Grade(0.0, parsed=False, detail=str(exc))
    if not grade.in_time:
        flags["unresponsive_reward_error"] = True
    if not grade.parsed:
        flags["model_grader_parse_error" if isinstance(grader, ScoreModelGrader) else "sample_parse_error"] = True
    return grade


def _failed(grader: Grader, exc: RewardError, flags: dict[str, Any]) -> Grade:
    if isinstance(grader, PythonGrader | CodeTestsGrader):
        flags["python_grader_runtime_error"] = True
        flags["python_grader_runtime_error_details"] = str(exc)
    return Grade(0.0, parsed=False, detail=str(exc))


def _combine(grader: MultiGrader, sample: Sample, grades: dict[str, Grade], flags: dict[str, Any]) -> Grade:
    try:
        return combine(grader, sample, grades)
    except RewardNotANumberError as exc:
        flags["other_error"] = True
        return Grade(0.0, detail=str(exc))
