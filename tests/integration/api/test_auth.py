"""Who may ask: every route wants a key and a scope, and shows nothing of other projects."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import raw, refused
from fastapi import FastAPI
from sqlalchemy import Engine
from storing import store_one
from suites import GRADER, METHOD

from zhub.manifest import MANIFEST_FILE
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
OpenClient = Callable[..., openai.OpenAI]
MakeKey = Callable[..., str]
PLACES = {
    "alias": "prod",
    "expert": "main.summer",
    "promotion_id": "promo-0",
    "schedule_id": "sched-0",
    "checkpoint_id": "ftckpt-0",
    "dataset_id": "clsd-0",
    "delivery_id": "whd-0",
    "endpoint_id": "whe-0",
    "evaluation_id": "eval-0",
    "completion_id": "chatcmpl-0",
    "collection_id": "cds-0",
    "feedback_id": "fb-0",
    "file_id": "file-0",
    "import_id": "import-0",
    "job_id": "ftjob-0",
    "model": "tiny",
    "name": "main.summer@v1",
    "filename": "config.json",
    "grant_id": "grant-0",
    "release": "main.support",
    "version": "main.support@v1",
}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
SCHEDULE = {
    "name": "weekly",
    "dataset": "summer",
    "training": {"model": "tiny", "method": METHOD},
    "cron": "0 3 * * 1",
}
GRANT = {"expert": "main.summer", "organization": "initech", "permission": "use"}
RELEASE = {"name": "support", "strategy": "centroid", "experts": [{"model": "main.summer@v1"}]}
CLASSIFICATION = {"name": "which", "experts": ["main.summer@v1"]}
GRADERS = "/v1/fine_tuning/alpha/graders"
WEBHOOK = {"url": "https://example.com/hook", "event_types": ["fine_tuning.job.succeeded"]}
LORA = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "/data/tiny"}'
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/files"): {"data": {"purpose": "fine-tune"}, "files": {"file": b"x"}},
    ("post", "/v1/files/{file_id}/token_counts"): {"json": {"model": "tiny"}},
    ("post", "/v1/fine_tuning/jobs"): {"json": {"model": "tiny", "training_file": "file-0"}},
    ("post", "/v1/fine_tuning/jobs/estimate"): {"json": {"model": "tiny", "training_file": "file-0"}},
    ("patch", "/v1/fine_tuning/jobs/{job_id}"): {"json": {"description": "x"}},
    ("post", f"{GRADERS}/validate"): {"json": {"grader": GRADER}},
    ("post", f"{GRADERS}/run"): {"json": {"grader": GRADER, "model_sample": "x"}},
    ("post", "/v1/chat/completions"): {"json": CHAT},
    ("get", "/v1/organization/usage/completions"): {"params": {"start_time": 0}},
    ("post", "/v1/chat/completions/{completion_id}"): {"json": {"metadata": {"a": "b"}}},
    ("post", "/v1/chat/completions/{completion_id}/feedback"): {"json": {"score": 1}},
    ("post", "/v1/stored_completions/datasets"): {"json": {"dataset": "liked"}},
    ("post", "/v1/stored_completions/settings"): {"json": {"enabled": True}},
    ("post", "/v1/completions"): {"json": {"model": "tiny", "prompt": "x"}},
    ("post", "/v1/embeddings"): {"json": {"model": "tiny", "input": "x"}},
    ("post", "/v1/evaluations"): {"json": {"model": "tiny", "file": "file-0", "grader": GRADER}},
    ("post", "/v1/base_models"): {"json": {"name": "new"}},
    ("post", "/v1/feedback"): {"json": CHAT | {"completion": "y", "score": 1}},
    ("put", "/v1/experts/{expert}/aliases/{alias}"): {"json": {"version": "main.summer@v1"}},
    ("put", "/v1/releases/{release}/aliases/{alias}"): {"json": {"version": "main.support@v1"}},
    ("put", "/v1/releases/{release}/aliases/{alias}/shadow"): {"json": {"version": "main.support@v1"}},
    ("post", "/v1/releases"): {"json": RELEASE},
    ("post", "/v1/classification_datasets"): {"json": CLASSIFICATION},
    ("post", "/v1/expert_imports"): {
        "data": {"name": "moved", "base_model": "tiny"},
        "files": [("files", ("adapter_config.json", LORA)), ("files", ("adapter_model.safetensors", b"weights"))],
    },
    ("patch", "/v1/experts/{name}"): {"json": {"archived": True}},
    ("put", "/v1/experts/{name}/card"): {"json": {"text": "x"}},
    ("put", "/v1/experts/{name}/visibility"): {"json": {"visibility": "organization"}},
    ("post", "/v1/grants"): {"json": {"expert": "main.summer", "organization": "globex", "permission": "use"}},
    ("post", "/v1/grants/{grant_id}/decision"): {"json": {"approve": True}},
    ("post", "/v1/access_requests"): {"json": {"expert": "acme.main.summer", "permission": "use"}},
    ("post", "/v1/promotions"): {"json": {"model": "main.summer@v1", "suites": [{"file": "file-0", "grader": GRADER}]}},
    ("post", "/v1/schedules"): {"json": SCHEDULE},
    ("put", "/v1/schedules/{schedule_id}"): {"json": SCHEDULE},
    ("patch", "/v1/schedules/{schedule_id}"): {"json": {"overlap": "allow"}},
    ("put", "/v1/base_models/{name}/files/{filename}"): {"content": b"x"},
    ("post", "/v1/webhook_endpoints"): {"json": WEBHOOK},
    ("post", "/v1/webhook_endpoints/{endpoint_id}"): {"json": {"name": "new"}},
    ("post", "/v1/webhook_endpoints/{endpoint_id}/test"): {"json": {"event_type": "fine_tuning.job.failed"}},
}
OPEN = {"/healthz", "/readyz"}
# The version of these tests has no such file.
OWN_ANSWERS = {"/v1/experts/{name}/z": 409}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    return [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]


def at(path: str) -> str:
    return path.format_map(PLACES)


def test_every_route_asks_for_a_key(app: FastAPI, api_url: str, subtests: pytest.Subtests) -> None:
    for method, path in routes(app):
        with subtests.test(route=f"{method} {path}"):
            response = raw(api_url, None, method, at(path), **BODIES.get((method, path), {}))
            assert (response.status_code == 401) == (path not in OPEN)


def test_every_route_asks_for_a_scope(app: FastAPI, api_url: str, make_key: MakeKey, subtests: pytest.Subtests) -> None:
    key = make_key(scopes=())
    for method, path in routes(app):
        if path not in OPEN:
            with subtests.test(route=f"{method} {path}"):
                response = raw(api_url, key, method, at(path), **BODIES.get((method, path), {}))
                assert (response.status_code, response.json()["error"]["code"]) == (403, "missing_scope")


def owned(client: Client, version: str, file_id: str) -> dict[str, str]:
    """Make an alias, a release with another, a promotion, a schedule and an import; return where they are."""
    client.put("/experts/main.summer/aliases/prod", body={"version": version}, cast_to=object)
    release: Any = client.post("/releases", body=RELEASE | {"experts": [{"model": version}]}, cast_to=object)
    client.put("/releases/main.support/aliases/prod", body={"version": release["id"]}, cast_to=object)
    other = RELEASE | {"experts": [{"model": version}], "strategy": "mixture"}
    shadow: Any = client.post("/releases", body=other, cast_to=object)
    client.put("/releases/main.support/aliases/prod/shadow", body={"version": shadow["id"]}, cast_to=object)
    body = {"model": version, "suites": [{"file": file_id, "grader": GRADER}]}
    promotion: Any = client.post("/promotions", body=body, cast_to=object)
    schedule: Any = client.post("/schedules", body=SCHEDULE | {"dataset": file_id}, cast_to=object)
    rows: Any = client.post("/classification_datasets", body=CLASSIFICATION | {"experts": [version]}, cast_to=object)
    imported: Any = client.post(
        "/expert_imports",
        body={"name": "moved", "base_model": "tiny"},
        files=[("files", ("adapter_config.json", LORA)), ("files", ("adapter_model.safetensors", b"weights"))],
        options={"headers": {"Content-Type": "multipart/form-data"}},
        cast_to=object,
    )
    found = {
        "import_id": imported["id"],
        "dataset_id": rows["id"],
        "expert": "main.summer",
        "alias": "prod",
        "release": "main.support",
        "version": release["id"],
    }
    grant: Any = client.post("/grants", body=GRANT, cast_to=object)
    found |= {"grant_id": grant["id"]}
    return found | {"promotion_id": promotion["id"], "schedule_id": schedule["id"]}


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_what_a_project_owns_is_not_there_for_anybody_else(
    app: FastAPI,
    api_url: str,
    make_key: MakeKey,
    checked_file: str,
    client: Client,
    publish: Callable[..., str],
    evaluate: Callable[[], str],
    caller: Caller,
    system_engine: Engine,
    subtests: pytest.Subtests,
    other: tuple[str, str],
) -> None:
    name = publish()
    make_key("initech")
    (job,) = client.fine_tuning.jobs.list()
    places = {"file_id": checked_file, "job_id": job.id, "model": name, "name": name, "filename": MANIFEST_FILE}
    places["evaluation_id"] = evaluate()
    places |= owned(client, name, checked_file)
    hook: Any = client.post("/webhook_endpoints", body=WEBHOOK, cast_to=object)
    places["endpoint_id"] = hook["id"]
    places["completion_id"] = store_one(system_engine, caller)
    made: Any = client.post("/stored_completions/datasets", body={"dataset": "liked"}, cast_to=object)
    places["collection_id"] = made["id"]
    ours, theirs = make_key(), make_key(*other)
    # Base models belong to the platform, and their decomposition to who added them.
    shared = {"/v1/base_models/{name}", "/v1/base_models/{name}/queue"}
    for method, path in routes(app):
        if "{" in path and method == "get" and path not in shared:
            with subtests.test(route=path):
                url = path.format_map(places)
                statuses = [raw(api_url, key, "GET", url).status_code for key in (ours, theirs)]
                assert statuses == [OWN_ANSWERS.get(path, 200), 404]


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_nobody_else_can_change_what_a_project_owns(
    open_client: OpenClient, make_key: MakeKey, train: Callable[..., Any], checked_file: str, other: tuple[str, str]
) -> None:
    stranger = open_client(make_key(*other))
    job = train()
    for call in (
        lambda: stranger.fine_tuning.jobs.cancel(job.id),
        lambda: stranger.fine_tuning.jobs.pause(job.id),
        lambda: stranger.fine_tuning.jobs.resume(job.id),
        lambda: stranger.files.delete(checked_file),
    ):
        assert refused(call).status_code == 404


def test_nobody_else_can_train_on_a_projects_file(
    open_client: OpenClient, make_key: MakeKey, checked_file: str
) -> None:
    stranger = open_client(make_key("globex"))
    error = refused(lambda: stranger.fine_tuning.jobs.create(model="tiny", training_file=checked_file, method=METHOD))
    assert error.code == "file_not_found"


def test_lists_show_nothing_of_others(open_client: OpenClient, make_key: MakeKey, publish: Callable[..., str]) -> None:
    name = publish()
    stranger = open_client(make_key("globex"))
    listed = [*stranger.files.list(), *stranger.fine_tuning.jobs.list()]
    assert listed == [] and name not in [model.id for model in stranger.models.list()]


def test_a_wrong_key_is_an_authentication_error(open_client: OpenClient) -> None:
    with pytest.raises(openai.AuthenticationError):
        open_client("sk-nothing").files.list()


def test_a_missing_scope_is_named(open_client: OpenClient, make_key: MakeKey) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="files:read"):
        open_client(make_key(scopes=("chat",))).files.list()
