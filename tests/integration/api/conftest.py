"""A file that was checked, and the short ways to a job, a version and an evaluation of it."""

import io
import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import upload
from claims import admit_queued, claim_one
from route_requests import CLASSIFICATION, LORA, RELEASE, SCHEDULE, WEBHOOK
from sqlalchemy import Engine
from storing import store_one
from suites import GRADER, METHOD, manifest_of

from zhub.database.sessions import system_session
from zhub.datasets import files
from zhub.datasets.validation import validate
from zhub.kinds.outcomes import record_success
from zhub.manifest import MANIFEST_FILE, ROUTING_FILE, Z_FILE, FileEntry
from zhub.queue import attempts
from zhub.registry import publish as registry
from zhub.specs import ExportSpec
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
FILES = [FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, ROUTING_FILE)]


@pytest.fixture
def check_files(system_engine: Engine, store: DirectoryStore) -> Callable[[], None]:
    """Do what the workers do with every uploaded file, at once."""

    def check() -> None:
        while True:
            with system_session(system_engine) as session:
                admit_queued(session)
                claim = claim_one(session, "validate")
            if claim is None:
                return
            report = files.validation_report(validate(io.BytesIO(b"".join(store.open(claim.spec["file"]["key"])))))
            with system_session(system_engine) as session:
                job = attempts.succeed(session, claim.job_id, claim.fence)
                assert job.dataset_version_id is not None
                files.write_validation(session, job.dataset_version_id, report)

    return check


@pytest.fixture
def checked_file(client: Client, check_files: Callable[[], None], make_base_model: Callable[..., uuid.UUID]) -> str:
    """Id of a file that a job may train on, and a base model named ``tiny`` to train."""
    make_base_model(is_default=True)
    file_id: str = upload(client).id
    check_files()
    return file_id


@pytest.fixture
def train(client: Client, checked_file: str) -> Callable[..., Any]:
    """Create a fine-tuning job of the file and the base model that there are."""

    def create(**options: Any) -> Any:
        return client.fine_tuning.jobs.create(
            **({"model": "tiny", "training_file": checked_file, "method": METHOD} | options)
        )

    return create


@pytest.fixture
def publish(system_engine: Engine, store: DirectoryStore, train: Callable[..., Any]) -> Callable[..., str]:
    """Train an expert the short way; return the name of its version."""

    def make(suffix: str = "summer", **manifest_fields: Any) -> str:
        train(suffix=suffix)
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "train")
        assert claim is not None
        fields = {"recipe": "reinforcement", "files": FILES} | manifest_fields
        manifest = manifest_of(claim.job_id, fence=claim.fence, **fields)
        prefix = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}"
        store.put(f"{prefix}/{MANIFEST_FILE}", io.BytesIO(manifest.canonical()))
        with system_session(system_engine) as session:
            version = registry.publish(session, claim.job_id, claim.fence, manifest, prefix, 7)
        return f"main.{suffix}@v{version.version}"

    return make


@pytest.fixture
def evaluate(client: Client, system_engine: Engine, store: DirectoryStore, checked_file: str) -> Callable[[], str]:
    """Evaluate the base model the short way; return the evaluation's id."""

    def make() -> str:
        body = {"model": "tiny", "file": checked_file, "grader": GRADER}
        answer: Any = client.post("/evaluations", body=body, cast_to=object)
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "evaluate")
        assert claim is not None
        key = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}/rows.jsonl"
        store.put(key, io.BytesIO(b"{}\n"))
        report = {"rewards": [1.0], "parsed": [True], "pass_at_k": None, "rows_key": key}
        with system_session(system_engine) as session:
            record_success(session, claim.job_id, claim.fence, report)
        return str(answer["id"])

    return make


@pytest.fixture
def write_export(system_engine: Engine, store: DirectoryStore) -> Callable[[], ExportSpec]:
    """Do what a worker does with the export that waits; return what it was asked for."""

    def write() -> ExportSpec:
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "export")
        assert claim is not None
        prefix = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}/attempts/1"
        for name in ("a.json", "rank-8/b.bin"):
            store.put(f"{prefix}/{name}", io.BytesIO(name.encode()))
        files = [{"name": name, "size_bytes": len(name), "sha256": "0"} for name in ("a.json", "rank-8/b.bin")]
        result = {"key_prefix": prefix, "files": files, "facts": {"rank": 8}}
        with system_session(system_engine) as session:
            record_success(session, claim.job_id, claim.fence, result)
        return ExportSpec.model_validate(claim.spec)

    return write


@pytest.fixture
def exported(client: Client, publish: Callable[..., str], write_export: Callable[[], ExportSpec]) -> str:
    """Id of a finished export."""
    asked: Any = client.post("/expert_exports", body={"model": publish(), "format": "lora"}, cast_to=object)
    write_export()
    return str(asked["id"])


@pytest.fixture
def owned_places(
    client: Client,
    checked_file: str,
    publish: Callable[..., str],
    evaluate: Callable[[], str],
    caller: Caller,
    system_engine: Engine,
    make_key: Callable[..., str],
) -> dict[str, str]:
    """What acme's project ``main`` owns, one of each kind, by what the places for it in routes are called."""
    name = publish()
    (job,) = client.fine_tuning.jobs.list()
    places = {"file_id": checked_file, "job_id": job.id, "model": name, "name": name, "filename": MANIFEST_FILE}
    places["evaluation_id"] = evaluate()
    make_key("initech")  # whom something is shared with
    places |= owned(client, name, checked_file)
    hook: Any = client.post("/webhook_endpoints", body=WEBHOOK, cast_to=object)
    places["endpoint_id"] = hook["id"]
    places["completion_id"] = store_one(system_engine, caller)
    made: Any = client.post("/stored_completions/datasets", body={"dataset": "liked"}, cast_to=object)
    places["collection_id"] = made["id"]
    return places


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
    exported: Any = client.post("/expert_exports", body={"model": version, "format": "lora"}, cast_to=object)
    client.put("/protected_aliases/stable", body={}, cast_to=object)
    request: Any = client.put("/experts/main.summer/aliases/stable", body={"version": version}, cast_to=object)
    given = {"expert": "main.summer", "organization": "initech", "permission": "use"}
    grant: Any = client.post("/grants", body=given, cast_to=object)
    found = {
        "grant_id": grant["id"],
        "request_id": request["id"],
        "against": version,
        "subject": version,
        "export_id": exported["id"],
        "import_id": imported["id"],
        "dataset_id": rows["id"],
        "expert": "main.summer",
        "alias": "prod",
        "release": "main.support",
        "version": release["id"],
    }
    return found | {"promotion_id": promotion["id"], "schedule_id": schedule["id"]}
