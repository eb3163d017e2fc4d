"""Answers about models, and pieces of what a model answered."""

from dataclasses import dataclass

from zhub.answering import ChosenExpert
from zhub.client.wire.answer import Answer


class ModelRecord(Answer):
    """A name that a request may give as ``model``; ``kind`` is ``expert``, ``release``, ``base`` or ``router``."""

    id: str
    kind: str
    owned_by: str


class Routing(Answer):
    """How the experts of an answer were chosen, and why."""

    strategy: str
    reason: str
    base_model: str
    release: str | None = None
    warnings: list[str] = []
    """Of experts that answered: which are deprecated, and what to use."""


@dataclass(frozen=True)
class ChatPiece:
    """The next piece of an answer, or the whole answer; every piece names the experts that gave it."""

    text: str
    experts: list[ChosenExpert]
    routing: Routing
    finish_reason: str | None
    answer_id: str = ""
