"""The secret key that keys the hashes of API keys can be changed, and every key stays valid."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, update

from zhub.database.sessions import system_session
from zhub.errors import AuthenticationError
from zhub.models import ApiKey
from zhub.tenancy import keys

NEW = "n" * 64


def stored(system_engine: Engine) -> tuple[str, str | None]:
    with system_session(system_engine) as session:
        row = session.scalars(select(ApiKey)).one()
        return row.hash, row.pepper


def test_a_key_of_a_former_secret_is_valid_and_hashed_anew(
    api_engine: Engine, system_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key()
    keys.authenticate(api_engine, key, secret_key=NEW, former_secret_keys=[secret_key])
    assert stored(system_engine) == (keys.hash_key(key, NEW), keys.pepper_of(NEW))
    assert keys.authenticate(api_engine, key, secret_key=NEW).project == "main"


def test_a_key_of_a_release_that_named_no_pepper_is_valid(
    api_engine: Engine, system_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key()
    with system_session(system_engine) as session:
        session.execute(update(ApiKey).values(pepper=None))
    keys.authenticate(api_engine, key, secret_key=secret_key)
    assert stored(system_engine)[1] is None
    keys.authenticate(api_engine, key, secret_key=NEW, former_secret_keys=["o" * 64, secret_key])
    assert stored(system_engine) == (keys.hash_key(key, NEW), keys.pepper_of(NEW))


def test_a_key_of_a_secret_that_was_given_up_is_refused(api_engine: Engine, make_key: Callable[..., str]) -> None:
    with pytest.raises(AuthenticationError):
        keys.authenticate(api_engine, make_key(), secret_key=NEW, former_secret_keys=["o" * 64])
