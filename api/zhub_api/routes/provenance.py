"""``/v1/signing_keys`` and the signature of a version: who published what, so that anybody can verify it."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from zhub.database.sessions import tenant_session
from zhub.models import SigningKey
from zhub.registry import signing, verification, versions
from zhub.tenancy import audit
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1")


@router.get("/signing_keys", dependencies=[needs("models:read")])
def list_signing_keys(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """The public keys of the organisation, the one in use first: what its versions are verified with, offline too."""
    with tenant_session(context.engine, caller.org_id) as session:
        return page(_objects(signing.keys_of(session, caller.org_id)), has_more=False)


@router.post("/signing_keys/rotate", dependencies=[needs("organization:write")])
def rotate_signing_key(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """Sign with a new key from now on. The retired one still verifies what was published before."""
    secret_key = context.settings.require_secret_key()
    with tenant_session(context.engine, caller.org_id) as session:
        key = _objects([signing.rotate(session, caller.org_id, secret_key)])[0]
        audit.record(session, caller, "signing_key.rotated", key["id"])
        return key


@router.get("/experts/{name}/attestation", dependencies=[needs("models:read")])
def retrieve_attestation(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    """The signed statement of a version: in-toto Statement v1 with SLSA provenance, in a DSSE envelope."""
    with tenant_session(context.engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, name)
        return signing.envelope_of(session, record).model_dump()


@router.post("/experts/{name}/verify", dependencies=[needs("models:read")])
def verify_version(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    """Verify a version's signature and the files that the store has of it, and mark on it what is wrong.

    Of a file of more than 64 MiB only the size is looked at.
    """
    secret_key = context.settings.require_secret_key()
    verified = verification.verify(context.engine, context.store, caller, name, secret_key)
    return {
        "id": verified.name,
        "object": "expert.verification",
        "verified": not verified.problems,
        "signed": verified.signed,
        "files": [{"name": file, "state": state} for file, state in sorted(verified.files.items())],
        "problems": verified.problems,
    }


def _objects(keys: Sequence[SigningKey]) -> list[dict[str, Any]]:
    return [
        {
            "id": key.key_id,
            "object": "signing_key",
            "created_at": int(key.created_at.timestamp()),
            "key_id": key.key_id,
            "public_key": key.public_key,
            "algorithm": "ed25519",
            "retired_at": key.retired_at.isoformat() if key.retired_at else None,
        }
        for key in keys
    ]
