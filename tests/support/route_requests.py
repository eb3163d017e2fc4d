"""A request to every route that would be understood: what stands in its path, and what its body is."""

from typing import Any

from fastapi import FastAPI
from suites import GRADER, METHOD

PLACES = {
    "against": "main.summer@v1",
    "alias": "prod",
    "expert": "main.summer",
    "promotion_id": "promo-0",
    "schedule_id": "sched-0",
    "checkpoint_id": "ftckpt-0",
    "dataset_id": "clsd-0",
    "delivery_id": "whd-0",
    "endpoint_id": "whe-0",
    "evaluation_id": "eval-0",
    "export_id": "exp-0",
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
    "request_id": "areq-0",
    "subject": "main.summer@v1",
    "version": "main.support@v1",
    "project_id": "proj-0",
    "user_id": "user-0",
    "account_id": "svc-0",
    "key_id": "key-0",
    "invite_id": "invite-0",
    "org_id": "org-0",
}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
SCHEDULE = {
    "name": "weekly",
    "dataset": "summer",
    "training": {"model": "tiny", "method": METHOD},
    "cron": "0 3 * * 1",
}
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
    ("get", "/v1/organization/costs"): {"params": {"start_time": 0}},
    ("get", "/v1/organization/usage/workers"): {"params": {"start_time": 0}},
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
    ("post", "/v1/expert_exports"): {"json": {"model": "main.summer@v1", "format": "lora"}},
    ("patch", "/v1/experts/{name}"): {"json": {"archived": True}},
    ("put", "/v1/experts/{name}/card"): {"json": {"text": "x"}},
    ("put", "/v1/experts/{name}/visibility"): {"json": {"visibility": "organization"}},
    ("post", "/v1/grants"): {"json": {"expert": "main.summer", "organization": "globex", "permission": "use"}},
    ("post", "/v1/grants/{grant_id}/decision"): {"json": {"approve": True}},
    ("post", "/v1/access_requests"): {"json": {"expert": "acme.main.summer", "permission": "use"}},
    ("put", "/v1/experts/{name}/state"): {"json": {"state": "ready"}},
    ("post", "/v1/experts/{expert}/aliases/{alias}/rollback"): {"json": {}},
    ("post", "/v1/releases/{release}/aliases/{alias}/rollback"): {"json": {}},
    ("put", "/v1/protected_aliases/{alias}"): {"json": {}},
    ("post", "/v1/alias_requests/{request_id}/decision"): {"json": {"decision": "approve"}},
    ("post", "/v1/promotions"): {"json": {"model": "main.summer@v1", "suites": [{"file": "file-0", "grader": GRADER}]}},
    ("post", "/v1/schedules"): {"json": SCHEDULE},
    ("put", "/v1/schedules/{schedule_id}"): {"json": SCHEDULE},
    ("patch", "/v1/schedules/{schedule_id}"): {"json": {"overlap": "allow"}},
    ("put", "/v1/base_models/{name}/files/{filename}"): {"content": b"x"},
    ("post", "/v1/webhook_endpoints"): {"json": WEBHOOK},
    ("post", "/v1/webhook_endpoints/{endpoint_id}"): {"json": {"name": "new"}},
    ("post", "/v1/organization/projects"): {"json": {"name": "physics"}},
    ("post", "/v1/organization/projects/{project_id}/users"): {"json": {"email": "a@b.org", "role": "viewer"}},
    ("post", "/v1/organization/projects/{project_id}/users/{user_id}"): {"json": {"role": "viewer"}},
    ("post", "/v1/organization/projects/{project_id}/service_accounts"): {"json": {"name": "ci"}},
    ("post", "/v1/organization/projects/{project_id}/service_accounts/{account_id}"): {"json": {"name": "ci"}},
    ("post", "/v1/organization/projects/{project_id}/service_accounts/{account_id}/api_keys"): {"json": {"name": "x"}},
    ("post", "/v1/organization/projects/{project_id}/api_keys"): {"json": {"name": "x", "scopes": ["files:read"]}},
    ("post", "/v1/organization/projects/{project_id}/api_keys/{key_id}"): {"json": {"expires_in_seconds": 60}},
    ("post", "/v1/organization/users/{user_id}"): {"json": {"role": "viewer"}},
    ("post", "/v1/organization/invites"): {"json": {"email": "a@b.org", "role": "viewer"}},
    ("post", "/v1/organization/admin_api_keys"): {"json": {"name": "x"}},
    ("post", "/v1/platform/organizations"): {"json": {"name": "initech", "owner": "a@b.org"}},
    ("post", "/v1/platform/organizations/{org_id}/owners"): {"json": {"email": "a@b.org"}},
    ("post", "/v1/login"): {"json": {"id_token": "x"}},
    ("post", "/v1/invitations/accept"): {"json": {"token": "x", "name": "x"}},
    ("post", "/v1/webhook_endpoints/{endpoint_id}/test"): {"json": {"event_type": "fine_tuning.job.failed"}},
}
OPEN = {"/healthz", "/readyz"}
"""What nobody needs a key for."""
KEYLESS = {"/v1/invitations/accept", "/v1/login"}
"""What is asked with something else than a key."""
ANY_KEY = {"/v1/me", "/v1/logout"}
"""What every key may do. The latter ends the key."""


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, in small letters."""
    return [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]


def at(path: str, **places: str) -> str:
    """A path with something in its places, of which nothing is there."""
    return path.format_map(PLACES | places)
