"""What happens to what organisations share, told to both of them."""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from zhub.models import ExpertGrant

log = logging.getLogger("zhub.sharing")


@dataclass(frozen=True)
class SharingEvent:
    """Something that was done, as one of the organisations that it concerns is told of it. ``by``: the id of a key."""

    org_id: uuid.UUID
    action: str
    subject: str
    other: str
    by: str


def of_grant(grant: ExpertGrant, action: str, by: str) -> list[SharingEvent]:
    """What is told to both sides of a grant."""
    return [
        SharingEvent(grant.org_id, action, grant.subject, grant.grantee, by),
        SharingEvent(grant.grantee_org_id, action, grant.subject, grant.grantee, by),
    ]


def emit(events: Sequence[SharingEvent]) -> None:
    """Write the events: to the log of this process, with the organisation that each is for."""
    for event in events:
        log.info(
            "%s: %s, %s, by %s",
            event.action,
            event.subject,
            event.other,
            event.by,
            extra={"action": "sharing", "org_id": str(event.org_id)},
        )
