"""A synchronous client of zhub's HTTP API: what the command line and the demo use.

Programs can also use the ``openai`` package; this client adds what that dialect lacks (base models, experts)
and checks every byte it pulls.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import httpx

from zhub.answering import ChosenExpert
from zhub.client.administration import (
    Invitations,
    Keys,
    Members,
    Organizations,
    Projects,
    ServiceAccounts,
)
from zhub.client.audit import AuditLog
from zhub.client.catalogue import Catalogue
from zhub.client.completions import Completions
from zhub.client.expert_exports import ExpertExports
from zhub.client.expert_imports import ExpertImports
from zhub.client.experts import Evaluations, Experts, Feedback
from zhub.client.files import Files
from zhub.client.graders import Graders
from zhub.client.grants import Grants
from zhub.client.jobs import Jobs
from zhub.client.lifecycle import Aliases, AliasRequests, Promotions, Schedules
from zhub.client.logs import Logs
from zhub.client.releases import Releases
from zhub.client.training import BaseModels
from zhub.client.transport import EVENT_STREAM, SLOW_READ_TIMEOUT_S, Http, read_events
from zhub.client.webhooks import Webhooks
from zhub.client.wire.administration import Accepted, Login, LoginProvider, Me
from zhub.client.wire.chat import ChatPiece, ModelRecord, Routing
from zhub.errors import UnavailableError


class ChatOptions(TypedDict, total=False):
    """How an answer is generated; None, or missing: as the API does by itself."""

    mixture: Mapping[str, float] | None
    """Experts and their weights."""
    strategy: str | None
    """How ``auto`` or a release chooses or mixes its experts, in place of its own way."""
    user: str | None
    """Who asks: an alias with a canary gives the same user the same version always."""
    layers: Mapping[str, Sequence[int | str]] | None
    """Of experts of the mixture, the layers that they change alone: numbers from 0, and ranges such as ``"0-7"``."""
    system: str | None
    """The system message, before the question."""
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    seed: int | None
    stop: Sequence[str] | None
    schema: Mapping[str, Any] | None
    """The JSON schema that the answer must fit."""
    store: bool | None
    """Keep the answer as a stored completion, where the project allows it."""
    metadata: Mapping[str, str] | None
    """By which a stored completion is found again."""


COST_DAYS = 180  # of a page


class Client:
    """One connection to one project of one zhub. Close it, or use it as a context manager."""

    def __init__(
        self, base_url: str, api_key: str | None, *, transport: httpx.BaseTransport | None = None, poll_s: float = 0.5
    ) -> None:
        http = Http(base_url, api_key, transport)
        self.base_url = base_url
        self.files = Files(http, poll_s)
        self.base_models = BaseModels(http, poll_s)
        self.jobs = Jobs(http, poll_s)
        self.logs = Logs(http, poll_s)
        self.experts = Experts(http)
        self.catalogue = Catalogue(http)
        self.grants = Grants(http)
        self.evaluations = Evaluations(http, poll_s)
        self.imports = ExpertImports(http, poll_s)
        self.exports = ExpertExports(http, poll_s)
        self.feedback = Feedback(http)
        self.completions = Completions(http, poll_s)
        self.graders = Graders(http)
        self.aliases = Aliases(http)
        self.alias_requests = AliasRequests(http)
        self.releases = Releases(http)
        self.promotions = Promotions(http, poll_s)
        self.schedules = Schedules(http)
        self.webhooks = Webhooks(http)
        self.organizations = Organizations(http)
        self.projects = Projects(http)
        self.members = Members(http, self.projects)
        self.invitations = Invitations(http, self.projects)
        self.keys = Keys(http, self.projects)
        self.audit = AuditLog(http)
        self.service_accounts = ServiceAccounts(http, self.projects)
        self._http = http

    def me(self) -> Me:
        """Whom the key stands for, and what it may do."""
        return Me.model_validate(self._http.get("/v1/me"))

    def accept_invitation(self, token: str, name: str) -> Accepted:
        """Become a member of the organisation that invites. Needs no key; the answer has one."""
        return Accepted.model_validate(self._http.post("/v1/invitations/accept", {"token": token, "name": name}))

    def login_provider(self) -> LoginProvider:
        """By which OpenID provider people log in. Needs no key."""
        return LoginProvider.model_validate(self._http.get("/v1/login"))

    def log_in(self, id_token: str, *, organization: str | None = None, project: str | None = None) -> Login:
        """Get a key for some hours by an ID token. Needs no key."""
        body = {"id_token": id_token, "organization": organization, "project": project}
        return Login.model_validate(self._http.post("/v1/login", body))

    def log_out(self) -> None:
        """Have the key refused from now on."""
        self._http.post("/v1/logout", {})

    def models(self) -> list[ModelRecord]:
        """Everything that a request may name as its model."""
        return [ModelRecord.model_validate(entry) for entry in self._http.pages("/v1/models", limit=1000)]

    def health(self) -> dict[str, Any]:
        """The ``version`` of the API's process, if it answers. Needs no key."""
        answer = self._http.get("/healthz")
        assert isinstance(answer, dict)
        return answer

    def readiness(self) -> dict[str, Any]:
        """Whether a scheduler leads, how many agents were seen lately, whether serving answers. Needs no key."""
        answer = self._http.get("/readyz")
        assert isinstance(answer, dict)
        return answer

    def limits(self) -> dict[str, Any]:
        """What the organisation may use, and how many bytes it has stored."""
        answer = self._http.get("/v1/organization/limits")
        assert isinstance(answer, dict)
        return answer

    def usage(self, since: int, width: str, groups: Sequence[str]) -> list[dict[str, Any]]:
        """The tokens that the organisation has used since a Unix time: buckets of ``1h`` or ``1d`` with results."""
        return self._buckets("usage/completions", since, {"bucket_width": width, "group_by": list(groups)})

    def costs(self, since: int, groups: Sequence[str]) -> list[dict[str, Any]]:
        """What the organisation's use has cost since a Unix time: buckets of a day with results."""
        return self._buckets("costs", since, {"limit": COST_DAYS, "group_by": list(groups)})

    def _buckets(self, report: str, since: int, query: dict[str, Any]) -> list[dict[str, Any]]:
        """All buckets of a report of the organisation."""
        buckets: list[dict[str, Any]] = []
        page: str | None = None
        while True:
            asked = {name: value for name, value in (query | {"start_time": since, "page": page}).items() if value}
            answer = self._http.get(f"/v1/organization/{report}", **asked)
            buckets += answer["data"]
            page = answer["next_page"]
            if page is None:
                return buckets

    def chat(self, model: str, message: str, **options: Unpack[ChatOptions]) -> ChatPiece:
        """Ask one question and return the whole answer."""
        body = _chat_body(model, message, options)
        answer = self._http.post("/v1/chat/completions", body, read_timeout_s=SLOW_READ_TIMEOUT_S)
        return _piece(answer, answer["choices"][0]["message"]["content"])

    def chat_stream(self, model: str, message: str, **options: Unpack[ChatOptions]) -> Iterator[ChatPiece]:
        """Ask one question and yield the answer while it is generated.

        Raises:
            ApiError, UnavailableError: also in the middle of an answer.
        """
        body = _chat_body(model, message, options) | {"stream": True}
        with self._http.stream("POST", "/v1/chat/completions", json=body, headers=EVENT_STREAM) as response:
            for event in read_events(response):
                if event.data == "[DONE]":
                    return
                chunk = event.json()
                for choice in chunk["choices"]:
                    yield _piece(chunk, choice["delta"].get("content") or "")
        raise UnavailableError("The answer broke off; ask again.")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _chat_body(model: str, message: str, options: ChatOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {**options}
    system, mixture = settings.pop("system", None), settings.pop("mixture", None) or {}
    layers = settings.pop("layers", None) or {}
    schema = settings.pop("schema", None)
    if schema is not None:
        answer_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        settings["response_format"] = answer_format
    beginning = [] if system is None else [{"role": "system", "content": system}]
    return {
        "model": model,
        "messages": [*beginning, {"role": "user", "content": message}],
        "experts": [
            {"model": name, "weight": weight} | ({"layers": layers[name]} if name in layers else {})
            for name, weight in mixture.items()
        ],
        "max_completion_tokens": settings.pop("max_tokens", None),
        **settings,
    }


def _piece(answer: Mapping[str, Any], text: str) -> ChatPiece:
    return ChatPiece(
        text,
        [ChosenExpert.model_validate(chosen) for chosen in answer["experts"]],
        Routing.model_validate(answer["routing"]),
        answer["choices"][0]["finish_reason"],
        answer.get("id", ""),
    )
