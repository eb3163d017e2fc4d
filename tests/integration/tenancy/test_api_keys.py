"""API keys prove who is asking, until they are revoked or expire, and say what their caller may do."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, select, text

from zhub.database.sessions import system_session
from zhub.errors import AuthenticationError, InvalidRequestError, PermissionDeniedError
from zhub.models import ApiKey
from zhub.tenancy import keys
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES


def test_a_key_proves_who_is_asking(api_engine: Engine, make_key: Callable[..., str], secret_key: str) -> None:
    caller = keys.authenticate(api_engine, make_key("acme", "maths", scopes=("chat",)), secret_key=secret_key)
    assert (caller.project, caller.scopes) == ("maths", frozenset({"chat"}))


def test_a_key_is_stored_nowhere(make_key: Callable[..., str], system_engine: Engine) -> None:
    secret = make_key().split("_", 2)[2]  # it may have a _ of its own
    with system_engine.connect() as connection:
        rows = connection.scalars(text("SELECT to_jsonb(api_keys)::text FROM api_keys")).all()
    assert len(rows) == 1 and secret not in rows[0]


def test_the_stored_hash_is_keyed_with_the_secret(
    make_key: Callable[..., str], system_engine: Engine, secret_key: str
) -> None:
    key = make_key()
    with system_session(system_engine) as session:
        stored = session.scalars(select(ApiKey.hash)).one()
    # HMAC as RFC 2104 defines it: H((K ^ opad) || H((K ^ ipad) || text)), with K padded to a block of 64 bytes.
    block = secret_key.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + key.encode()).digest()
    assert stored == hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


def test_a_key_is_worth_nothing_under_another_secret(api_engine: Engine, make_key: Callable[..., str]) -> None:
    with pytest.raises(AuthenticationError):
        keys.authenticate(api_engine, make_key(), secret_key="f" * 64)


def test_one_wrong_character_is_a_wrong_key(api_engine: Engine, make_key: Callable[..., str], secret_key: str) -> None:
    key = make_key()
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    with pytest.raises(AuthenticationError, match="is not known"):
        keys.authenticate(api_engine, wrong, secret_key=secret_key)


def test_a_revoked_key_is_refused_in_the_words_for_an_unknown_one(
    api_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key(revoked_at=datetime.now(UTC))
    unknown = f"zhub_{'0' * 12}_{'a' * 43}"
    messages = []
    for tried in (key, unknown):
        with pytest.raises(AuthenticationError) as refused:
            keys.authenticate(api_engine, tried, secret_key=secret_key)
        messages.append(str(refused.value).replace(tried[:17], "zhub_…"))
    assert messages[0] == messages[1]


def test_an_expired_key_is_refused_with_its_date(
    api_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key(expires_at=datetime(2024, 2, 29, 12, tzinfo=UTC))
    with pytest.raises(AuthenticationError, match="expired on 2024-02-29"):
        keys.authenticate(api_engine, key, secret_key=secret_key)


def test_a_key_that_expires_later_is_good(api_engine: Engine, make_key: Callable[..., str], secret_key: str) -> None:
    key = make_key(expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert keys.authenticate(api_engine, key, secret_key=secret_key).project == "main"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "zhub_",
        "sk-" + "a" * 48,
        f"zhub_{'0' * 11}_{'a' * 43}",
        f"zhub_{'0' * 12}_{'a' * 42}",
        f"zhub_{'0' * 12}_{'a' * 44}",
        f"zhub_{'A' * 12}_{'a' * 43}",
        f"zhub_{'0' * 12}_{'a' * 43}\n",
        f"zhub_{'0' * 12}_{'é' * 43}",
        f"zhub_{'0' * 12}_{'a' * 42}\0",
        f"zhub_{'٣' * 12}_{'a' * 43}",
    ],
)
def test_what_cannot_be_a_key_is_refused_by_its_looks(api_engine: Engine, key: str, secret_key: str) -> None:
    with pytest.raises(AuthenticationError, match="should look like"):
        keys.authenticate(api_engine, key, secret_key=secret_key)


def test_two_keys_are_never_alike(make_key: Callable[..., str]) -> None:
    assert len({make_key() for _ in range(20)}) == 20


def test_a_key_cannot_be_made_with_a_scope_that_does_not_exist(make_key: Callable[..., str]) -> None:
    with pytest.raises(InvalidRequestError, match="jobs:delete"):
        make_key(scopes=("chat", "jobs:delete"))


@pytest.mark.parametrize("scope", SCOPES)
def test_a_caller_may_do_what_its_scopes_say(make_caller: Callable[..., Caller], scope: str) -> None:
    caller = make_caller(scopes=(scope,))
    caller.require(scope)
    for other in set(SCOPES) - {scope}:
        with pytest.raises(PermissionDeniedError, match=other):
            caller.require(other)


def test_the_last_use_of_a_key_is_noted_at_most_once_a_minute(
    api_engine: Engine, system_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key()
    noted = []
    for _ in range(2):
        keys.authenticate(api_engine, key, secret_key=secret_key)
        with system_session(system_engine) as session:
            noted.append(session.scalars(select(ApiKey.last_used_at)).one())
    assert noted[0] is not None and noted[0] == noted[1]
