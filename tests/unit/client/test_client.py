"""The client of the HTTP API: what it sends, what it makes of refusals, and what it never lets onto the disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import httpx
import pytest

from zhub.client import Client
from zhub.errors import (
    ApiError,
    ArtifactError,
    ConflictError,
    DigestMismatchError,
    InvalidDatasetError,
    InvalidRequestError,
    UnavailableError,
    UnsupportedModelError,
    ZhubError,
)
from zhub.registry import model_directory

URL = "http://127.0.0.1:8460"
JOB_EVENTS = "/v1/fine_tuning/jobs/ftjob-1/events"


@pytest.fixture
def api() -> Any:
    return api_double.Api()


@pytest.fixture
def client(api: Any) -> Client:
    return Client(URL, api_examples.KEY, transport=httpx.MockTransport(api), poll_s=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with everything that a base model needs, and with what none does."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (directory / "training_args.bin").write_bytes(b"pickle")
    (directory / ".gitattributes").write_text("")
    return directory


def test_a_refusal_keeps_the_apis_words_code_and_request_id(api: Any, client: Client) -> None:
    api.refuse("GET", "/v1/fine_tuning/jobs/ftjob-1", 409, "conflict", "The job has already succeeded.")
    with pytest.raises(ApiError, match="has already succeeded") as caught:
        client.jobs.get("ftjob-1")
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (409, "conflict", "req_1")


def test_an_answer_that_is_not_zhubs_is_told_as_such(api: Any, client: Client) -> None:
    api.add("GET", "/v1/models", httpx.Response(500, html="<h1>nginx</h1>"))
    with pytest.raises(ApiError, match="not as zhub does"):
        client.models()


def test_no_server_at_the_address_says_how_to_start_one() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(UnavailableError, match=r"No zhub answers at http://127.0.0.1:8460.*`zhub up`.*ZHUB_API_URL"):
        Client(URL, api_examples.KEY, transport=httpx.MockTransport(refuse)).models()


@pytest.mark.parametrize(
    "ask,tries",
    [(lambda client: client.models(), 3), (lambda client: client.jobs.cancel("ftjob-1"), 1)],
    ids=["a GET is tried again", "a POST is not"],
)
def test_only_what_is_harmless_is_tried_again(
    ask: Callable[[Client], object], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhub.client.transport.FIRST_BACK_OFF_S", 0.0)
    asked = []

    def break_off(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ReadError("reset by peer", request=request)

    with pytest.raises(UnavailableError):
        ask(Client(URL, api_examples.KEY, transport=httpx.MockTransport(break_off)))
    assert len(asked) == tries


def test_events_come_oldest_first_and_only_the_new_ones(
    api: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhub.client.jobs.EVENTS_PER_PAGE", 2)
    api.add("GET", JOB_EVENTS, api_double.events_of([api_double.event(number) for number in range(1, 6)]))
    assert [event.id for event in client.jobs.events("ftjob-1")] == [f"ftevent-{number}" for number in range(1, 6)]
    assert [event.id for event in client.jobs.events("ftjob-1", after="ftevent-3")] == ["ftevent-4", "ftevent-5"]


def test_following_a_job_ends_with_it_and_misses_no_event(api: Any, client: Client) -> None:
    states = iter(["queued", "queued", "running"])
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", lambda _request: api_examples.JOB | {"status": next(states)})
    events = [api_double.event(1), api_double.event(2), api_double.event(3, step=1)]
    api.add("GET", JOB_EVENTS, api_double.events_of(events))
    seen = [(job.status, [event.id for event in new]) for job, new in client.jobs.follow("ftjob-1")]
    # What has a message may have changed the job: it is asked for again.
    assert seen == [
        ("queued", ["ftevent-1"]),
        ("running", ["ftevent-2"]),
        ("running", ["ftevent-3"]),
        ("succeeded", []),
    ]


def test_following_goes_on_after_the_last_event_where_a_stream_broke_off(api: Any, client: Client) -> None:
    whole = api_double.events_of([api_double.event(number) for number in range(1, 4)])
    cut = iter([b'data: {"id": "ftevent-3"', b"event: end", None])

    def break_off(request: httpx.Request) -> bytes:
        told = whole(request)
        assert isinstance(told, bytes)
        where = next(cut)
        return told if where is None else told[: told.index(where)]

    api.add("GET", JOB_EVENTS, break_off)
    seen = [event.id for _, new in client.jobs.follow("ftjob-1") for event in new]
    assert seen == ["ftevent-1", "ftevent-2", "ftevent-3"]
    asked = [request.url.params.get("after") for request in api.requests if request.url.path == JOB_EVENTS]
    assert asked == [None, "ftevent-2", "ftevent-3"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_a_character_that_only_unicode_takes_for_the_end_of_a_line_stays_in_its_event(
    api: Any, client: Client, separator: str
) -> None:
    event = api_double.event(1) | {"message": f"before{separator}after"}
    # The API escapes such characters; JSON and event streams allow them as they are, and a proxy may write them so.
    told = f"id: ftevent-1\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
    assert separator in told
    api.add("GET", JOB_EVENTS, f"{told}event: end\ndata: {json.dumps(api_examples.JOB)}\n\n".encode())
    (_, (seen,)), (job, _) = client.jobs.follow("ftjob-1")
    assert (seen.message, job.status) == (f"before{separator}after", "succeeded")


def test_a_page_in_place_of_an_event_stream_is_an_error(api: Any, client: Client) -> None:
    api.add("GET", JOB_EVENTS, httpx.Response(200, text="<html>", headers={"content-type": "text/html"}))
    with pytest.raises(ApiError, match="not as zhub does"):
        list(client.jobs.follow("ftjob-1"))


@pytest.mark.parametrize("how", ["refuses connections", "is full"])
def test_following_survives_an_api_that_is_away_for_a_moment(
    api: Any, client: Client, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("zhub.client.transport.FIRST_BACK_OFF_S", 0.0)
    there = api_double.events_of([])
    tries = iter(["away", "there"])

    def events(request: httpx.Request) -> Any:
        if next(tries) == "there":
            return there(request)
        if how == "is full":
            return httpx.Response(503, json={"error": {"message": "100 event streams", "code": "unavailable"}})
        raise httpx.ConnectError("connection refused", request=request)

    api.add("GET", JOB_EVENTS, events)
    assert [job.status for job, _ in client.jobs.follow("ftjob-1")] == ["succeeded"]


def test_following_ends_with_what_does_not_pass(api: Any, client: Client) -> None:
    api.refuse("GET", JOB_EVENTS, 404, "not_found", "No such event: 'ftevent-9'.")
    with pytest.raises(ApiError, match="No such event"):
        list(client.jobs.follow("ftjob-1"))


def test_a_file_that_fails_validation_names_its_lines(api: Any, client: Client) -> None:
    file = {
        "id": "file-1", "filename": "rows.jsonl", "bytes": 1, "created_at": 1, "sha256": "", "version": 1,
        "status": "error", "status_details": "line 3: not JSON",
        "validation": {"problems": [{"line": 3, "code": "bad_json", "message": "not JSON"}]},
    }  # fmt: skip
    api.add("GET", "/v1/files/file-1", file)
    with pytest.raises(InvalidDatasetError, match="line 3") as caught:
        client.files.wait_processed("file-1")
    assert caught.value.problems[0].line == 3


def test_a_pulled_version_has_its_bytes(client: Client, tmp_path: Path) -> None:
    version = client.experts.pull(api_examples.EXPERT, tmp_path / "expert")
    assert version.digest == api_examples.MANIFEST.digest
    content = {path.name: path.read_bytes() for path in (tmp_path / "expert").iterdir()}
    assert content == {
        "manifest.json": api_examples.MANIFEST.canonical(),
        "z.safetensors": api_examples.Z,
        "routing.safetensors": api_examples.ROUTING,
    }


@pytest.mark.parametrize("name", ["manifest.json", "z.safetensors", "routing.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_corrupted_bytes_are_refused_and_leave_nothing(
    name: str, damage: str, api: Any, client: Client, tmp_path: Path
) -> None:
    path = f"/v1/experts/{api_examples.EXPERT}/files/{name}"
    whole: bytes = api.answers["GET", path]
    damaged = {"flipped": b"#" + whole[1:], "cut": whole[:-1], "longer": whole + b"#"}
    api.add("GET", path, damaged[damage])
    with pytest.raises(DigestMismatchError):
        client.experts.pull(api_examples.EXPERT, tmp_path / "expert")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(api: Any, client: Client, tmp_path: Path) -> None:
    api.refuse("GET", f"/v1/experts/{api_examples.EXPERT}/files/routing.safetensors", 503, "store_error", "away")
    with pytest.raises(ApiError):
        client.experts.pull(api_examples.EXPERT, tmp_path / "expert")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "manifest.json"])
def test_a_manifest_cannot_name_a_file_outside_its_directory(
    name: str, api: Any, client: Client, tmp_path: Path
) -> None:
    entry = api_examples.MANIFEST.files[0].model_copy(update={"name": name})
    api.publish(api_examples.MANIFEST.model_copy(update={"files": [entry]}), {})
    with pytest.raises(ArtifactError):
        client.experts.pull(api_examples.EXPERT, tmp_path / "expert")
    assert list(tmp_path.iterdir()) == []


def test_pulling_again_changes_nothing(client: Client, tmp_path: Path) -> None:
    client.experts.pull(api_examples.EXPERT, tmp_path / "expert")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "expert").iterdir()}
    client.experts.pull(api_examples.EXPERT, tmp_path / "expert")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "expert").iterdir()} == before


def test_a_directory_that_holds_something_else_is_left_alone(client: Client, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConflictError):
        client.experts.pull(api_examples.EXPERT, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_stream_yields_pieces_and_says_who_speaks(api: Any, client: Client) -> None:
    head = {
        "experts": [{"name": api_examples.EXPERT, "digest": "d", "weight": 1.0}],
        "routing": {"strategy": "expert", "reason": "asked for", "base_model": "zhub-tiny"},
    }

    def chunk(content: str, finish_reason: str | None = None) -> dict[str, Any]:
        return head | {"choices": [{"delta": {"content": content}, "finish_reason": finish_reason}]}

    api.add("POST", "/v1/chat/completions", api_double.sse(chunk("4"), chunk("2", "stop"), "[DONE]"))
    pieces = list(client.chat_stream("auto", "6 * 7?"))
    assert ("".join(piece.text for piece in pieces), pieces[0].experts[0].name) == ("42", api_examples.EXPERT)


@pytest.mark.parametrize("end", [[{"error": {"message": "the replica went away", "code": "unavailable"}}], []])
def test_a_stream_that_fails_or_breaks_off_raises(end: list[Any], api: Any, client: Client) -> None:
    api.add("POST", "/v1/chat/completions", api_double.sse(*end))
    with pytest.raises(ZhubError, match="replica went away|broke off"):
        list(client.chat_stream("auto", "6 * 7?"))


def test_only_the_files_of_a_model_are_uploaded(api: Any, client: Client, model: Path) -> None:
    base = {
        "id": "m", "created_at": 1, "status": "decomposing", "error": None, "is_default": True, "files": [],
        "cluster": "h100", "hub_id": None, "hub_revision": None, "weights_fingerprint": None,
        "basis_fingerprint": None, "details": None,
    }  # fmt: skip
    api.add("POST", "/v1/base_models", base)
    api.add("POST", "/v1/base_models/m/complete", base)
    sent = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in sent:
        api.add("PUT", f"/v1/base_models/m/files/{name}", base)
    skipped = []
    client.base_models.add_directory("m", model, cluster="h100", started=lambda files: skipped.extend(files.skipped))
    assert [request.url.path.split("/")[-1] for request in api.requests] == ["base_models", *sent, "complete"]
    assert json.loads(api.requests[0].content) == {"name": "m", "cluster": "h100"}
    assert api.requests[2].content == b"weights"
    assert api.requests[2].headers["content-length"] == "7"
    assert skipped == [".gitattributes", "training_args.bin"]


@pytest.mark.parametrize(
    "missing,message",
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("tokenizer_config.json", "--chat-template"),
    ],
)
def test_a_directory_that_lacks_something_is_refused_before_anything_is_sent(
    missing: str, message: str, api: Any, client: Client, model: Path
) -> None:
    (model / missing).unlink()
    with pytest.raises(InvalidRequestError, match=message):
        client.base_models.add_directory("m", model)
    assert api.requests == []


def test_pickled_weights_are_refused_with_a_way_out(client: Client, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="pytorch_model.bin.*safe_serialization"):
        client.base_models.add_directory("m", model)


def test_a_chat_template_given_by_hand_is_uploaded_as_the_models_own(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    template = tmp_path / "mine.txt"
    template.write_text("{{ messages }}")
    assert model_directory.model_files(model, template).uploads["chat_template.jinja"] == template


def test_the_rows_of_an_evaluation_come_one_by_one(api: Any, client: Client) -> None:
    api.add("GET", "/v1/evaluations/eval-1/rows", b'{"line": 1, "reward": 1.0}\n{"line": 2, "reward": 0.0}\n')
    assert [row["line"] for row in client.evaluations.rows("eval-1")] == [1, 2]


def test_an_evaluation_is_waited_for_until_the_others_of_its_suite_have_ended(api: Any, client: Client) -> None:
    running = api_examples.EVALUATION | {"others": [api_examples.EVALUATION["others"][0] | {"status": "running"}]}
    answers = iter([running, running, api_examples.EVALUATION])
    api.add("GET", "/v1/evaluations/eval-1", lambda _request: next(answers))
    assert client.evaluations.wait_settled("eval-1").others[0].status == "succeeded"
    assert next(answers, None) is None


def test_the_feedback_on_one_expert_is_read_page_after_page(api: Any, client: Client) -> None:
    pieces = [api_examples.FEEDBACK | {"id": f"fb-{number}"} for number in range(3)]

    answers = iter((api_double.page(pieces[:2], has_more=True), api_double.page(pieces[2:])))
    api.add("GET", "/v1/feedback", lambda _request: next(answers))
    assert [piece.id for piece in client.feedback.list("default.sorting")] == ["fb-0", "fb-1", "fb-2"]
    asked = [dict(request.url.params) for request in api.requests]
    assert asked == [{"model": "default.sorting", "limit": "100", **cursor} for cursor in ({}, {"after": "fb-1"})]
