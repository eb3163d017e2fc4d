"""Penalties, biases and grammars on rows of logits, each against a formula or a validator of its own."""

import json
import math
import random
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from zhub.errors import InvalidRequestError
from zhub.generation import GenerationRequest
from zhub.specs import BaseModelSource
from zhub_workers.serving.grammars import json_grammar
from zhub_workers.serving.token_rules import TokenRules, chosen_token, token_rules
from zhub_workers.serving.vocabulary import Vocabulary

SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": {},
    "a record": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "a choice": {"anyOf": [{"const": "yes"}, {"const": "no"}, {"type": "null"}]},
    "a list": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
    "itself": {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["left"],
        "additionalProperties": False,
    },
}  # fmt: skip


def row(vocabulary: Vocabulary, seed: int = 0, more: int = 0) -> Tensor:
    return torch.randn(len(vocabulary.tokens) + more, generator=torch.Generator().manual_seed(seed))


def draw_to_the_end(rules: TokenRules, vocabulary: Vocabulary, seed: int, tokens: int = 4000) -> bytes:
    """Draw evenly among what the rules allow, as the worst of models would."""
    chance = random.Random(seed)
    drawn: list[int] = []
    logits = row(vocabulary)
    while not rules.is_finished and len(drawn) < tokens:
        allowed = rules.apply(logits).isfinite().nonzero().flatten().tolist()
        token = chance.choice(allowed)
        rules.accept(token)
        if token not in vocabulary.stop_ids:
            drawn.append(token)
    assert rules.is_finished
    return b"".join(vocabulary.bytes_of(token) for token in drawn)


def test_penalties_count_the_answers_own_tokens(vocabulary: Vocabulary) -> None:
    rules = TokenRules(frequency_penalty=0.5, presence_penalty=-0.25, logit_bias={9: 3.0, 7: -100.0})
    logits = row(vocabulary)
    for token in (7, 7, 8):
        rules.apply(logits)
        rules.accept(token)
    expected = logits.clone()
    expected[7] += -100.0 - 2 * 0.5 + 0.25
    expected[8] += -0.5 + 0.25
    expected[9] += 3.0
    torch.testing.assert_close(rules.apply(logits), expected)


def test_a_rule_leaves_the_models_own_logits_as_they_are(vocabulary: Vocabulary) -> None:
    logits = row(vocabulary)
    before = logits.clone()
    rules = TokenRules(presence_penalty=1.0, grammar=json_grammar("{}", vocabulary).start())
    for token in (vocabulary.tokens.index(b"{"), vocabulary.tokens.index(b"}")):
        rules.apply(logits)
        rules.accept(token)
    assert torch.equal(logits, before)


def test_the_first_token_is_penalised_where_apply_came_after_it(vocabulary: Vocabulary) -> None:
    rules, logits = TokenRules(presence_penalty=2.0), row(vocabulary)
    rules.accept(3)
    assert float(rules.apply(logits)[3]) == pytest.approx(float(logits[3]) - 2)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_drawn_fits_the_schema(vocabulary: Vocabulary, name: str, seed: int) -> None:
    grammar = json_grammar(json.dumps(SCHEMAS[name]), vocabulary)
    text = draw_to_the_end(TokenRules(grammar=grammar.start()), vocabulary, seed)
    value = json.loads(text)
    jsonschema.validate(value, SCHEMAS[name] or {"type": "object"})


def test_answers_of_one_grammar_go_their_own_ways(vocabulary: Vocabulary) -> None:
    grammar = json_grammar(json.dumps(SCHEMAS["a choice"]), vocabulary)
    first, second = grammar.start(), grammar.start()
    first.accept(vocabulary.tokens.index(b"n"))
    assert not first.allowed(len(vocabulary.tokens))[vocabulary.tokens.index(b'"')]
    assert second.allowed(len(vocabulary.tokens))[vocabulary.tokens.index(b'"')]


def test_a_bias_cannot_break_the_grammar_and_what_the_tokenizer_lacks_is_forbidden(vocabulary: Vocabulary) -> None:
    bracket, brace = vocabulary.tokens.index(b"["), vocabulary.tokens.index(b"{")
    rules = TokenRules(logit_bias={bracket: 100.0}, grammar=json_grammar("{}", vocabulary).start())
    applied = rules.apply(row(vocabulary, more=3))
    assert applied[bracket] == -math.inf and applied[brace].isfinite()
    assert not applied[-3:].isfinite().any()


def test_the_end_is_allowed_exactly_where_the_answer_is_whole(vocabulary: Vocabulary) -> None:
    grammar = json_grammar('{"type": "integer", "maximum": 99, "minimum": 10}', vocabulary).start()
    (stop,) = vocabulary.stop_ids
    ends = []
    for digit in (b"1", b"2"):
        ends.append(bool(grammar.allowed(len(vocabulary.tokens))[stop]))
        grammar.accept(vocabulary.tokens.index(digit))
    assert ends == [False, False] and grammar.is_finished


def test_a_token_that_the_grammar_forbids_is_an_error_of_its_caller(vocabulary: Vocabulary) -> None:
    grammar = json_grammar("{}", vocabulary).start()
    with pytest.raises(ValueError, match="not what the grammar allows"):
        grammar.accept(vocabulary.tokens.index(b"["))


def test_a_request_that_asks_for_none_has_no_rules(vocabulary: Vocabulary) -> None:
    plain = GenerationRequest(base=BaseModelSource(name="tiny", files=[]), basis=None)
    assert token_rules(plain, None, vocabulary) is None
    for change in ({"frequency_penalty": 0.1}, {"presence_penalty": -0.1}, {"logit_bias": {1: 1.0}}):
        assert token_rules(plain.model_copy(update=change), None, vocabulary) is not None
    assert token_rules(plain, json_grammar("{}", vocabulary), vocabulary) is not None


def test_a_bias_of_a_token_that_the_base_does_not_have_is_refused_by_its_number(vocabulary: Vocabulary) -> None:
    biased = GenerationRequest(base=BaseModelSource(name="tiny", files=[]), basis=None, logit_bias={606: 1.0})
    with pytest.raises(InvalidRequestError, match="token 606, and the tokens of tiny are the numbers 0 to 605"):
        token_rules(biased, None, vocabulary)


def test_a_schema_that_cannot_be_followed_is_refused(vocabulary: Vocabulary) -> None:
    schemas: list[dict[str, Any]] = [
        {"not": {}},
        {"type": "string", "format": "colour"},
        {"$ref": "https://elsewhere/s.json"},
    ]
    for schema in schemas:
        with pytest.raises(InvalidRequestError, match="held to the schema in") as caught:
            json_grammar(json.dumps(schema), vocabulary)
        assert caught.value.param == "response_format"


def test_the_likeliest_tokens_are_those_of_the_models_own_distribution(vocabulary: Vocabulary) -> None:
    logits = row(vocabulary)
    probabilities = logits.double().exp() / logits.double().exp().sum()
    order = sorted(range(len(logits)), key=lambda token: -float(probabilities[token]))
    told = chosen_token(logits, order[4], 3, vocabulary)
    assert told.token == vocabulary.tokens[order[4]]
    assert told.logprob == pytest.approx(math.log(probabilities[order[4]]), abs=1e-5)
    assert [likely.token for likely in told.likeliest] == [vocabulary.tokens[token] for token in order[:3]]
    assert [math.exp(likely.logprob) for likely in told.likeliest] == pytest.approx(
        [float(probabilities[token]) for token in order[:3]], rel=1e-5
    )


def test_a_token_of_probability_zero_has_a_log_probability_that_json_can_say(vocabulary: Vocabulary) -> None:
    logits = torch.full((len(vocabulary.tokens),), -math.inf)
    logits[5] = 0.0
    assert chosen_token(logits, 4, 0, vocabulary).logprob == -9999.0
