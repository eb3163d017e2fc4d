"""People log in by what an OpenID provider proves of them. The provider is a real one, on a port of its own."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from api_requests import raw
from fastapi import FastAPI
from joserfc.jwk import RSAKey
from openid_provider import CLIENT_ID, OpenIdProvider, served_provider
from pydantic import ValidationError

from zhub.process.config import Settings
from zhub_api.app import create_app


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with served_provider() as made:
        yield made


@pytest.fixture
def app(settings: Settings, provider: OpenIdProvider) -> Iterator[FastAPI]:
    of_provider = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT_ID}
    made = create_app(settings.model_copy(update=of_provider))
    yield made
    made.state.context.engine.dispose()


def log_in(api_url: str, id_token: str, **place: str) -> Any:
    return raw(api_url, None, "POST", "/v1/login", json={"id_token": id_token} | place)


def test_a_member_logs_in_by_a_verified_address_and_then_by_who_they_are(
    api_url: str, provider: OpenIdProvider, make_member: Callable[..., str]
) -> None:
    make_member("developer", email="alice@acme.org")
    first = log_in(api_url, provider.id_token()).json()
    me = raw(api_url, first["api_key"]["value"], "GET", "/v1/me").json()
    assert (me["user"]["email"], me["user"]["role"], me["project"]["name"]) == ("alice@acme.org", "developer", "main")
    assert time.time() < first["api_key"]["expires_at"] <= time.time() + 12 * 3600 + 5
    again = log_in(api_url, provider.id_token(email="alice@married.org")).json()
    assert again["user"]["id"] == first["user"]["id"]


def test_who_is_invited_becomes_a_member_by_the_first_login(
    api_url: str, provider: OpenIdProvider, open_admin: Callable[[str], Any], make_member: Callable[..., str]
) -> None:
    admin = open_admin(make_member("owner"))
    invitation = admin.invites.create(email="alice@acme.org", role="admin")
    user = log_in(api_url, provider.id_token()).json()["user"]
    assert (user["role"], user["name"]) == ("admin", "Alice")
    assert admin.invites.retrieve(invitation.id).status == "accepted"


@pytest.mark.parametrize("claims", [{"email_verified": False}, {"email_verified": None}, {"email": None}])
def test_an_address_that_is_not_verified_is_nobodys(
    api_url: str, provider: OpenIdProvider, make_member: Callable[..., str], claims: dict[str, Any]
) -> None:
    make_member("owner", email="alice@acme.org")
    answer = log_in(api_url, provider.id_token(**claims))
    assert answer.status_code == 403 and "Ask an admin for an invitation" in answer.json()["error"]["message"]


def test_who_is_linked_already_is_not_somebody_else_with_the_same_address(
    api_url: str, provider: OpenIdProvider, make_member: Callable[..., str]
) -> None:
    make_member("owner", email="alice@acme.org")
    assert log_in(api_url, provider.id_token()).status_code == 200
    assert log_in(api_url, provider.id_token(sub="mallory-1")).status_code == 403


def test_of_several_organisations_one_is_named(
    api_url: str, provider: OpenIdProvider, make_member: Callable[..., str]
) -> None:
    for organization in ("acme", "globex"):
        make_member("viewer", organization=organization, email="alice@acme.org")
    answer = log_in(api_url, provider.id_token())
    assert answer.status_code == 409 and "acme, globex" in answer.json()["error"]["message"]
    done = log_in(api_url, provider.id_token(), organization="globex", project="main").json()
    assert done["organization"] == "globex"


def test_a_project_without_a_role_in_it_is_not_logged_in_to(
    api_url: str, provider: OpenIdProvider, make_key: Callable[..., str], make_member: Callable[..., str]
) -> None:
    make_key("acme", "secret")
    make_member("member", "developer", email="alice@acme.org")
    assert log_in(api_url, provider.id_token(), project="secret").status_code == 404
    assert log_in(api_url, provider.id_token(), project="main").status_code == 200


def test_who_was_removed_does_not_log_in(
    api_url: str, provider: OpenIdProvider, open_admin: Callable[[str], Any], make_member: Callable[..., str]
) -> None:
    admin = open_admin(make_member("owner"))
    make_member("viewer", email="alice@acme.org")
    user = log_in(api_url, provider.id_token()).json()["user"]
    admin.users.delete(user["id"])
    assert log_in(api_url, provider.id_token()).status_code == 403


def signed_by_hand(header: dict[str, str], payload: str, secret: bytes) -> str:
    """A token that no library makes."""
    signed = f"{base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip('=')}.{payload}"
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def bad_tokens(provider: OpenIdProvider) -> dict[str, str]:
    now = int(time.time())
    public = provider.key.as_pem(private=False)
    header, payload, _signature = provider.id_token().split(".")
    return {
        "another issuer's": provider.id_token(iss="https://evil.example"),
        "for another client": provider.id_token(aud="other"),
        "for several clients, of which another asked": provider.id_token(aud=[CLIENT_ID, "other"], azp="other"),
        "expired": provider.id_token(exp=now - 120),
        "issued long ago": provider.id_token(iat=now - 3600),
        "issued later": provider.id_token(iat=now + 3600),
        "without an end": provider.id_token(exp=None),
        "of nobody": provider.id_token(sub=None),
        "signed by another key": provider.id_token(key=RSAKey.generate_key(2048, {"kid": "1"})),
        "signed with the public key as a secret": signed_by_hand({"alg": "HS256", "kid": "1"}, payload, public),
        "not signed": f"{header}.{payload}.",
        "not signed, and says so": signed_by_hand({"alg": "none"}, payload, b"").rpartition(".")[0] + ".",
        "no token": "x",
    }


def test_a_token_that_proves_nothing_is_refused(
    api_url: str, provider: OpenIdProvider, make_member: Callable[..., str], subtests: pytest.Subtests
) -> None:
    make_member("owner", email="alice@acme.org")
    for what, token in bad_tokens(provider).items():
        with subtests.test(what):
            answer = log_in(api_url, token)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert log_in(api_url, provider.id_token()).status_code == 200


def test_a_new_key_of_the_provider_is_fetched_and_known_ones_are_kept(
    app: FastAPI, api_url: str, provider: OpenIdProvider, make_member: Callable[..., str]
) -> None:
    make_member("owner", email="alice@acme.org")
    moment = [0.0]
    app.state.provider._clock = lambda: moment[0]
    for _ in range(3):
        assert log_in(api_url, provider.id_token()).status_code == 200
    assert provider.fetched.count("/keys") == 1
    provider.rotate_key()
    moment[0] = 60.0
    assert log_in(api_url, provider.id_token()).status_code == 200
    assert provider.fetched.count("/keys") == 2
    other = RSAKey.generate_key(2048, {"kid": "unknown"})
    for _ in range(3):
        answer = log_in(api_url, provider.id_token(key=other, header={"alg": "RS256", "kid": "unknown"}))
        assert answer.status_code == 401
    assert provider.fetched.count("/keys") == 2


def test_a_provider_that_calls_itself_otherwise_is_refused(
    api_url: str, provider: OpenIdProvider, make_member: Callable[..., str]
) -> None:
    token = provider.id_token()
    provider.issuer += "/"
    answer = log_in(api_url, token)
    assert answer.status_code == 503 and "ZHUB_OIDC_ISSUER" in answer.json()["error"]["message"]


def test_who_logs_out_has_no_key(
    api_url: str, provider: OpenIdProvider, make_member: Callable[..., str], make_key: Callable[..., str]
) -> None:
    make_member("owner", email="alice@acme.org")
    key = log_in(api_url, provider.id_token()).json()["api_key"]["value"]
    assert raw(api_url, key, "POST", "/v1/logout").status_code == 200
    assert raw(api_url, key, "GET", "/v1/me").status_code == 401
    assert raw(api_url, make_key(), "POST", "/v1/logout").status_code == 400


def test_where_nobody_can_log_in_the_answer_says_so(serve: Callable[[Settings], str], settings: Settings) -> None:
    answer = raw(serve(settings), None, "GET", "/v1/login")
    assert answer.status_code == 404 and "has set none" in answer.json()["error"]["message"]


def test_a_refused_login_is_in_the_log_of_the_process(
    api_url: str, provider: OpenIdProvider, caplog: pytest.LogCaptureFixture
) -> None:
    assert log_in(api_url, provider.id_token()).status_code == 403
    (record,) = [record for record in caplog.records if getattr(record, "action", None) == "login_refused"]
    assert "127.0.0.1" in record.getMessage() and "alice@acme.org" in record.getMessage()


def test_an_issuer_without_a_client_is_refused_at_the_start(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="belong together"):
        Settings(**settings.model_dump() | {"oidc_issuer": "https://id.acme.org"})
