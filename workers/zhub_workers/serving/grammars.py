"""Grammars that an answer follows token by token, by llguidance.

A grammar is compiled once for a request, off the engine's thread; each of its answers has a state of its own.
"""

import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from zhub.errors import InvalidRequestError
from zhub.generation import GenerationRequest
from zhub_workers.serving.json_schemas import check_schema, with_options
from zhub_workers.serving.tool_calls import ToolFormat
from zhub_workers.serving.tool_grammars import tools_grammar
from zhub_workers.serving.vocabulary import Vocabulary

# Their defaults would allow one mask to take a second. A message with the parser's state would tell of other requests.
LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000, step_lexer_fuel=100_000, step_max_items=25_000, verbose_errors=False
)


class Grammar:
    """A compiled grammar, at its beginning; ``param`` is the field of the request that it comes from."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, param: str) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._param = param

    def start(self) -> "GrammarState":
        """The state of a new answer."""
        return GrammarState(self._matcher.deep_copy(), self._vocabulary, self._param)


class GrammarState:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, param: str) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._param = param
        self._ended = False

    def allowed(self, size: int) -> Tensor:
        """Which of ``size`` tokens may come next, bool ``(size,)`` on the CPU. Stop tokens may where it can end.

        Raises:
            InvalidRequestError: the limits of what may be computed for one token are reached.
        """
        mask = torch.zeros(size, dtype=torch.bool)
        known = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)[:size]
        mask[: len(known)] = known != 0
        if self._matcher.is_error():
            raise InvalidRequestError(
                f"The schema in '{self._param}' is too complex to follow: {_reason(self._matcher)}. Make it simpler.",
                param=self._param,
            )
        mask[sorted(self._vocabulary.stop_ids)] = self._matcher.is_accepting()
        return mask

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed."""
        if token in self._vocabulary.stop_ids:
            self._ended = True
        elif not self._matcher.consume_token(token):
            raise ValueError(f"token {token} is not what the grammar allows: {_reason(self._matcher)}")

    @property
    def is_finished(self) -> bool:
        return self._ended or self._matcher.is_stopped()


def answer_grammar(request: GenerationRequest, how: ToolFormat | None, vocabulary: Vocabulary) -> Grammar | None:
    """The grammar of a request's answers; None where they are free. ``how``: in which format its tools are called.

    It takes milliseconds, and less than a second for the worst of what is let through; the most of it without the GIL.

    Raises:
        InvalidRequestError: a schema is none, has no finite answer, is too large, or uses what is not done.
    """
    if request.tools and how is not None:
        return _compiled(tools_grammar(request, how, vocabulary), vocabulary, "tools")
    if request.json_schema is None:
        return None
    return json_grammar(request.json_schema, vocabulary)


def json_grammar(schema: str, vocabulary: Vocabulary) -> Grammar:
    """The grammar of JSON that fits a schema, as text; of any JSON object where the schema is ``{}``.

    Raises:
        InvalidRequestError: see ``answer_grammar``.
    """
    checked = check_schema(schema, "response_format") or {"type": "object"}
    return _compiled(LLMatcher.grammar_from_json_schema(with_options(checked)), vocabulary, "response_format")


def _compiled(grammar: str, vocabulary: Vocabulary, param: str) -> Grammar:
    matcher = LLMatcher(vocabulary.grammar_tokens, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InvalidRequestError(
            f"No answer can be held to the schema in '{param}': {_reason(matcher)}. Change the schema there.",
            param=param,
        )
    return Grammar(matcher, vocabulary, param)


def _reason(matcher: LLMatcher) -> str:
    return matcher.get_error().partition("\n<")[0].strip().rstrip(".")
