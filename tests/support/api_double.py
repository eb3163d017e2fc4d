"""A zhub API made of a dictionary: what tests of the client and of the command line talk to."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from api_examples import (
    ALIAS,
    CHECKPOINT,
    DELIVERY,
    ENDPOINT,
    ESTIMATE,
    EVALUATION,
    EXPERT,
    FEEDBACK,
    JOB,
    KEY,
    MANIFEST,
    MOVE,
    PROMOTION,
    ROUTING,
    SCHEDULE,
    SECRET,
    TICK,
    TOKEN_COUNT,
    Z,
)

from zhub.manifest import Manifest


class Api:
    """Answers by (method, path). An answer is JSON, bytes, a whole response, or a function of the request."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.keyless: set[str] = set()
        """Paths that are answered without a key."""
        self.answers: dict[tuple[str, str], Any] = {}
        self.add("GET", "/v1/fine_tuning/jobs/ftjob-1", JOB)
        self.add("GET", "/v1/fine_tuning/jobs", page([JOB]))
        self.add("GET", "/v1/fine_tuning/jobs/ftjob-1/checkpoints", page([CHECKPOINT]))
        self.add("POST", "/v1/fine_tuning/jobs/estimate", ESTIMATE)
        self.add("POST", "/v1/files/file-1/token_counts", TOKEN_COUNT)
        self.add("GET", "/v1/evaluations", page([{k: v for k, v in EVALUATION.items() if k != "others"}]))
        self.add("GET", "/v1/evaluations/eval-1", EVALUATION)
        self.add("POST", "/v1/evaluations", EVALUATION)
        self.add("GET", "/v1/feedback", page([FEEDBACK]))
        self.add("POST", "/v1/feedback", FEEDBACK)
        self.add("DELETE", "/v1/feedback/fb-1", {"id": "fb-1", "deleted": True})
        self.add("GET", "/v1/promotions", page([PROMOTION]))
        self.add("GET", "/v1/promotions/promo-1", PROMOTION)
        self.add("POST", "/v1/promotions", PROMOTION)
        self.add("GET", "/v1/aliases", page([ALIAS]))
        self.add("GET", "/v1/experts/default.sorting/aliases/prod", ALIAS | {"moves": [MOVE]})
        self.add("PUT", "/v1/experts/default.sorting/aliases/prod", ALIAS)
        self.add("GET", "/v1/schedules", page([SCHEDULE]))
        self.add("GET", "/v1/schedules/sched-1/ticks", page([TICK]))
        self.add("POST", "/v1/schedules", SCHEDULE)
        self.add("POST", "/v1/schedules/sched-1/run", TICK)
        self.add("GET", "/v1/webhook_event_types", {"object": "list", "data": ENDPOINT["event_types"]})
        self.add("GET", "/v1/webhook_endpoints", page([ENDPOINT]))
        self.add("POST", "/v1/webhook_endpoints", ENDPOINT | {"signing_secret": SECRET})
        self.add("POST", "/v1/webhook_endpoints/whe-1/rotate_secret", ENDPOINT | {"signing_secret": SECRET})
        self.add("DELETE", "/v1/webhook_endpoints/whe-1", {"id": "whe-1", "deleted": True})
        self.add("GET", "/v1/webhook_endpoints/whe-1/deliveries", page([DELIVERY]))
        self.add("POST", "/v1/webhook_endpoints/whe-1/deliveries/whd-1/replay", DELIVERY)
        self.publish(MANIFEST, {"z.safetensors": Z, "routing.safetensors": ROUTING})

    def add(self, method: str, path: str, answer: Any) -> None:
        self.answers[method, path] = answer

    def bodies(self, method: str, path: str) -> list[Any]:
        """What was sent there, as JSON."""
        return [json.loads(sent.content) for sent in self.requests if (sent.method, sent.url.path) == (method, path)]

    def refuse(self, method: str, path: str, status: int, code: str, message: str) -> None:
        body = {"error": {"message": message, "type": "x", "param": None, "code": code}}
        self.add(method, path, httpx.Response(status, json=body, headers={"x-request-id": "req_1"}))

    def publish(self, manifest: Manifest, files: dict[str, bytes]) -> None:
        """Serve a version with these files, whatever its manifest says about them."""
        version = {
            "id": EXPERT,
            "created_at": 1_700_000_100,
            "expert": "sorting",
            "version": 1,
            "base_model": "zhub-tiny",
            "digest": manifest.digest,
            "size_bytes": 10,
            "job": "ftjob-1",
            "uri": "experts/1",
            "description": "Sorts letters.",
            "tags": {"team": "search"},
            "archived": False,
            "aliases": ["prod"],
            "parent": "default.letters@v3" if manifest.parent_digest else None,
            "feedback": {"count": 3, "mean_score": -0.25},
            "manifest": manifest.model_dump(mode="json"),
        }
        self.add("GET", f"/v1/experts/{EXPERT}", version)
        self.add("PATCH", f"/v1/experts/{EXPERT}", version)
        self.add("GET", "/v1/experts", page([version]))
        for name, content in ({"manifest.json": manifest.canonical()} | files).items():
            self.add("GET", f"/v1/experts/{EXPERT}/files/{name}", content)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.get((request.method, request.url.path))
        if callable(answer):
            answer = answer(request)
        if request.headers.get("authorization") != f"Bearer {KEY}" and request.url.path not in self.keyless:
            error = {"message": "Incorrect API key provided.", "code": "invalid_api_key", "param": None}
            return httpx.Response(401, json={"error": error})
        if answer is None:
            error = {"message": f"No such thing: {request.url.path}.", "code": "not_found", "param": None}
            return httpx.Response(404, json={"error": error})
        if isinstance(answer, httpx.Response):
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        if not isinstance(answer, bytes):
            return httpx.Response(200, json=answer)
        # Bytes are an event stream for whoever asks for one, and a file for everybody else.
        kind = "text/event-stream" if request.headers.get("accept") == "text/event-stream" else "application/x-ndjson"
        return httpx.Response(200, content=answer, headers={"content-type": kind})


def page(entries: list[Any], *, has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": entries, "last_id": entries[-1]["id"] if entries else None, "has_more": has_more}


def event(number: int, **values: Any) -> dict[str, Any]:
    """The event of this number, of metrics if it has values."""
    return {
        "id": f"ftevent-{number}",
        "created_at": 1_700_000_000 + number,
        "level": "info",
        "type": "metrics" if values else "message",
        "message": f"event {number}",
        "data": {"type": "metrics", **values} if values else None,
    }


@contextmanager
def served(api: Callable[[httpx.Request], httpx.Response]) -> Iterator[str]:
    """The same API on a real port of this machine; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            url = f"http://{self.headers['host']}{self.path}"
            response = api(httpx.Request(self.command, url, headers=dict(self.headers), content=content))
            self.send_response(response.status_code)
            for name in ("content-type", "x-request-id"):
                if name in response.headers:
                    self.send_header(name, response.headers[name])
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *_arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def events_of(
    entries: list[dict[str, Any]], job: dict[str, Any] | None = None
) -> Callable[[httpx.Request], dict[str, Any] | bytes]:
    """The events route: newest first, in pages, after a cursor; or as a stream, oldest first, that ends with a job."""

    def answer(request: httpx.Request) -> dict[str, Any] | bytes:
        ids = [entry["id"] for entry in entries]
        after = request.url.params.get("after")
        if request.url.params.get("stream"):
            new = entries[ids.index(after) + 1 :] if after else entries
            told = "".join(f"id: {entry['id']}\ndata: {json.dumps(entry)}\n\n: nothing new\n\n" for entry in new)
            return f"{told}event: end\ndata: {json.dumps(job or JOB)}\n\n".encode()
        newest_first = entries[::-1]
        if after:
            newest_first = newest_first[ids[::-1].index(after) + 1 :]
        limit = int(request.url.params["limit"])
        return page(newest_first[:limit], has_more=len(newest_first) > limit)

    return answer


def sse(*chunks: dict[str, Any] | str) -> bytes:
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in lines).encode()
