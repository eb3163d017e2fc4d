"""Logging in where there is no browser: the device authorization grant of an OpenID provider (RFC 8628)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from zhub.errors import AuthenticationError, UnavailableError

DISCOVERY = "/.well-known/openid-configuration"
GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SCOPE = "openid email profile"
TIMEOUT_S = 10.0
DEFAULT_INTERVAL_S = 5.0
SLOWER_BY_S = 5.0  # each time that the provider asks for it


@dataclass(frozen=True)
class Device:
    """What somebody has to do in a browser of theirs: open the address, and compare or type the code."""

    address: str
    code: str
    lasts_s: float


def id_token_by_device(
    issuer: str,
    client_id: str,
    show: Callable[[Device], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """The ID token of who confirms the code that ``show`` is given.

    Raises:
        AuthenticationError: they refused, or let the code expire.
        UnavailableError: the provider does not answer, or does not know this grant.
    """
    with httpx.Client(timeout=TIMEOUT_S) as http:
        metadata = _answer(http, "GET", issuer.rstrip("/") + DISCOVERY)
        endpoint = metadata.get("device_authorization_endpoint")
        if not isinstance(endpoint, str):
            raise UnavailableError(f"The OpenID provider {issuer} does not offer the device authorization grant.")
        begun = _answer(http, "POST", endpoint, client_id=client_id, scope=SCOPE)
        device = Device(
            str(begun.get("verification_uri_complete") or begun["verification_uri"]),
            str(begun["user_code"]),
            float(begun["expires_in"]),
        )
        show(device)
        interval_s, ends = float(begun.get("interval", DEFAULT_INTERVAL_S)), clock() + device.lasts_s
        while clock() < ends:
            sleep(interval_s)
            form = {"grant_type": GRANT, "device_code": begun["device_code"], "client_id": client_id}
            answer = _answer(http, "POST", str(metadata["token_endpoint"]), refusals=True, **form)
            if "id_token" in answer:
                return str(answer["id_token"])
            interval_s += _more_patience(answer)
    raise AuthenticationError("The code expired before anybody confirmed it. Run `zhub login` again.")


def _more_patience(answer: dict[str, Any]) -> float:
    """By how much to wait longer before the next question. Raises AuthenticationError where there is none."""
    error = answer.get("error")
    if error == "authorization_pending":
        return 0.0
    if error == "slow_down":
        return SLOWER_BY_S
    if error == "access_denied":
        raise AuthenticationError("The login was refused in the browser.")
    why = answer.get("error_description") or error or "it gave no ID token"
    raise AuthenticationError(f"The OpenID provider ended the login: {why}. Run `zhub login` again.")


def _answer(http: httpx.Client, method: str, url: str, *, refusals: bool = False, **form: str) -> dict[str, Any]:
    """The JSON object that is answered; with ``refusals`` also that of a status of 4xx."""
    try:
        response = http.request(method, url, data=form or None)
        if not (refusals and 400 <= response.status_code < 500):
            response.raise_for_status()
        answer = response.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise UnavailableError(f"The OpenID provider's {url} cannot be read: {exc}") from exc
    if not isinstance(answer, dict):
        raise UnavailableError(f"The OpenID provider's {url} answered with no JSON object.")
    return answer
