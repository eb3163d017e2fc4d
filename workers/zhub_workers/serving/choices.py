"""One of the answers to a request, from its tokens to the lines that are sent."""

from dataclasses import dataclass

import torch

from zhub.generation import ChosenToken, Ended, FinishReason, GenerationRequest, Text
from zhub_workers.serving.answer_text import AnswerText
from zhub_workers.serving.asked import Asked
from zhub_workers.serving.following import Follows
from zhub_workers.serving.scheduler import Answer
from zhub_workers.serving.token_rules import TokenRules
from zhub_workers.serving.tool_calls import ToolCallReader


@dataclass(eq=False)
class Choice:
    """One of the answers to a request.

    Attributes:
        index: which of them.
        follows: the experts that it follows.
        numbers: that its tokens are drawn with.
        rules: of its tokens; None where there are none.
        calls: what divides its text from calls of tools; None where it has no tools.
    """

    asked: Asked
    request: GenerationRequest
    index: int
    answer: Answer
    text: AnswerText
    follows: Follows
    numbers: torch.Generator
    rules: TokenRules | None
    calls: ToolCallReader | None

    @property
    def answered(self) -> int:
        """How many tokens it has."""
        return len(self.answer.tokens) - len(self.asked.prompts[0])

    def say(self, text: str, tokens: list[ChosenToken]) -> None:
        """Send what of the text is no call of a tool."""
        shown = text if self.calls is None else self.calls.feed(text)
        if shown or tokens:
            self.asked.tell(Text(index=self.index, text=shown, tokens=tokens))

    def end(self, reason: FinishReason) -> None:
        """Send the calls of tools, and that this was all."""
        rest, calls = ("", []) if self.calls is None else self.calls.finish()
        if rest:
            self.asked.tell(Text(index=self.index, text=rest))
        for call in calls:
            self.asked.tell(call)
        self.asked.tell(
            Ended(
                index=self.index,
                finish_reason=reason,
                completion_tokens=self.answered,
                cached_tokens=self.answer.cached or 0,
            )
        )
