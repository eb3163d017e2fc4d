"""What the API asks of its surroundings before it starts, and in which words."""

import pytest
from pydantic import SecretStr

from zhub.config import Settings
from zhub.errors import InvalidRequestError, UnavailableError
from zhub_api.app import create_app


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_the_api_refuses_to_start_without_a_long_secret(settings: Settings, secret: str) -> None:
    with pytest.raises(InvalidRequestError, match="ZHUB_SECRET_KEY"):
        create_app(settings.model_copy(update={"secret_key": SecretStr(secret)}))


def test_the_api_says_in_a_sentence_that_its_database_is_away(settings: Settings) -> None:
    with pytest.raises(UnavailableError, match="database"):
        create_app(settings.model_copy(update={"database_url": "postgresql://zhub@127.0.0.1:9/zhub"}))


def test_the_api_refuses_a_store_of_an_unknown_kind(settings: Settings) -> None:
    with pytest.raises(InvalidRequestError, match="ZHUB_STORE_URL"):
        create_app(settings.model_copy(update={"store_url": "ftp://host/path"}))
