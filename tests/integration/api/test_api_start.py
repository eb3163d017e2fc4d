"""What API and scheduler ask of their surroundings before they start, and in which words."""

import pytest
from pydantic import SecretStr

from zhub import scheduler
from zhub.errors import InvalidRequestError, UnavailableError
from zhub.process.config import Settings
from zhub_api.app import create_app


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_the_api_refuses_to_start_without_a_long_secret(settings: Settings, secret: str) -> None:
    with pytest.raises(InvalidRequestError, match="ZHUB_SECRET_KEY"):
        create_app(settings.model_copy(update={"secret_key": SecretStr(secret)}))


def test_the_scheduler_refuses_to_start_where_it_could_sign_no_webhook(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZHUB_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("ZHUB_STORE_URL", settings.store_url)
    monkeypatch.delenv("ZHUB_SECRET_KEY", raising=False)
    with pytest.raises(SystemExit, match="ZHUB_SECRET_KEY .* the secrets of webhooks"):
        scheduler.main()


def test_the_api_says_in_a_sentence_that_its_database_is_away(settings: Settings) -> None:
    with pytest.raises(UnavailableError, match="database"):
        create_app(settings.model_copy(update={"database_url": "postgresql://zhub@127.0.0.1:9/zhub"}))


def test_the_api_refuses_a_store_of_an_unknown_kind(settings: Settings) -> None:
    with pytest.raises(InvalidRequestError, match="ZHUB_STORE_URL"):
        create_app(settings.model_copy(update={"store_url": "ftp://host/path"}))
