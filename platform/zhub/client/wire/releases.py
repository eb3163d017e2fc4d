"""Answers about releases."""

from pydantic import Field

from zhub.client.wire.answer import Answer


class PinnedRecord(Answer):
    """An expert version of a release."""

    model: str
    digest: str
    weight: float
    description: str


class ClassifierRecord(Answer):
    """The expert version that a release asks whom a prompt is for."""

    model: str
    digest: str


class ReleaseRecord(Answer):
    """A version of a release."""

    id: str
    created_at: int
    release: str
    version: int
    base_model: str
    strategy: str
    experts: list[PinnedRecord]
    classifier: ClassifierRecord | None = None
    digest: str
    description: str | None
    by: str
    aliases: list[str]


class DifferenceRecord(Answer):
    """One thing that differs between two release versions; None on the side that does not have it."""

    what: str
    before: str | float | None
    after: str | float | None


class LiveAndShadow(Answer):
    """One figure of both sides of a trial, over the requests that the shadow answered."""

    live: float
    shadow: float


class ShadowRecord(Answer):
    """A version that answers, or answered, beside the one of an alias. All but ``share`` counts requests.

    The shadow ``answered`` some, ``failed`` at some, and was ``left_out`` of some because it was busy with others. Of
    those that it answered it chose the ``same_experts`` for some; of the ``comparable`` ones, which are not drawn at
    random, it answered some ``alike``, letter by letter.
    """

    id: str
    alias: str
    live: str
    shadow: str
    share: float
    by: str
    created_at: int
    ended_at: int | None
    answered: int
    failed: int
    left_out: int
    same_experts: int
    comparable: int
    alike: int
    tokens: LiveAndShadow
    seconds: LiveAndShadow


class DiffRecord(Answer):
    """What differs in how a release version answers from how another does."""

    origin: str = Field(alias="from")
    to: str
    differences: list[DifferenceRecord]
