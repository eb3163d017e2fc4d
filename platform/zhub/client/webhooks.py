"""Webhook endpoints, as a program manages them over the API."""

from collections.abc import Sequence

from zhub.client.transport import Http, path_part
from zhub.client.wire.webhooks import DeliveryRecord, EndpointRecord, EndpointTest

TEST_READ_TIMEOUT_S = 60.0  # the server waits for the receiver before it answers


class Webhooks:
    """Where a project's events are sent, and their deliveries."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def event_types(self) -> Sequence[str]:
        """Every event type that an endpoint can ask for."""
        event_types: list[str] = self._http.get("/v1/webhook_event_types")["data"]
        return event_types

    def create(self, *, url: str, event_types: Sequence[str], name: str = "") -> EndpointRecord:
        """Send these events to ``url``; the answer has the ``signing_secret``, which is shown only now."""
        body = {"url": url, "event_types": list(event_types), "name": name}
        return EndpointRecord.model_validate(self._http.post("/v1/webhook_endpoints", body))

    def list(
        self, *, most: int | None = None, status: str | None = None, search: str | None = None, order: str | None = None
    ) -> Sequence[EndpointRecord]:
        """The project's endpoints, at most so many: newest first, unless ``order`` is ``asc``."""
        wanted = {"status": status, "search": search, "order": order}
        entries = self._http.pages("/v1/webhook_endpoints", limit=100, most=most, **wanted)
        return [EndpointRecord.model_validate(entry) for entry in entries]

    def enable(self, endpoint_id: str) -> EndpointRecord:
        """Let an endpoint that was disabled get events again."""
        return EndpointRecord.model_validate(self._http.post(_path(endpoint_id), {"status": "enabled"}))

    def rotate_secret(self, endpoint_id: str, *, keep_old: bool = True) -> EndpointRecord:
        """Sign with a new secret; for a day also with the old one, unless ``keep_old`` is False."""
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        return EndpointRecord.model_validate(self._http.post(f"{_path(endpoint_id)}/rotate_secret", body))

    def delete(self, endpoint_id: str) -> None:
        self._http.delete(_path(endpoint_id))

    def test(self, endpoint_id: str, event_type: str) -> EndpointTest:
        """Send an example, and wait for the receiver's answer."""
        body = {"event_type": event_type}
        answer = self._http.post(f"{_path(endpoint_id)}/test", body, read_timeout_s=TEST_READ_TIMEOUT_S)
        return EndpointTest.model_validate(answer)

    def deliveries(self, endpoint_id: str, *, limit: int) -> Sequence[DeliveryRecord]:
        """The newest deliveries of an endpoint, at most ``limit`` (1 to 100)."""
        answer = self._http.get(f"{_path(endpoint_id)}/deliveries", limit=limit)
        return [DeliveryRecord.model_validate(entry) for entry in answer["data"]]

    def replay(self, endpoint_id: str, delivery_id: str) -> DeliveryRecord:
        """Send an event again, under its old id."""
        path = f"{_path(endpoint_id)}/deliveries/{path_part(delivery_id)}/replay"
        return DeliveryRecord.model_validate(self._http.post(path, {}))


def _path(endpoint_id: str) -> str:
    return f"/v1/webhook_endpoints/{path_part(endpoint_id)}"
