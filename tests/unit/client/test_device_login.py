"""Logging in by the device authorization grant, against a real provider. The clock alone is the test's."""

from collections.abc import Iterator

import pytest
from openid_provider import CLIENT_ID, OpenIdProvider, served_provider

from zhub.client.device_login import Device, id_token_by_device
from zhub.errors import AuthenticationError, UnavailableError


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with served_provider() as made:
        made.interval_s = 2
        yield made


def log_in(provider: OpenIdProvider, clock: Clock) -> tuple[str, list[Device]]:
    shown: list[Device] = []
    token = id_token_by_device(provider.issuer, CLIENT_ID, shown.append, sleep=clock.sleep, clock=lambda: clock.now)
    return token, shown


def test_who_confirms_the_code_gets_an_id_token(provider: OpenIdProvider) -> None:
    token, (device,) = log_in(provider, Clock())
    assert token.count(".") == 2
    assert (device.address, device.code) == (f"{provider.issuer}/activate", "ABCD-EFGH")


def test_questions_come_at_the_providers_pace_and_slower_when_it_says_so(provider: OpenIdProvider) -> None:
    provider.pending = ["authorization_pending", "slow_down", "authorization_pending"]
    clock = Clock()
    log_in(provider, clock)
    assert clock.slept == [2, 2, 7, 7]


def test_who_refuses_is_not_logged_in(provider: OpenIdProvider) -> None:
    provider.pending = ["authorization_pending", "access_denied"]
    with pytest.raises(AuthenticationError, match="refused in the browser"):
        log_in(provider, Clock())


def test_a_code_that_nobody_confirms_expires(provider: OpenIdProvider) -> None:
    provider.pending = ["authorization_pending"] * 100
    clock = Clock()
    with pytest.raises(AuthenticationError, match="expired before anybody confirmed it"):
        log_in(provider, clock)
    assert clock.now == 60


def test_another_error_ends_the_login_with_its_name(provider: OpenIdProvider) -> None:
    provider.pending = ["invalid_client"]
    with pytest.raises(AuthenticationError, match="invalid_client"):
        log_in(provider, Clock())


def test_a_provider_that_is_away_is_said_to_be(provider: OpenIdProvider) -> None:
    provider.issuer = "http://127.0.0.1:9"
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        log_in(provider, Clock())
