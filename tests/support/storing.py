"""A project that stores completions, and answers that are stored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
from sqlalchemy import Engine

from zhub.answering import ChosenExpert
from zhub.completions.storing import Completion, store
from zhub.database.sessions import system_session
from zhub.generation import Ended, Line, Started, Text
from zhub.ids import new_id
from zhub.models import CompletionSettings
from zhub.tenancy.keys import Caller

ENDED = Ended(finish_reason="stop", completion_tokens=2)


def turn_on(engine: Engine, caller: Caller) -> None:
    """Let the caller's project store completions."""
    own = {"org_id": caller.org_id, "project_id": caller.project_id}
    with system_session(engine) as session:
        session.add(CompletionSettings(enabled=True, kept_days=1, redactors=[], **own))


def completion(caller: Caller, **labels: str) -> Completion:
    """A completion of the caller's project that is yet to be stored, of a prompt that no other has."""
    completion_id = new_id()
    request = {"messages": [{"role": "user", "content": f"Repeat {completion_id}."}]}
    answer = {"created": 0, "experts": [], "choices": [{"message": {"role": "assistant", "content": "y"}}]}
    return Completion(completion_id, caller.org_id, caller.project_id, "tiny", request, answer, labels)


def store_one(engine: Engine, caller: Caller) -> str:
    """Store a completion without an answer of serving; return its id."""
    made = completion(caller)
    turn_on(engine, caller)
    with system_session(engine) as session:
        assert store(session, made)
    return f"chatcmpl-{made.completion_id.hex}"


def started(*experts: tuple[str, str]) -> Started:
    """The first line of an answer by these experts, each with its digest."""
    chosen = [ChosenExpert(name=name, digest=digest, weight=1.0) for name, digest in experts]
    return Started(
        strategy="expert" if experts else "base", experts=chosen, reason="by name", prompt_tokens=3, choice_s=0.0
    )


@dataclass
class Storing:
    """Asks with ``store``, and waits until the answer is there to be read."""

    client: openai.OpenAI
    script: list[Line | str]
    until: Callable[..., Any]

    def ask(self, prompt: Any = "1 + 1 =", **options: Any) -> Any:
        asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "store": True} | options
        return self.client.chat.completions.create(**asked)

    def stored(self, prompt: str = "1 + 1 =", answer: str = "2", **options: Any) -> str:
        """The id of a stored completion with this answer of the base."""
        self.script[:] = [started(), Text(text=answer), ENDED]
        return self.wait(self.ask(prompt, **options).id)

    def wait(self, completion_id: str) -> str:
        """Until it is stored."""
        self.until(lambda: self.find(completion_id) is not None)
        return completion_id

    def find(self, completion_id: str) -> Any:
        try:
            return self.client.chat.completions.retrieve(completion_id)
        except openai.NotFoundError:
            return None
