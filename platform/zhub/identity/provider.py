"""An OpenID provider: its addresses, its keys, and the proof of who somebody is that its ID tokens are.

Follows OpenID Connect Discovery 1.0 and Core 1.0, §3.1.3.7. Addresses and keys are fetched over HTTP and kept a while.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from zhub.errors import AuthenticationError, UnavailableError

# Signatures by a key of the provider's alone: `none`, and those by a shared secret, prove nothing.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
DISCOVERY = "/.well-known/openid-configuration"
TIMEOUT_S = 5.0
KEPT_S = 3600.0
FETCH_AGAIN_S = 30.0
"""How soon keys are fetched again for a token by one that is not known."""
LEEWAY_S = 60
MAX_AGE_S = 600
"""How long ago a token may have been issued: it is for the login that it was issued in."""
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Identity:
    """Who an issuer says somebody is. ``email``: only one that the issuer has verified."""

    issuer: str
    subject: str
    email: str | None
    name: str | None


@dataclass
class _Kept:
    value: Any
    at: float


class Provider:
    """One issuer, and the client that zhub is to it. Thread-safe."""

    def __init__(
        self,
        issuer: str,
        client_id: str,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self._http = httpx.Client(timeout=TIMEOUT_S, transport=transport)
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def metadata(self) -> dict[str, Any]:
        """The provider's addresses.

        Raises:
            UnavailableError: it does not answer, or answers for another issuer.
        """
        metadata = self._fetched(self.issuer.rstrip("/") + DISCOVERY, not_older_s=KEPT_S)
        if metadata.get("issuer") != self.issuer:
            raise UnavailableError(
                f"The OpenID provider at {self.issuer} calls itself {metadata.get('issuer')!r}. Set ZHUB_OIDC_ISSUER "
                "to that, letter by letter."
            )
        return metadata

    def verify(self, id_token: str, *, nonce: str | None = None) -> Identity:
        """Who the token proves somebody to be.

        Args:
            nonce: what the login was begun with, where it was.

        Raises:
            AuthenticationError: the token is not this issuer's, not for this client, or too old.
            UnavailableError: the provider does not answer.
        """
        try:
            token = self._decoded(id_token)
            claims = CodeIDToken(token.claims, token.header, self._expected(), {"nonce": nonce, **self._of_client()})
            claims.validate(now=int(time.time()), leeway=LEEWAY_S)
        except (JoseError, ValueError) as exc:
            raise AuthenticationError(f"The ID token proves nothing: {_reason(exc)}. Log in again.") from exc
        issued_at = token.claims["iat"]
        if not isinstance(issued_at, int | float) or issued_at < time.time() - MAX_AGE_S - LEEWAY_S:
            raise AuthenticationError(
                f"The ID token was issued more than {MAX_AGE_S // 60} minutes ago, and is for a login that is over. "
                "Log in again."
            )
        email, verified = token.claims.get("email"), token.claims.get("email_verified")
        name = token.claims.get("name")
        return Identity(
            self.issuer,
            str(token.claims["sub"]),
            email.lower() if isinstance(email, str) and verified is True else None,
            name if isinstance(name, str) else None,
        )

    def _decoded(self, id_token: str) -> jwt.Token:
        """The token, its signature checked. Keys are fetched again, though rarely, for one that is not known."""
        try:
            return jwt.decode(id_token, self._keys(KEPT_S), algorithms=ALGORITHMS)
        except (InvalidKeyIdError, ValueError):
            return jwt.decode(id_token, self._keys(FETCH_AGAIN_S), algorithms=ALGORITHMS)

    def _keys(self, not_older_s: float) -> KeySet:
        return KeySet.import_key_set(self._fetched(str(self.metadata()["jwks_uri"]), not_older_s=not_older_s))  # type: ignore[arg-type]

    def _expected(self) -> dict[str, Any]:
        return {"iss": {"essential": True, "value": self.issuer}, "aud": {"essential": True, "value": self.client_id}}

    def _of_client(self) -> dict[str, str]:
        return {"client_id": self.client_id}

    def _fetched(self, url: str, *, not_older_s: float) -> dict[str, Any]:
        with self._lock:
            kept = self._kept.get(url)
            if kept is not None and self._clock() - kept.at <= not_older_s:
                assert isinstance(kept.value, dict)
                return kept.value
            value = self._fetch(url)
            self._kept[url] = _Kept(value, self._clock())
            return value

    def _fetch(self, url: str) -> dict[str, Any]:
        try:
            with self._http.stream("GET", url) as response:
                response.raise_for_status()
                body = b""
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise ValueError(f"more than {MAX_BYTES:,} bytes")
            value = httpx.Response(200, content=body).json()
        except (httpx.HTTPError, ValueError) as exc:
            raise UnavailableError(f"The OpenID provider's {url} cannot be read: {exc}") from exc
        if not isinstance(value, dict):
            raise UnavailableError(f"The OpenID provider's {url} is no JSON object.")
        return value


def _reason(error: Exception) -> str:
    description = getattr(error, "description", None) or str(error)
    return str(description).rstrip(".") or type(error).__name__
