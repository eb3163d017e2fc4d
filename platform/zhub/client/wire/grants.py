"""Answers about what organisations share with each other."""

from zhub.client.wire.answer import Answer


class GrantRecord(Answer):
    """What an organisation may do with another's expert, or its request for that. ``direction``: ``given`` or
    ``received``."""

    id: str
    direction: str
    created_at: int
    expert: str
    grantee: str
    permission: str
    status: str
    message: str | None
    expires_at: int | None
    decided_at: int | None
    ended_at: int | None


class SharedUsageRecord(Answer):
    """What another organisation has used of a version."""

    model: str
    organization: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
