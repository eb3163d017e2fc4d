"""Answers about models, and pieces of what a model answered."""

from dataclasses import dataclass

from zhub.client.wire.answer import Answer
from zhub.generation import ChosenExpert


class ModelRecord(Answer):
    """A name that a request may give as ``model``; ``kind`` is ``expert``, ``base`` or ``router``."""

    id: str
    kind: str
    owned_by: str


class Routing(Answer):
    """How it was decided who answers, and why."""

    strategy: str
    reason: str
    base_model: str


@dataclass(frozen=True)
class ChatPiece:
    """The next piece of an answer, or all of it; every piece says who speaks."""

    text: str
    experts: list[ChosenExpert]
    routing: Routing
    finish_reason: str | None
