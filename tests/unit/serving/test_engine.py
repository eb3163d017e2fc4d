"""The serving engine on a real tiny model: batches of rows that follow different experts, stop strings, refusals."""

import json
import queue
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from served_engines import Served, text_of, until_end

from zhub.answering import ExpertReference
from zhub.errors import TooManyAtOnceError
from zhub.generation import Ended, Failed, Line, Started, Text
from zhub.specs import BaseModelSource
from zhub_workers.serving import engine as engine_module
from zhub_workers.serving.engine import Engine

SCHEMA = json.dumps(
    {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"], "additionalProperties": False}
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    return Served(tmp_path_factory.mktemp("served"), model_directory("llama"))


@pytest.fixture(scope="module")
def experts(served: Served) -> list[ExpertReference]:
    return [
        served.expert("numbers", 1, [f"add {i} and {i + 7}" for i in range(40)]),
        served.expert("letters", 2, [f"spell the word {chr(97 + i % 26) * 3}{i}" for i in range(40)]),
    ]


def test_rows_of_one_batch_follow_their_own_experts(served: Served, experts: list[ExpertReference]) -> None:
    prompts = [f"add {i} and {i + 1}" for i in range(6)]
    choices = [[experts[0]], [experts[1]], [], experts, [experts[0]], []]
    requests = [served.request(p, experts=chosen) for p, chosen in zip(prompts, choices, strict=True)]
    together = [text_of(lines) for lines in served.ask_all(requests)]
    alone = [text_of(served.ask(request)) for request in requests]
    assert together == alone
    assert len(set(together)) > 1, "the experts must differ for this to mean anything"


def test_requests_of_bases_that_differ_in_their_template_alone_are_answered_by_their_own(served: Served) -> None:
    template = served.root / "chat_template.jinja"
    template.write_text("{% for message in messages %}<assistant>{{ message.content }}{% endfor %}")
    other = served.add_file(template)
    files = [file for file in served.source.files if file.name != template.name] + [other]
    asked = served.request("add 3 and 4")
    requests = [asked, asked.model_copy(update={"base": BaseModelSource(name="other", files=files)})]
    together, alone = served.ask_all(requests), [served.ask(request) for request in requests]
    assert [text_of(lines) for lines in together] == [text_of(lines) for lines in alone]
    tokens = {line.prompt_tokens for lines in together for line in lines if isinstance(line, Started)}
    assert len(tokens) == 2, "the prompts must differ in length for this to mean anything"


def test_an_expert_of_weight_zero_answers_like_the_base(served: Served, experts: list[ExpertReference]) -> None:
    nothing = experts[0].model_copy(update={"weight": 0.0})
    base = text_of(served.ask(served.request("add 3 and 4")))
    assert text_of(served.ask(served.request("add 3 and 4", experts=[nothing]))) == base


def test_the_first_line_says_who_answers(served: Served, experts: list[ExpertReference]) -> None:
    started = served.ask(served.request("add 1 and 2", experts=[experts[1]]))[0]
    assert isinstance(started, Started)
    assert [(e.name, e.weight) for e in started.experts] == [("letters", 1.0)]
    assert started.strategy == "expert"


def test_auto_chooses_the_expert_whose_prompts_are_alike(served: Served, experts: list[ExpertReference]) -> None:
    started = served.ask(served.request("add 12 and 19", candidates=experts))[0]
    assert isinstance(started, Started)
    assert [e.name for e in started.experts] == ["numbers"]
    assert "numbers" in started.reason


def test_auto_leaves_foreign_prompts_to_the_base(served: Served, experts: list[ExpertReference]) -> None:
    started = served.ask(served.request("%%%% @@@@ !!!! ####", candidates=experts))[0]
    assert isinstance(started, Started)
    assert started.experts == []
    assert started.strategy == "auto"


def test_auto_leaves_the_prompts_of_an_expert_that_may_not_answer_to_the_base(
    served: Served, experts: list[ExpertReference]
) -> None:
    numbers, letters = experts
    started = served.ask(served.request("add 12 and 19", candidates=[letters], others=[numbers]))[0]
    assert isinstance(started, Started)
    assert started.experts == []
    trial = served.expert("trial", 3, [f"add {i} and {i + 7}" for i in range(40)])
    started = served.ask(served.request("add 12 and 19", candidates=[numbers], others=[trial, letters]))[0]
    assert isinstance(started, Started)
    assert [e.name for e in started.experts] == ["numbers"]


def test_auto_without_candidates_is_the_base_and_says_how_to_promote_one(served: Served) -> None:
    started = served.ask(served.request("add 12 and 19", candidates=[]))[0]
    assert isinstance(started, Started)
    assert started.experts == []
    assert "zhub experts promote" in started.reason


def test_a_stop_string_ends_the_answer_before_it(served: Served, experts: list[ExpertReference]) -> None:
    whole = text_of(served.ask(served.request("add 5 and 6", experts=[experts[0]])))
    assert len(whole) > 3, "the random model must say something for this to mean anything"
    stop = whole[2:4]
    lines = served.ask(served.request("add 5 and 6", experts=[experts[0]], stop=[stop]))
    assert text_of(lines) == whole[: whole.index(stop)]
    assert isinstance(lines[-1], Ended) and lines[-1].finish_reason == "stop"


def test_the_same_seed_gives_the_same_sample(served: Served) -> None:
    request = served.request("say something", temperature=1.0, seed=5)
    assert text_of(served.ask(request)) == text_of(served.ask(request))


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-38}, {"temperature": 5e-324}, {"temperature": 1.0, "top_p": 5e-324}]
)
def test_the_smallest_temperature_and_top_p_answer_with_the_likeliest_tokens(
    served: Served, settings: dict[str, float]
) -> None:
    greedy, smallest = served.ask_all(
        [served.request("add 5 and 6", temperature=0.0), served.request("add 5 and 6", seed=3, **settings)]
    )
    assert text_of(smallest) == text_of(greedy) and smallest[-1] == greedy[-1]


def test_an_answer_without_finite_logits_fails_and_its_batch_mates_are_answered(
    served: Served, experts: list[ExpertReference]
) -> None:
    endless = experts[0].model_copy(update={"weight": 1e38})
    failed, answered = served.ask_all(
        [served.request("add 1 and 2", experts=[endless]), served.request("add 1 and 2", temperature=1.0)]
    )
    assert isinstance(failed[-1], Failed) and failed[-1].code == "non_finite_logits" and text_of(failed) == ""
    assert isinstance(answered[-1], Ended)


def test_a_prompt_that_fills_the_context_is_refused_and_its_batch_mates_are_answered(served: Served) -> None:
    long, short = served.ask_all([served.request("a b " * 2000), served.request("add 1 and 2")])
    assert isinstance(long[-1], Failed) and long[-1].code == "context_length_exceeded"
    assert isinstance(short[-1], Ended)


def test_a_z_whose_bytes_were_changed_is_refused(served: Served, experts: list[ExpertReference]) -> None:
    wrong = experts[0].model_copy(update={"z_sha256": "0" * 64})
    last = served.ask(served.request("add 1 and 2", experts=[wrong]))[-1]
    assert isinstance(last, Failed) and last.code == "digest_mismatch"


def test_a_base_that_is_not_decomposed_yet_answers_alone_and_as_it_will_afterwards(
    served: Served, tmp_path: Path
) -> None:
    alone = served.request("What is 12 plus 30?").model_copy(update={"basis": None})
    engine, served.engine = served.engine, Engine(served.store, tmp_path / "cache", "cpu")
    try:
        first, later = served.ask(alone), served.ask(served.request("What is 12 plus 30?"))
    finally:
        served.engine = engine
    assert isinstance(first[-1], Ended) and isinstance(first[0], Started) and first[0].strategy == "base"
    assert text_of(first) == text_of(later)


def test_a_base_that_is_not_decomposed_yet_has_no_experts(served: Served, experts: list[ExpertReference]) -> None:
    lines = served.ask(served.request("x", experts=experts[:1]).model_copy(update={"basis": None}))
    engine = Engine(served.store, served.root / "another cache", "cpu")
    answer: queue.Queue[Line] = queue.Queue()
    engine.submit(served.request("x", experts=experts[:1]).model_copy(update={"basis": None}), answer.put)
    assert isinstance(lines[-1], Ended)  # the basis is here already, from another request
    failed = until_end(answer)[-1]
    assert isinstance(failed, Failed) and "without its basis" in failed.message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_died_is_not_well(served: Served, tmp_path: Path, until: Callable[..., Any]) -> None:
    class Dying(Engine):
        def _take(self, *, wait: bool) -> None:
            raise SystemExit

    dead = Dying(served.store, tmp_path / "cache", "cpu")
    until(lambda: not dead._thread.is_alive())
    with pytest.raises(RuntimeError, match="thread has died"):
        dead.check_health()
    served.engine.check_health()


def test_an_engine_that_stands_still_in_a_batch_is_not_well(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "STUCK_AFTER_S", -1.0)
    served.engine.check_health()  # it has nothing to do
    findings: list[str] = []

    def send(line: Line) -> None:
        if isinstance(line, Text):
            with pytest.raises(RuntimeError) as caught:
                served.engine.check_health()
            findings.append(str(caught.value))
        lines.put(line)

    lines: queue.Queue[Line] = queue.Queue()
    served.engine.submit(served.request("x"), send)
    until_end(lines)
    assert findings and "generated nothing" in findings[0]


def test_an_answer_that_nobody_can_be_told_of_stops_no_other(served: Served) -> None:
    def gone(_line: Line) -> None:
        raise ConnectionError("whoever asked is gone")

    served.engine.submit(served.request("x"), gone)
    assert isinstance(served.ask(served.request("x"))[-1], Ended)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The shipped base, whose vocabulary can write JSON."""
    return Served(tmp_path_factory.mktemp("shipped"), Path(str(resources.files("zhub_workers") / "shipped_base")))


def test_an_answer_with_a_schema_fits_it_and_its_batch_mates_are_as_ever(shipped: Served) -> None:
    plain = shipped.request("What is 2 plus 3?", max_new_tokens=220)
    held = plain.model_copy(update={"json_schema": SCHEMA})
    alone = shipped.ask(plain)
    answered, beside = shipped.ask_all([held, plain])
    assert json.loads(text_of(answered))["a"] in ("x", "yy")
    assert isinstance(answered[-1], Ended) and answered[-1].finish_reason == "stop"
    assert text_of(beside) == text_of(alone)


def test_an_answer_that_its_rules_end_fails_and_its_batch_mates_are_answered(served: Served) -> None:
    # No token of this base writes a brace.
    failed, answered = served.ask_all([served.request("say a", json_schema=SCHEMA), served.request("say a")])
    assert isinstance(failed[-1], Failed)
    assert isinstance(answered[-1], Ended)


def test_a_schema_that_no_answer_fits_is_refused_and_its_batch_mates_are_answered(served: Served) -> None:
    itself = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}
    endless = json.dumps({"$ref": "#/$defs/a", "$defs": {"a": itself}})
    failed, answered = served.ask_all([served.request("x", json_schema=endless), served.request("x")])
    assert isinstance(failed[-1], Failed) and failed[-1].code == "invalid_request"
    assert isinstance(answered[-1], Ended)


def test_a_base_that_finds_no_room_waits_for_the_others_answers_and_takes_its_place(
    served: Served, tmp_path: Path, until: Callable[..., Any]
) -> None:
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% for message in messages %}<assistant>{{ message.content }}{% endfor %}")
    others = [file for file in served.source.files if file.name != template.name] + [served.add_file(template)]
    engine = Engine(served.store, tmp_path / "cache", "cpu")
    size = sum(file.size_bytes for file in others)
    engine._memory_bytes = 6 * size  # for one base, and not for another beside it
    first, second = queue.Queue[Line](), queue.Queue[Line]()
    asked = served.request("say a", max_new_tokens=40)
    engine.submit(asked, first.put)
    until(lambda: not first.empty())
    other = asked.model_copy(update={"base": BaseModelSource(name="other", files=others)})
    engine.submit(other, second.put)
    until(lambda: not second.empty())
    assert isinstance(first.queue[-1], Ended), "the first base was in the middle of an answer"
    assert isinstance(until_end(second)[-1], Ended)
    assert list(engine._lanes) == [(other.base.digest, other.basis)]
    engine.submit(asked, first.put)
    first.get()
    assert [isinstance(until_end(first)[-1], Ended) for _ in range(2)] == [True, True]


def test_an_organisation_with_too_many_requests_is_refused_and_another_is_not(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_UNANSWERED", 2)
    lines: queue.Queue[Line] = queue.Queue()
    ends = [served.engine.submit(served.request("x", org_id="flood", max_new_tokens=30), lines.put) for _ in range(2)]
    with pytest.raises(TooManyAtOnceError, match="has 2 unanswered requests"):
        served.engine.submit(served.request("x", org_id="flood"), lines.put)
    served.engine.submit(served.request("x", org_id="polite", max_new_tokens=1), lines.put)
    for end in ends:
        end()
    served.engine.submit(served.request("x", org_id="flood", max_new_tokens=1), lines.put)
