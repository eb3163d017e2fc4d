"""A base model and all answers that are made with it, each with the experts that it follows, step by step."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zhub.errors import InvalidRequestError, NonFiniteLogitsError, PromptTooLongError
from zhub.generation import (
    DEFAULT_MAX_NEW_TOKENS,
    ChosenToken,
    EmbeddingRequest,
    Embeddings,
    FinishReason,
    GenerationRequest,
)
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import render_prompt, render_text
from zhub_workers.model.changes import Change, mix_changes
from zhub_workers.model.rollout import MIN_TEMPERATURE
from zhub_workers.model.routing import prompt_embeddings
from zhub_workers.model.sampling import NO_TOKEN, Sampler
from zhub_workers.serving.answer_text import AnswerText
from zhub_workers.serving.asked import Asked
from zhub_workers.serving.beside import Beside, Reading, pause_between_layers
from zhub_workers.serving.blocks import Blocks
from zhub_workers.serving.choices import Choice
from zhub_workers.serving.embeddings import inputs_to_embed
from zhub_workers.serving.experts import Experts
from zhub_workers.serving.following import Following, Follows
from zhub_workers.serving.grammars import answer_grammar
from zhub_workers.serving.runners import runner_for
from zhub_workers.serving.scheduler import Answer, Scheduler
from zhub_workers.serving.strategies import Priors, choose
from zhub_workers.serving.token_rules import chosen_token, token_rules
from zhub_workers.serving.tool_calls import ToolCallReader, format_for, template_messages
from zhub_workers.serving.vocabulary import Vocabulary

PLACES = 64
# Of prompts in one step: all that is read while nobody waits for a next token, and no less than this otherwise.
MOST_PROMPT_TOKENS, LEAST_PROMPT_TOKENS = 512, 16
# What prompts may add to the time of a step, in steps without: so that a long one delays a next token by so much.
PROMPT_SHARE = 0.7
ALONE_S = 0.1  # how long what is read beside answers may take where none is under way, before others are looked for
SMOOTHING = 0.2


@dataclass
class _Draw:
    """What one token is drawn with."""

    temperature: float
    top_p: float
    uniforms: Tensor


@dataclass
class _Pace:
    """How long a step takes without prompts, and what a token of a prompt adds, in seconds; None until measured."""

    step_s: float | None = None
    token_s: float | None = None

    def note(self, seconds: float, prompt_tokens: int) -> None:
        """Learn from a step that somebody waited for."""
        if prompt_tokens == 0:
            self.step_s = _smoothed(self.step_s, seconds)
        elif self.step_s is not None:
            token_s = max(seconds - self.step_s, 0.0) / prompt_tokens
            # Dearer at once: the farther a prompt is read, the more each of its tokens attends to.
            self.token_s = max(token_s, _smoothed(self.token_s, token_s))

    def beside_s(self) -> float:
        """How long what is read beside the answers may take of a step; prompts have as much then."""
        return PROMPT_SHARE / 2 * (self.step_s or 0.0)

    def prompt_tokens(self, *, halved: bool = False) -> int:
        """How many tokens of prompts go well with a step; half as many where something is read beside them."""
        if not self.step_s or not self.token_s:
            return LEAST_PROMPT_TOKENS
        share = PROMPT_SHARE / 2 if halved else PROMPT_SHARE
        tokens = round(share * self.step_s / self.token_s)
        return max(LEAST_PROMPT_TOKENS, min(MOST_PROMPT_TOKENS, tokens))


class Lane:
    """Answers of one base model.

    Args:
        adapted: the model, in no state; nothing else may use it.
        cache_bytes: that keys and values may take.
    """

    def __init__(self, adapted: AdaptedModel, experts: Experts, cache_bytes: int) -> None:
        self.adapted = adapted
        self._experts = experts
        view = adapted.weight_sharing_view()
        self._runner, count = runner_for(adapted.base, view.base, cache_bytes, PLACES)
        self._following = Following(view)
        self._memory_bytes = adapted.memory_bytes + cache_bytes
        self._scheduler = Scheduler(
            Blocks(count, shared=self._runner.shared), places=PLACES, divided=self._runner.divided
        )
        self._vocabulary = Vocabulary(adapted.base.tokenizer, adapted.base.stop_ids)
        self._choices: dict[Answer, Choice] = {}
        self._beside = Beside()
        pause_between_layers(adapted.base.model)  # not those of the view, which answers follow
        self._changes: dict[Follows, Change] = {}
        self._priors: Priors = {}
        self._pace = _Pace()

    @property
    def is_idle(self) -> bool:
        return not self._choices and self._beside.is_idle

    @property
    def running(self) -> Sequence[Answer]:
        """The answers under way."""
        return self._scheduler.running

    @property
    def memory_bytes(self) -> int:
        """Of the base and its basis, and what keys and values may take."""
        return self._memory_bytes

    def queue_s(self) -> float:
        """How long the prompts take to be read that are not, going by what they took so far."""
        unread = sum(answer.unread for answer in self._choices if answer.unread > 1)
        return unread * (self._pace.token_s or 0.0)

    def prepare(self, asked: Asked) -> None:
        """Bring what a request needs before it can start, and make tokens of its prompt. From any thread.

        Raises:
            DigestMismatchError: an expert's file is not what its reference says.
            InvalidRequestError: the request cannot be answered.
            PromptTooLongError: its prompt fills the context.
        """
        request, base = asked.request, self.adapted.base
        if isinstance(request, EmbeddingRequest):
            asked.prompts = inputs_to_embed(base, request.inputs)
            return
        self._experts.fetch(request)
        asked.tool_format = format_for(base.tokenizer, request)
        asked.grammar = answer_grammar(request, asked.tool_format, self._vocabulary)
        if request.prompt is None:
            prompt = render_prompt(base, template_messages(request.messages), request.tools)
        else:
            prompt = render_text(base, request.prompt)
        if base.context_length is not None and len(prompt) >= base.context_length:
            raise PromptTooLongError(1, len(prompt), base.context_length - 1)
        asked.prompts = [prompt]

    def start(self, asked: Asked) -> None:
        """Begin to answer a prepared request.

        Raises:
            ZhubError: the request cannot be answered.
        """
        request = asked.request
        if isinstance(request, EmbeddingRequest):
            self._beside.add(Reading(request.org_id, partial(self._embed, asked, [])))
        elif request.candidates:
            self._beside.add(Reading(request.org_id, partial(self._read_and_begin, asked, request)))
        else:
            self._begin(asked, request)

    def _read_and_begin(self, asked: Asked, request: GenerationRequest) -> None:
        if asked.ended:
            return
        try:
            self._begin(asked, request)
        except Exception as exc:
            asked.fail(exc)

    @torch.no_grad()
    def _begin(self, asked: Asked, request: GenerationRequest) -> None:
        """Choose who answers, say so, and let the answers wait for their turn."""
        (prompt,) = asked.prompts
        max_tokens = self._max_tokens(request, len(prompt))
        started, experts = choose(self.adapted, request, prompt, self._experts, self._priors)
        follows = tuple(expert.steering for expert in experts)
        changes = [self._experts.change(self.adapted, expert) for expert in experts]
        # By organisation too: what was read for one must not show in another's cached tokens.
        salt = repr((request.org_id, follows)).encode()
        choices = []
        for index in range(request.n):
            answer = Answer(request.org_id, salt, list(prompt), max_tokens)
            choices.append(self._choice(asked, request, index, answer, follows))
        # Nothing can refuse the request any more.
        if experts:
            self._changes[follows] = mix_changes(changes, [expert.weight for expert in experts])
        asked.tell(started)
        for choice in choices:
            self._choices[choice.answer] = choice
            self._scheduler.add(choice.answer)

    def _choice(self, asked: Asked, request: GenerationRequest, index: int, answer: Answer, follows: Follows) -> Choice:
        how = asked.tool_format
        seed = random.getrandbits(62) if request.seed is None else request.seed + index
        return Choice(
            asked,
            request,
            index,
            answer,
            AnswerText(self.adapted.base.tokenizer, request.stop, with_special=how is not None),
            follows,
            torch.Generator().manual_seed(seed % 2**63),
            token_rules(request, asked.grammar, self._vocabulary),
            None if how is None else ToolCallReader(how, index),
        )

    @torch.no_grad()
    def step(self) -> None:
        """Read the next tokens of all that can go on, and send what they come to."""
        for choice in [choice for choice in self._choices.values() if choice.asked.ended]:
            self._drop(choice)
        self._read_beside()
        parts = self._scheduler.plan(self._prompt_tokens())
        if not parts:
            return
        began = time.monotonic()
        followed = [self._choices[part.answer].follows for part in parts]
        owners, assign = self._following.owners(followed, self._changes)
        order = sorted(range(len(parts)), key=owners.__getitem__)
        parts, owners = [parts[i] for i in order], [owners[i] for i in order]
        logits = self._runner.read(parts, owners, assign)
        last = [self._choices[part.answer] for part in parts if part.is_last]
        self._scheduler.done(parts)
        self._answer(last, logits)
        self._runner.keep(self._scheduler.running)
        if any(part.count == 1 for part in parts):
            self._pace.note(time.monotonic() - began, sum(part.count for part in parts if part.count > 1))

    def fail(self, exc: Exception) -> None:
        """End every answer with this error, and go back to the base."""
        for choice in list(self._choices.values()):
            choice.asked.fail(exc)
            self._drop(choice)
        self._following.leave()

    def _answer(self, choices: Sequence[Choice], logits: Tensor) -> None:
        """Choose the next token of each, and send it or end."""
        if not choices:
            return
        allowed = logits
        if any(choice.rules is not None for choice in choices):
            allowed = torch.stack([self._allowed(choice, row) for choice, row in zip(choices, logits, strict=True)])
        for choice, row, token in zip(choices, logits, _draw(choices, allowed), strict=True):
            if choice.asked.ended:
                continue
            if token == NO_TOKEN:
                self._runner.clear(self._scheduler.forget(choice.answer))
                choice.asked.fail(NonFiniteLogitsError())
                continue
            try:
                self._add(choice, row, token)
            except Exception as exc:
                choice.asked.fail(exc)

    def _allowed(self, choice: Choice, row: Tensor) -> Tensor:
        """A choice's logits by its rules; what goes wrong there is its own."""
        # What is not finite must be seen also where a grammar would hide it.
        if choice.rules is None or not bool(row.amax().isfinite()):
            return row.float()
        try:
            return choice.rules.apply(row)
        except Exception as exc:
            choice.asked.fail(exc)
            return row.float()

    def _add(self, choice: Choice, row: Tensor, token: int) -> None:
        """Take the token that was drawn from logits which were ``row`` before any rules."""
        answer, request, rules = choice.answer, choice.request, choice.rules
        answer.tokens.append(token)
        if rules is not None:
            rules.accept(token)
        if token in self.adapted.base.stop_ids:
            self._end(choice, "stop", *choice.text.end())
            return
        chosen = None if request.logprobs is None else chosen_token(row, token, request.logprobs, self._vocabulary)
        choice.say(*choice.text.add(token, chosen))
        if choice.text.stopped:
            self._end(choice, "stop", "", [])
        elif rules is not None and rules.is_finished:
            self._end(choice, "stop", *choice.text.end())
        elif len(answer.tokens) >= answer.max_tokens:
            rest, tokens = choice.text.end()
            self._end(choice, "stop" if choice.text.stopped else "length", rest, tokens)

    def _end(self, choice: Choice, reason: FinishReason, text: str, tokens: list[ChosenToken]) -> None:
        choice.say(text, tokens)
        choice.end(reason)
        self._drop(choice)

    def _read_beside(self) -> None:
        """Go on with what is read beside the answers, for as long as their next tokens can wait."""
        waited_for = bool(self._scheduler.running)
        until = time.monotonic() + (self._pace.beside_s() if waited_for else ALONE_S)
        while not self._beside.is_idle:
            self._beside.go_on()
            if time.monotonic() >= until:
                return

    def _embed(self, asked: Asked, vectors: list[list[float]]) -> None:
        """Embed the next input of a request; the others let readings of other organisations come first."""
        if asked.ended:
            return
        try:
            vectors += prompt_embeddings(self.adapted.base, [asked.prompts[len(vectors)]]).tolist()
        except Exception as exc:
            asked.fail(exc)
            return
        if len(vectors) < len(asked.prompts):
            self._beside.add(Reading(asked.request.org_id, partial(self._embed, asked, vectors)))
            return
        asked.tell(Embeddings(vectors=vectors, prompt_tokens=sum(map(len, asked.prompts))))

    def _drop(self, choice: Choice) -> None:
        self._scheduler.end(choice.answer)
        self._choices.pop(choice.answer, None)
        # What nobody follows any more stays with the replica's experts alone.
        if choice.follows not in {other.follows for other in self._choices.values()}:
            self._changes.pop(choice.follows, None)

    def _prompt_tokens(self) -> int:
        """How many tokens of prompts the next step may read."""
        waited_for = any(answer.unread == 1 for answer in self._scheduler.running)
        if not waited_for:
            return MOST_PROMPT_TOKENS
        return self._pace.prompt_tokens(halved=not self._beside.is_idle)

    def _max_tokens(self, request: GenerationRequest, prompt_tokens: int) -> int:
        """Of prompt and answer together, as far as the context reaches.

        Raises:
            InvalidRequestError: this replica has no room for so many.
        """
        limit = self.adapted.base.context_length
        asked_for = prompt_tokens + (request.max_new_tokens or DEFAULT_MAX_NEW_TOKENS)
        wanted = asked_for if limit is None else min(asked_for, limit)
        if request.max_new_tokens is None:
            wanted = min(wanted, max(self._scheduler.room, prompt_tokens + 1))
        if wanted > self._scheduler.room:
            raise InvalidRequestError(
                f"Prompt and answer come to {wanted} tokens; a replica has memory for {self._scheduler.room}. "
                "Ask for a shorter answer with max_completion_tokens, or shorten the conversation.",
                code="context_length_exceeded",
            )
        return wanted


def _draw(choices: Sequence[Choice], logits: Tensor) -> list[int]:
    """The next token of each choice; NO_TOKEN where its logits are not finite."""
    draws = []
    for choice in choices:
        request = choice.request
        temperature = request.temperature if request.temperature >= MIN_TEMPERATURE else 0.0
        uniforms = torch.rand(int(temperature > 0), generator=choice.numbers, dtype=torch.float64)
        draws.append(_Draw(temperature, request.top_p, uniforms))
    tokens: list[int] = Sampler(draws, logits.device).draw(logits, 0).tolist()
    return tokens


def _smoothed(before: float | None, value: float) -> float:
    return value if before is None else before + SMOOTHING * (value - before)
