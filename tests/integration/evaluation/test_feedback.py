"""Feedback: it is about one version of one's own, comes once, counts on its expert, and goes when it is taken back."""

import contextlib
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import ProgrammingError

from zhub import scheduler
from zhub.database.sessions import system_session, tenant_session
from zhub.datasets.rows import MAX_ROW_BYTES
from zhub.models import Expert, Feedback
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES

Ask = Callable[..., Any]
PROMPT = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1 ="}]
BODY = {"model": "main.summer@v1", "messages": PROMPT, "completion": "3", "score": -0.5}


@pytest.fixture
def ask(client: openai.OpenAI) -> Ask:
    return asker(client)


@pytest.fixture
def other_team(open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]) -> Ask:
    """Another organisation, whose project has the same name."""
    return asker(open_client(make_key("globex")))


@pytest.fixture
def version(publish_version: Callable[..., str]) -> str:
    return publish_version()


def asker(client: openai.OpenAI) -> Ask:
    def send(method: str, path: str, body: Any = None, **options: Any) -> Any:
        if body is not None:
            options["body"] = body
        return getattr(client, method)(path, cast_to=object, **options)

    return send


def give(ask: Ask, *, key: str | None = None, **changed: Any) -> Any:
    options = {"options": {"headers": {"Idempotency-Key": key}}} if key else {}
    return ask("post", "/feedback", BODY | changed, **options)


def come(engine: Engine, expert: str = "summer") -> int:
    """How much feedback has come on an expert."""
    with system_session(engine) as session:
        return session.scalars(select(Expert.feedback_count).where(Expert.name == expert)).one()


def kept(engine: Engine) -> int:
    with system_session(engine) as session:
        return session.scalars(select(func.count()).select_from(Feedback)).one()


# What is said


def test_feedback_is_kept_as_it_was_given(ask: Ask, version: str) -> None:
    made = give(ask, reference="2", comment="It adds one too many.")
    assert {name: made[name] for name in BODY} == BODY
    assert (made["reference"], made["comment"]) == ("2", "It adds one too many.")
    assert ask("get", "/feedback")["data"] == [made]


def test_feedback_through_an_alias_is_about_the_version_that_it_points_to_now(
    ask: Ask, version: str, publish_version: Callable[..., str]
) -> None:
    ask("put", "/experts/main.summer/aliases/prod", {"version": version})
    made = give(ask, model="main.summer@prod")
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version()})
    assert give(ask, model="main.summer@prod")["model"] == "main.summer@v2"
    assert made["model"] == version
    assert ask("get", "/feedback")["data"][1] == made


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"score": 1.01}, 400, "score"),
        ({"score": -1.01}, 400, "score"),
        ({"score": "1"}, 400, "score"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "judge", "content": "?"}]}, 400, "messages"),
        ({"messages": [*PROMPT, {"role": "assistant", "content": "3"}]}, 400, "messages"),
        ({"completion": "a" * MAX_ROW_BYTES}, 400, None),
        ({"completion": "\0"}, 400, None),
        ({"sentiment": "bad"}, 400, "sentiment"),
        ({"model": "tiny"}, 400, "model"),
        ({"model": "auto"}, 400, "model"),
        ({"model": f"main.summer@ftjob-{'0' * 32}:step-1"}, 400, "model"),
        ({"model": "main.summer@v2"}, 404, None),
        ({"model": "main.summer@prod"}, 404, None),
        ({"model": "other.summer@v1"}, 404, None),
    ],
)
def test_what_is_no_feedback_on_a_version_is_refused_and_counts_nowhere(
    ask: Ask, version: str, system_engine: Engine, changed: dict[str, Any], status: int, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        give(ask, **changed)
    assert (caught.value.status_code, caught.value.param) == (status, param)
    assert (kept(system_engine), come(system_engine)) == (0, 0)


def test_the_same_key_with_the_same_body_adds_nothing(ask: Ask, version: str, system_engine: Engine) -> None:
    first = give(ask, key="once")
    assert give(ask, key="once") == first
    assert give(ask, key="twice")["id"] != first["id"]
    assert (kept(system_engine), come(system_engine)) == (2, 2)
    with pytest.raises(openai.UnprocessableEntityError, match="'once' was used for other feedback"):
        give(ask, key="once", score=1)


def test_the_same_key_at_the_same_time_adds_one(ask: Ask, version: str, system_engine: Engine) -> None:
    def try_once(_number: int) -> str | None:
        try:
            return str(give(ask, key="once")["id"])
        except openai.ConflictError:
            return None

    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(try_once, range(12))) - {None}
    assert len(ids) == 1 and (kept(system_engine), come(system_engine)) == (1, 1)


def test_all_that_comes_at_the_same_time_is_counted(ask: Ask, version: str, system_engine: Engine) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _number: give(ask), range(30)))
    assert (kept(system_engine), come(system_engine)) == (30, 30)


# Who reads it, and what of it


def test_feedback_is_listed_by_expert_and_by_version(
    ask: Ask, version: str, publish_version: Callable[..., str]
) -> None:
    second, other = publish_version(), publish_version("winter")
    on_first, on_second, on_other = (give(ask, model=name)["id"] for name in (version, second, other))

    def listed(model: str) -> list[str]:
        found = ask("get", "/feedback", options={"params": {"model": model}})
        return [piece["id"] for piece in found["data"]]

    assert listed("main.summer") == [on_second, on_first]
    assert (listed(version), listed(second), listed("main.winter")) == ([on_first], [on_second], [on_other])
    for missing in ("main.spring", "main.summer@v3"):
        with pytest.raises(openai.NotFoundError):
            listed(missing)


def test_a_list_of_feedback_goes_on_after_its_last_piece(ask: Ask, version: str) -> None:
    ids = [give(ask)["id"] for _ in range(3)]
    first = ask("get", "/feedback", options={"params": {"limit": 2}})
    rest = ask("get", "/feedback", options={"params": {"limit": 2, "after": first["last_id"]}})
    assert [piece["id"] for piece in [*first["data"], *rest["data"]]] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_a_version_shows_how_much_feedback_it_has_and_the_mean_score(
    ask: Ask, version: str, publish_version: Callable[..., str]
) -> None:
    silent = publish_version()
    taken_back = give(ask, score=-1)
    for score in (1, 0.5, 0):
        give(ask, score=score)
    ask("delete", f"/feedback/{taken_back['id']}")
    shown = {one["id"]: one["feedback"] for one in ask("get", "/experts")["data"]}
    assert shown == {version: {"count": 3, "mean_score": 0.5}, silent: {"count": 0, "mean_score": None}}
    assert ask("get", f"/experts/{version}")["feedback"] == shown[version]


def test_another_team_neither_gives_nor_sees_nor_deletes_it(ask: Ask, other_team: Ask, version: str) -> None:
    made = give(ask)
    with pytest.raises(openai.NotFoundError):
        give(other_team)
    assert other_team("get", "/feedback")["data"] == []
    with pytest.raises(openai.NotFoundError):
        other_team("delete", f"/feedback/{made['id']}")
    assert ask("get", "/feedback")["data"] == [made]


def test_another_project_of_the_organisation_neither_sees_nor_deletes_it(
    ask: Ask, version: str, open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]
) -> None:
    made, neighbour = give(ask), asker(open_client(make_key("acme", "other")))
    assert neighbour("get", "/feedback")["data"] == []
    with pytest.raises(openai.NotFoundError):
        neighbour("delete", f"/feedback/{made['id']}")


@pytest.mark.parametrize(
    ("scope", "request_"),
    [
        ("chat", ("post", "/feedback", BODY)),
        ("files:read", ("get", "/feedback")),
        ("files:write", ("delete", f"/feedback/fb-{uuid.uuid4().hex}")),
    ],
)
def test_who_may_ask_may_say_how_good_it_was_and_who_may_read_files_reads_what_was_said(
    open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str], scope: str, request_: tuple[Any, ...]
) -> None:
    others = tuple(other for other in SCOPES if other != scope)
    with pytest.raises(openai.PermissionDeniedError, match=scope):
        asker(open_client(make_key(scopes=others)))(*request_)
    with contextlib.suppress(openai.NotFoundError):  # neither the version nor the piece is there
        asker(open_client(make_key(scopes=(scope,))))(*request_)


# What becomes of it


def test_feedback_that_is_taken_back_is_hidden_at_once_and_then_removed(
    ask: Ask, version: str, system_engine: Engine, store: DirectoryStore, until: Callable[..., Any]
) -> None:
    gone, stays = give(ask), give(ask)
    assert ask("delete", f"/feedback/{gone['id']}")["deleted"] is True
    assert ask("get", "/feedback")["data"] == [stays]
    with pytest.raises(openai.NotFoundError):
        ask("delete", f"/feedback/{gone['id']}")
    stopping = threading.Event()
    thread = threading.Thread(target=scheduler.sweep, args=(system_engine, store, stopping))
    thread.start()
    try:
        until(lambda: kept(system_engine) == 1)
    finally:
        stopping.set()
        thread.join(timeout=15)
    assert ask("get", "/feedback")["data"] == [stays]
    assert come(system_engine) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE feedback SET score = 1",
        "UPDATE feedback SET completion = 'better'",
        "UPDATE feedback SET version_id = version_id",
        "UPDATE experts SET last_version = last_version",
        "UPDATE experts SET project_id = project_id",
    ],
)
def test_the_api_changes_nothing_of_what_was_said_nor_of_where_an_expert_stands(
    api_engine: Engine, caller: Caller, statement: str
) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        tenant_session(api_engine, caller.org_id) as session,
    ):
        session.execute(text(statement))
