"""Which replica a request goes to, and how many replicas there are to be."""

from types import SimpleNamespace
from typing import Any

import pytest

from zhub.answering import ExpertReference
from zhub.generation import EmbeddingRequest, GenerationRequest
from zhub.specs import BaseModelSource
from zhub_workers.serving.ray_routing import TARGET_QUEUE_S, TARGET_REQUESTS, replicas_wanted
from zhub_workers.serving.warmth import MAX_REMEMBERED, SLACK, Warmth, _parts

FIRST = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
LATER = [*FIRST, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]


def request(**changed: Any) -> GenerationRequest:
    base = BaseModelSource(name="tiny", files=[])
    return GenerationRequest(**{"base": base, "basis": None, "org_id": "acme", "messages": FIRST} | changed)


def expert(name: str) -> ExpertReference:
    return ExpertReference(name=name, digest=name, z_key="", z_sha256=name, routing_key="", routing_sha256="")


def test_the_turns_of_a_conversation_go_where_the_first_went() -> None:
    warmth: Warmth[str] = Warmth()
    warmth.note(request().affinity, "b")
    assert warmth.ranked(request(messages=LATER).affinity, {"a": 0, "b": 1})[0] == "b"


@pytest.mark.parametrize(
    "other",
    [{"org_id": "umbrella"}, {"messages": [{"role": "user", "content": "bye"}]}, {"prompt": "x", "messages": []}],
    ids=["organisation", "message", "prompt"],
)
def test_another_conversation_on_the_same_base_goes_to_the_least_busy_that_has_the_base(other: dict[str, Any]) -> None:
    warmth: Warmth[str] = Warmth()
    for replica in ("a", "b"):
        warmth.note(request().affinity, replica)
    wanted = request(**other).affinity
    assert wanted != request().affinity
    assert warmth.ranked(wanted, {"a": 4, "b": 1, "c": 0}) == ["b", "a", "c"], "loading a base takes long"


def test_an_expert_goes_to_who_has_it_while_that_is_hardly_busier() -> None:
    warmth: Warmth[str] = Warmth()
    warmth.note(request(experts=[expert("sums")]).affinity, "b")
    warmth.note(request().affinity, "a")
    other = request(experts=[expert("sums")], org_id="umbrella").affinity
    assert warmth.ranked(other, {"a": 0, "b": SLACK["experts"]})[0] == "b"
    assert warmth.ranked(other, {"a": 0, "b": SLACK["experts"] + 1})[0] == "a"


def test_what_needs_a_base_alone_goes_to_who_has_it() -> None:
    warmth: Warmth[str] = Warmth()
    warmth.note(request().affinity, "b")
    embeddings = EmbeddingRequest(base=request().base, inputs=["x"])
    assert warmth.ranked(embeddings.affinity, {"a": 0, "b": SLACK["base"]})[0] == "b"


def test_a_replica_that_is_much_busier_than_another_is_left_however_warm_it_is() -> None:
    warmth: Warmth[str] = Warmth()
    warmth.note(request().affinity, "b")
    loads = {"a": 0, "b": max(SLACK.values()) + 1}
    assert warmth.ranked(request().affinity, loads) == ["a", "b"]


def test_a_replica_that_is_gone_is_forgotten_and_all_are_tried_at_last() -> None:
    warmth: Warmth[str] = Warmth()
    warmth.note(request().affinity, "gone")
    assert warmth.ranked(request().affinity, {"a": 1, "b": 0}) == ["b", "a"]
    assert warmth.ranked("", {"a": 0}) == ["a"]
    assert warmth.ranked("", {}) == []


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    warmth: Warmth[str] = Warmth()
    for number in range(MAX_REMEMBERED + 10):
        warmth.note(f"{number}", "a")
    warmth.note("new", "a")
    assert len(warmth._sent) == MAX_REMEMBERED
    assert "new" in warmth._sent and "0" not in warmth._sent


def test_the_parts_of_an_affinity_are_a_few_however_it_is_written() -> None:
    assert _parts("base/experts/beginning") == ["base/experts/beginning", "base/experts", "base"]
    assert Warmth[str]().ranked("/" * 9000, {"a": 0}) == ["a"]


@pytest.mark.parametrize(
    ("requests", "queues", "wanted"),
    [(0, {}, 0), (TARGET_REQUESTS + 1, {}, 2), (3, {"a": 2 * TARGET_QUEUE_S, "b": 0.1}, 3), (3, {"a": 0.1}, 1)],
)
def test_replicas_are_wanted_by_requests_and_by_how_long_the_waiting_prompts_take(
    requests: float, queues: dict[str, float], wanted: int
) -> None:
    context: Any = SimpleNamespace(total_num_requests=requests, aggregated_metrics={"queue_s": queues})
    assert replicas_wanted(context) == (wanted, {})
