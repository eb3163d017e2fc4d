"""What changes the logits of one answer before its next token is drawn: penalties, biases, and a grammar.

For each token: ``apply`` to the row of logits, temperature and top_p, draw, ``accept`` what was drawn. An answer that
``is_finished`` has no next token to draw.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from zhub.errors import InvalidRequestError
from zhub.generation import ChosenToken, GenerationRequest, LikelyToken
from zhub_workers.serving.grammars import Grammar, GrammarState
from zhub_workers.serving.vocabulary import Vocabulary

LEAST_LOGPROB = -9999.0  # instead of minus infinity, which JSON does not have


class TokenRules:
    """The rules of one answer, and what they need to know of its tokens so far.

    ``logits - frequency · count - presence · (count > 0) + bias``, where a token's count is how often this answer has
    it: the prompt does not count. What the grammar forbids has minus infinity then, whatever its bias.

    Source: the OpenAI API's definition of its penalties.
    """

    def __init__(
        self,
        *,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        grammar: GrammarState | None = None,
    ) -> None:
        self._frequency_penalty = frequency_penalty
        self._presence_penalty = presence_penalty
        self._grammar = grammar
        self._seen: set[int] = set()
        self._shifts = defaultdict(float, logit_bias or {})
        self._shift: Tensor | None = None
        """The shifts as a row, once there is one whose width they can have."""

    def apply(self, logits: Tensor) -> Tensor:
        """Return the row of logits ``(v,)`` to draw from, float32. ``logits`` stay as they are.

        Raises:
            InvalidRequestError: the grammar has come to a place where it is too complex to go on.
        """
        row = logits.float()
        if self._shifts:
            if self._shift is None:
                self._shift = torch.zeros_like(row)
                self._shift[list(self._shifts)] = torch.tensor(list(self._shifts.values()), device=row.device)
            row = row + self._shift
        if self._grammar is not None:
            row = row.masked_fill(~self._grammar.allowed(len(row)).to(row.device), -torch.inf)
        return row

    def accept(self, token: int) -> None:
        """Go on by the token that was drawn, stop tokens included."""
        penalty = self._frequency_penalty + (0.0 if token in self._seen else self._presence_penalty)
        self._seen.add(token)
        if penalty:
            self._shifts[token] -= penalty
            if self._shift is not None:
                self._shift[token] = self._shifts[token]
        if self._grammar is not None:
            self._grammar.accept(token)

    @property
    def is_finished(self) -> bool:
        """Whether only the end can follow."""
        return self._grammar is not None and self._grammar.is_finished


def token_rules(request: GenerationRequest, grammar: Grammar | None, vocabulary: Vocabulary) -> TokenRules | None:
    """The rules of one of a request's answers; None where its logits stay as they are.

    Raises:
        InvalidRequestError: a bias is of a token that the base does not have.
    """
    if unknown := [token for token in request.logit_bias if token >= len(vocabulary.tokens)]:
        raise InvalidRequestError(
            f"'logit_bias' names the token {unknown[0]}, and the tokens of {request.base.name} are the numbers 0 to "
            f"{len(vocabulary.tokens) - 1}.",
            param="logit_bias",
        )
    if grammar is None and not (request.frequency_penalty or request.presence_penalty or request.logit_bias):
        return None
    return TokenRules(
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
        grammar=None if grammar is None else grammar.start(),
    )


def chosen_token(logits: Tensor, token: int, count: int, vocabulary: Vocabulary) -> ChosenToken:
    """The log-probability of a token that was drawn, and of the ``count`` likeliest in its place.

    They are of the model's own distribution: give the logits ``(v,)`` as they came, before rules, temperature and
    top_p. So they say what the model thinks of an answer however it was drawn, and two answers can be compared.
    """
    logprobs = logits.float().log_softmax(0).clamp_min(LEAST_LOGPROB)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    likeliest = [
        LikelyToken(token=vocabulary.bytes_of(other), logprob=value)
        for other, value in zip(tokens.tolist(), values.tolist(), strict=True)
    ]
    return ChosenToken(token=vocabulary.bytes_of(token), logprob=float(logprobs[token]), likeliest=likeliest)
