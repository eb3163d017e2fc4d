"""A small OpenID provider on a port of its own: discovery, keys, the device authorization grant, real signatures."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID = "zhub-cli"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class OpenIdProvider:
    """What it answers tests may change between requests."""

    def __init__(self) -> None:
        self.issuer = ""
        self.key = RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
        self.fetched: list[str] = []
        self.person: dict[str, Any] = {
            "sub": "alice-1",
            "email": "alice@acme.org",
            "email_verified": True,
            "name": "Alice",
        }
        self.pending: list[str] = []
        """How the next questions for a token are refused, one after the other."""
        self.interval_s = 0

    def rotate_key(self) -> None:
        """Sign with another key from now on, and publish it alone."""
        number = str(int(self.key.kid or 0) + 1)
        self.key = RSAKey.generate_key(2048, {"kid": number, "use": "sig", "alg": "RS256"})

    def id_token(self, *, key: Any = None, header: dict[str, str] | None = None, **claims: Any) -> str:
        """A token for the person; what is None is left out of it."""
        now = int(time.time())
        given = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, **self.person, **claims}
        present = {name: value for name, value in given.items() if value is not None}
        signed = header or {"alg": "RS256", "kid": str(self.key.kid)}
        return jwt.encode(signed, present, key or self.key, algorithms=["RS256", "HS256", "none"])

    def answer(self, method: str, path: str, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        self.fetched.append(path)
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.issuer,
                "jwks_uri": f"{self.issuer}/keys",
                "token_endpoint": f"{self.issuer}/token",
                "device_authorization_endpoint": f"{self.issuer}/device",
            }
        if path == "/keys":
            return 200, {"keys": [self.key.as_dict(private=False)]}
        if path == "/device" and form.get("client_id") == [CLIENT_ID]:
            return 200, {
                "device_code": "d",
                "user_code": "ABCD-EFGH",
                "verification_uri": f"{self.issuer}/activate",
                "expires_in": 60,
                "interval": self.interval_s,
            }
        if path == "/token" and form.get("grant_type") == [DEVICE_GRANT] and form.get("device_code") == ["d"]:
            if self.pending:
                return 400, {"error": self.pending.pop(0)}
            return 200, {"access_token": "a", "token_type": "Bearer", "id_token": self.id_token()}
        return 400, {"error": "invalid_request"}


@contextmanager
def served_provider() -> Iterator[OpenIdProvider]:
    """The provider on a loopback port."""
    provider = OpenIdProvider()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers.get("content-length") or 0)).decode())
            status, body = provider.answer(self.command, self.path, form)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *_arguments: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        provider.issuer = f"http://127.0.0.1:{server.server_port}"
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
