"""Answers that join and leave between two tokens, on tiny models of many architectures: each is what it is alone."""

from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from served_engines import Served, text_of

from zhub.answering import ExpertReference
from zhub.errors import InvalidRequestError
from zhub.generation import Ended, Failed, GenerationRequest, Line
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.reading import tried
from zhub_workers.serving import lane as lane_module
from zhub_workers.serving.asked import Asked
from zhub_workers.serving.experts import Experts
from zhub_workers.serving.lane import Lane
from zhub_workers.serving.runners import PagedRunner, SingleRunner
from zhub_workers.serving.scheduler import Part

PAGED = ("llama", "gpt2", "gpt_neox", "mistral", "gemma2", "gemma3_text", "phi", "mixtral", "gpt_oss", "deepseek_v3")
SINGLE = ("bloom", "falcon", "qwen3_next", "lfm2")
PROMPTS = ("say a", "what is 2 + 3?", "b", "name one colour, please: red or blue?", "say a")
ENOUGH_BYTES = 64 << 20


class Driven:
    """A lane that is moved by hand over a base and two experts."""

    def __init__(self, root: Path, architecture: str) -> None:
        self.served = Served(root, families.save_tiny(root / "model", architecture))
        base = replace(tried(self.served.base), stop_ids=frozenset())  # so that answers have a length
        self.adapted = AdaptedModel(base, self.served.basis)
        self.references = [self.served.expert(name, seed, ["a", "b"]) for name, seed in (("one", 1), ("two", 2))]
        self.lane = self.new_lane()

    def new_lane(self, cache_bytes: int = ENOUGH_BYTES) -> Lane:
        return Lane(self.adapted, Experts(self.served.store, self.served.root / "cache"), cache_bytes)

    def choices(self) -> list[list[ExpertReference]]:
        one, two = self.references
        half = [reference.model_copy(update={"weight": 0.5}) for reference in (one, two)]
        return [[], [one], half, [two], [one]]

    def requests(self) -> list[GenerationRequest]:
        return [
            self.served.request(prompt, experts=experts, max_new_tokens=length)
            for prompt, experts, length in zip(PROMPTS, self.choices(), (9, 20, 4, 14, 12), strict=True)
        ]

    def start(self, request: GenerationRequest) -> list[Line]:
        lines: list[Line] = []
        asked = Asked(request, lines.append, lambda _asked: None)
        self.lane.prepare(asked)
        self.lane.start(asked)
        return lines

    def finish(self) -> None:
        while not self.lane.is_idle:
            self.lane.step()

    def ask(self, request: GenerationRequest) -> str:
        lines = self.start(request)
        self.finish()
        return text_of(lines)


@pytest.fixture(scope="module", params=[*PAGED, *SINGLE])
def driven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driven:
    return Driven(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Driven:
    return Driven(tmp_path_factory.mktemp("llama"), "llama")


def test_answers_that_join_and_leave_are_those_of_each_alone(driven: Driven) -> None:
    together = []
    for request in driven.requests():
        together.append(driven.start(request))
        driven.lane.step()
        driven.lane.step()
    driven.finish()
    assert all(isinstance(lines[-1], Ended) for lines in together)
    answers = [text_of(lines) for lines in together]
    driven.lane = driven.new_lane()
    assert answers == [driven.ask(request) for request in driven.requests()]
    assert len(set(answers)) > 3, "the experts must differ for this to mean anything"


def test_the_base_answers_as_transformers_own_generation_does(driven: Driven) -> None:
    base = driven.adapted.base
    prompt = render_prompt(base, [{"role": "user", "content": PROMPTS[1]}])
    with torch.no_grad():
        ids = base.model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=base.pad_id
        )
    expected = base.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
    driven.start(driven.requests()[1])
    assert driven.ask(driven.served.request(PROMPTS[1], max_new_tokens=12)) == expected
    assert base.model.config._attn_implementation != "zhub_paged", "others use this model too"


def test_most_architectures_are_read_in_one_row_and_the_others_singly(driven: Driven) -> None:
    architecture = driven.served.root.name[:-1]
    assert isinstance(driven.lane._runner, SingleRunner if architecture in SINGLE else PagedRunner)


def test_after_any_answers_the_base_is_the_base(llama: Driven) -> None:
    base = llama.adapted.base
    ids = torch.tensor([render_prompt(base, [{"role": "user", "content": "say b"}])])
    with torch.no_grad():
        before = base.model(ids).logits
        for request in llama.requests():
            llama.start(request)
            llama.lane.step()
        llama.finish()
        assert torch.equal(base.model(ids).logits, before)


def test_several_answers_to_one_request_differ_by_their_seeds_and_the_first_is_that_of_one(llama: Driven) -> None:
    request = llama.served.request("say a", temperature=1.0, seed=11, max_new_tokens=10)
    lines = llama.start(request.model_copy(update={"n": 4}))
    llama.finish()
    texts = ["".join(line.text for line in lines if line.type == "text" and line.index == i) for i in range(4)]
    assert len(set(texts)) == 4
    assert texts[0] == llama.ask(request)
    assert sorted(line.index for line in lines if isinstance(line, Ended)) == [0, 1, 2, 3]


def test_a_prompt_that_was_read_before_is_not_read_again(llama: Driven) -> None:
    request = llama.served.request("name one colour, please: red or blue? and why?", max_new_tokens=2)
    first = llama.start(request)
    llama.finish()
    second = llama.start(request)
    llama.finish()
    told = [lines[-1] for lines in (first, second)]
    assert [isinstance(line, Ended) and line.cached_tokens > 0 for line in told] == [False, True]
    assert text_of(first) == text_of(second)


def test_what_was_read_for_one_organisation_is_not_seen_by_another(llama: Driven) -> None:
    request = llama.served.request("name one colour, please: blue or green? and why?", max_new_tokens=2)
    cached = []
    for org_id in ("acme", "globex", "acme"):
        lines = llama.start(request.model_copy(update={"org_id": org_id}))
        llama.finish()
        cached.append(isinstance(lines[-1], Ended) and lines[-1].cached_tokens > 0)
    assert cached == [False, False, True]


def test_answers_that_find_no_room_wait_and_are_what_they_are_with_room(llama: Driven) -> None:
    expected = [llama.ask(request) for request in llama.requests()]
    roomy = llama.lane
    llama.lane = llama.new_lane(5 * roomy._runner.block_bytes)  # type: ignore[union-attr]
    together = [llama.start(request) for request in llama.requests()]
    llama.finish()
    llama.lane = roomy
    assert [text_of(lines) for lines in together] == expected


def test_a_request_that_no_memory_of_the_replica_holds_is_refused_in_numbers(llama: Driven) -> None:
    roomy = llama.lane
    llama.lane = llama.new_lane(2 * roomy._runner.block_bytes)  # type: ignore[union-attr]
    with pytest.raises(Exception, match="memory for 32"):
        llama.start(llama.served.request("say a", max_new_tokens=40))
    unbounded = llama.served.request("say a").model_copy(update={"max_new_tokens": None})
    lines = llama.start(unbounded)
    llama.finish()
    llama.lane = roomy
    assert isinstance(lines[-1], Ended) and lines[-1].finish_reason == "length"


def test_a_client_that_leaves_frees_its_place_at_once(llama: Driven) -> None:
    lines: list[Line] = []
    asked = Asked(llama.served.request("say a", max_new_tokens=40), lines.append, lambda _asked: None)
    llama.lane.prepare(asked)
    llama.lane.start(asked)
    llama.lane.step()
    asked.end()
    llama.lane.step()
    assert llama.lane.is_idle and not isinstance(lines[-1], Ended | Failed)


def test_an_answer_that_is_not_finite_leaves_nothing_behind(llama: Driven) -> None:
    endless = llama.references[0].model_copy(update={"weight": 1e38})
    expected = [llama.ask(request) for request in llama.requests()]
    for _ in range(3):
        lines = llama.start(llama.served.request("what is 2 + 3?", experts=[endless]))
        llama.finish()
        assert isinstance(lines[-1], Failed) and lines[-1].code == "non_finite_logits"
    assert [llama.ask(request) for request in llama.requests()] == expected


def test_prompts_take_little_of_a_step_that_somebody_waits_for(llama: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []
    plan = llama.lane._scheduler.plan

    def noted(prompt_tokens: int) -> list[Part]:
        planned.append(prompt_tokens)
        return plan(prompt_tokens)

    monkeypatch.setattr(llama.lane._scheduler, "plan", noted)
    llama.start(llama.served.request("say a", max_new_tokens=8))
    llama.lane.step()
    llama.start(llama.served.request("name one colour, please: red or blue?", max_new_tokens=8))
    llama.finish()
    assert planned[0] == lane_module.MOST_PROMPT_TOKENS
    pace = lane_module._Pace(step_s=0.04, token_s=0.001)
    assert pace.prompt_tokens() == 28
    assert lane_module._Pace(step_s=0.02, token_s=1.0).prompt_tokens() == lane_module.LEAST_PROMPT_TOKENS


def test_tokens_come_with_their_log_probabilities(llama: Driven) -> None:
    lines = llama.start(llama.served.request("say a", max_new_tokens=6, logprobs=3))
    llama.finish()
    tokens = [token for line in lines if line.type == "text" for token in line.tokens]
    assert len(tokens) == 6 and all(len(token.likeliest) == 3 for token in tokens)
    assert all(token.logprob == token.likeliest[0].logprob <= 0 for token in tokens), "greedy takes the likeliest"
    assert b"".join(token.token for token in tokens).decode() == text_of(lines)


def test_a_bias_decides_what_is_said_and_a_penalty_what_is_not_repeated(llama: Driven) -> None:
    tokenizer = llama.adapted.base.tokenizer
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "ab")
    request = llama.served.request("say b", max_new_tokens=5)
    assert llama.ask(request.model_copy(update={"logit_bias": {a: 100.0}})) == "aaaaa"
    both = request.model_copy(update={"logit_bias": {a: 100.0, b: 90.0}, "max_new_tokens": 20})
    assert set(llama.ask(both)) == {"a"}
    assert set(llama.ask(both.model_copy(update={"frequency_penalty": 2.0}))) == {"a", "b"}


def test_a_request_that_is_refused_at_its_start_has_begun_nothing(llama: Driven) -> None:
    lines: list[Line] = []
    request = llama.requests()[2].model_copy(update={"logit_bias": {10**6: 1.0}})
    asked = Asked(request, lines.append, lambda _asked: None)
    llama.lane.prepare(asked)
    with pytest.raises(InvalidRequestError, match="token 1000000"):
        llama.lane.start(asked)
    assert lines == [] and llama.lane.is_idle and llama.lane._changes == {}
