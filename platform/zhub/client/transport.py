"""Requests to zhub's HTTP API: with the key, with retries where they are harmless, and with every failure as an error
of ours."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from zhub.errors import ApiError, InvalidRequestError, UnavailableError
from zhub.manifest import CHUNK_BYTES

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
GET_TRIES = 3
TRANSIENT_STATUSES = (429, 502, 503, 504)
FIRST_BACK_OFF_S = 0.25
EVENT_STREAM = {"accept": "text/event-stream"}
READ_TIMEOUT_S = 30.0
MAX_OUTAGE_S = 60.0  # while a job is followed; a restart of the API takes seconds
SLOW_READ_TIMEOUT_S = 900.0  # the server stores an upload, or loads a model, before it answers


class Http:
    """Requests with the key, retries of GETs, and every failure as one of our errors."""

    def __init__(self, base_url: str, api_key: str | None, transport: httpx.BaseTransport | None) -> None:
        self._http = httpx.Client(
            base_url=base_url,
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=5.0),
            transport=transport,
            # A proxy for the world outside cannot reach this machine's own addresses.
            trust_env=urlsplit(base_url).hostname not in LOOPBACK_HOSTS,
        )

    def get(self, path: str, **params: Any) -> Any:
        """GET, repeated after a broken connection or an answer with a transient status. What is None is not sent."""
        sent = {name: value for name, value in params.items() if value is not None}
        for tried in range(1, GET_TRIES + 1):
            try:
                return self._send("GET", path, params=sent)
            except (UnavailableError, ApiError) as exc:
                refused = isinstance(exc.__cause__, httpx.ConnectError)
                if tried == GET_TRIES or refused or not is_transient(exc):
                    raise
            time.sleep(FIRST_BACK_OFF_S * 2 ** (tried - 1))
        raise AssertionError("unreachable: the last try returns or raises")

    def pages(self, path: str, *, limit: int, most: int | None = None, **params: Any) -> Iterator[dict[str, Any]]:
        """The entries of a list, page after page, at most so many; a parameter that is None is not sent."""
        left = math.inf if most is None else most
        while left > 0:
            page = self.get(path, limit=int(min(limit, left)), **params)
            yield from itertools.islice(page["data"], None if most is None else int(left))
            left -= len(page["data"])
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]

    def post(self, path: str, body: Mapping[str, Any], *, read_timeout_s: float = READ_TIMEOUT_S) -> Any:
        return self._send("POST", path, json=body, timeout=httpx.Timeout(read_timeout_s, connect=5.0))

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._send("PUT", path, json=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._send("PATCH", path, json=body)

    def delete(self, path: str, **params: Any) -> Any:
        sent = {name: value for name, value in params.items() if value is not None}
        return self._send("DELETE", path, params=sent)

    def post_form(
        self, path: str, fields: Mapping[str, str], files: Mapping[str, Any] | Sequence[tuple[str, Any]]
    ) -> Any:
        return self._send("POST", path, data=fields, files=files, timeout=httpx.Timeout(SLOW_READ_TIMEOUT_S, connect=5))

    def put_file(self, path: str, source: Path, progress: Callable[[str, int], None]) -> Any:
        """PUT a file's bytes, read in pieces."""

        def pieces() -> Iterator[bytes]:
            sent = 0
            with source.open("rb") as file:
                while piece := file.read(CHUNK_BYTES):
                    yield piece
                    sent += len(piece)
                    progress(source.name, sent)

        headers = {"content-length": str(source.stat().st_size)}
        timeout = httpx.Timeout(SLOW_READ_TIMEOUT_S, connect=5.0)
        return self._send("PUT", path, content=pieces(), headers=headers, timeout=timeout)

    @contextmanager
    def stream(
        self, method: str, path: str, *, read_timeout_s: float = SLOW_READ_TIMEOUT_S, **arguments: Any
    ) -> Iterator[httpx.Response]:
        """The response with its body still to be read."""
        timeout = httpx.Timeout(read_timeout_s, connect=5.0)
        with (
            _translated(str(self._http.base_url)),
            self._http.stream(method, path, timeout=timeout, **arguments) as response,
        ):
            if response.is_error:
                response.read()
                raise _error_of(response)
            yield response

    def events(self, path: str, **params: str) -> Iterator[ServerSentEvent]:
        """GET server-sent events, one after the other. The server sends something at least every 15 seconds."""
        with self.stream("GET", path, params=params, headers=EVENT_STREAM, read_timeout_s=READ_TIMEOUT_S) as response:
            yield from read_events(response)

    def close(self) -> None:
        self._http.close()

    def _send(self, method: str, path: str, **arguments: Any) -> Any:
        with _translated(str(self._http.base_url)):
            response = self._http.request(method, path, **arguments)
        if response.is_error:
            raise _error_of(response)
        try:
            return response.json()
        except ValueError as exc:
            raise _not_zhub(response) from exc


def read_events(response: httpx.Response) -> Iterator[ServerSentEvent]:
    """The events of a stream that was requested with ``EVENT_STREAM``; an event that is cut off is left out.

    Raises:
        ApiError: the answer is no event stream, or it broke off with an error event.
    """
    try:
        for event in EventSource(response).iter_sse():
            # An id holds until the next one, so after the first id a comment, the heartbeat, comes as an empty event.
            if event.data:
                _raise_if_error(event, response)
                yield event
    except SSEError as exc:
        raise _not_zhub(response) from exc


def _raise_if_error(event: ServerSentEvent, response: httpx.Response) -> None:
    """Raise the error that a stream ends with when it breaks off: ``{"error": …}`` and nothing else."""
    if not event.data.startswith('{"error":'):
        return
    body = event.json()
    if body.keys() == {"error"}:
        raise api_error(body["error"].get("status") or 503, body, response)


def is_transient(error: UnavailableError | ApiError) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, UnavailableError) or error.status in TRANSIENT_STATUSES


def path_part(text: str) -> str:
    """One part of a path: a name with a slash in it stays one part."""
    return quote(text, safe="@")


def wait(poll_s: float, deadline: float, message: str) -> None:
    """Sleep until the next poll, or raise UnavailableError once the monotonic clock has passed ``deadline``."""
    if time.monotonic() > deadline:
        raise UnavailableError(f"{message}. `zhub doctor` says what is missing.")
    time.sleep(poll_s)


def api_error(status: int, body: Mapping[str, Any], response: httpx.Response) -> ApiError:
    error = body["error"]
    return ApiError(
        status,
        error.get("code") or "error",
        error.get("message") or f"zhub answered {status}.",
        param=error.get("param"),
        request_id=response.headers.get("x-request-id"),
    )


@contextmanager
def _translated(base_url: str) -> Iterator[None]:
    url = base_url.rstrip("/")
    try:
        yield
    except httpx.ConnectError as exc:
        raise UnavailableError(
            f"No zhub answers at {url}. Start one with `zhub up`, or set ZHUB_API_URL to where it is."
        ) from exc
    except httpx.TimeoutException as exc:
        raise UnavailableError(f"zhub at {url} took too long to answer ({type(exc).__name__}); try again.") from exc
    except httpx.TransportError as exc:
        raise UnavailableError(f"The connection to zhub at {url} broke ({exc}); try again.") from exc
    except httpx.InvalidURL as exc:
        raise InvalidRequestError(f"'{url}' is not the address of a zhub: {exc}.") from exc


def _error_of(response: httpx.Response) -> ApiError:
    try:
        body = response.json()
    except ValueError:
        return _not_zhub(response)
    if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
        return _not_zhub(response)
    return api_error(response.status_code, body, response)


def _not_zhub(response: httpx.Response) -> ApiError:
    url = response.request.url
    message = f"{url} answered {response.status_code}, but not as zhub does. Is the address right? Set ZHUB_API_URL."
    return ApiError(response.status_code, "not_zhub", message)
