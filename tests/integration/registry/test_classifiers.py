"""Classifiers: their rows are those that experts were trained on, and a release pins the one that it asks."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused_with
from classifying import Classifying, prompts
from releasing import findings
from sqlalchemy import Engine
from suites import sums

from zhub.database.sessions import system_session
from zhub.datasets.splits import split_of
from zhub.models import BaseModel
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
MakeFile = Callable[..., str]


@pytest.fixture
def experts(classifying: Classifying, make_file: MakeFile, caller: Caller) -> list[str]:
    """Versions of the experts ``adds`` and ``spells``, on files of their own."""
    files = {name: make_file(caller, prompts(name), f"{name}.jsonl") for name in ("adds", "spells")}
    return [classifying.publish(name, file_id) for name, file_id in files.items()]


@pytest.fixture
def make(ask: Ask, classifying: Classifying) -> Callable[..., Any]:
    """Make the rows of a classifier; return the dataset once they are there."""

    def create(*experts: str, name: str = "which", **fields: Any) -> Any:
        made = ask("post", "/classification_datasets", {"name": name, "experts": experts, **fields})
        assert (made["status"], made["file"]) == ("queued", None)
        classifying.make_rows()
        return ask("get", f"/classification_datasets/{made['id']}")

    return create


@pytest.fixture
def classifier(classifying: Classifying, make: Callable[..., Any], experts: list[str]) -> str:
    """A version that was trained to tell the experts apart."""
    return classifying.publish("which", make(*experts)["file"])


def rows_of(client: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_rows_are_of_prompts_that_the_experts_were_trained_on_with_the_letter_of_each(
    make: Callable[..., Any], experts: list[str], client: openai.OpenAI, ask: Ask
) -> None:
    made = make(*experts)
    assert made["status"] == "succeeded"
    assert [(label["label"], label["model"]) for label in made["labels"]] == [
        ("adds", experts[0]),
        ("spells", experts[1]),
    ]
    rows = rows_of(client, made["file"])
    answers = {(row["label"], row["messages"][-1]["content"]) for row in rows}
    assert answers == {("adds", "A"), ("spells", "B")}
    for row in rows:
        question = row["messages"][0]["content"]
        assert question.startswith(row["label"]) and question.endswith("\nTask?")
        asked = question.removesuffix("\nTask?")
        assert split_of([{"role": "user", "content": asked}]) == "train", "a held-out prompt is not learned from"
    assert len({len([row for row in rows if row["label"] == label]) for label in ("adds", "spells")}) == 1
    file = ask("get", f"/files/{made['file']}")
    assert (file["status"], file["purpose"], file["dataset"]) == ("processed", "user_data", "which")
    assert file["classifies"] == made["labels"] and sum(label["rows"] for label in made["labels"]) == len(rows)


def test_a_prompt_of_a_file_to_evaluate_with_is_not_learned_from(
    make: Callable[..., Any], experts: list[str], client: openai.OpenAI, make_file: MakeFile, caller: Caller
) -> None:
    taught = [row["messages"][0]["content"] for row in rows_of(client, make(*experts)["file"])]
    kept = [text.removesuffix("\nTask?") for text in taught if text.startswith("adds")][:5]
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in kept]
    make_file(caller, "".join(lines).encode(), "suite.jsonl", purpose="evals")
    again = {row["messages"][0]["content"] for row in rows_of(client, make(*experts)["file"])}
    assert not again & {f"{text}\nTask?" for text in kept}


def test_prompts_of_others_are_for_none_of_the_experts(
    make: Callable[..., Any], experts: list[str], client: openai.OpenAI, make_file: MakeFile, caller: Caller
) -> None:
    made = make(*experts, others=[make_file(caller, prompts("talks"), "talks.jsonl")], rows_per_label=10)
    rows = rows_of(client, made["file"])
    assert len(rows) == 30, "of each label as many"
    others = [row for row in rows if row["messages"][0]["content"].startswith("talks")]
    assert len(others) == 10
    assert {(row["label"], row["messages"][-1]["content"]) for row in others} == {("other", "C")}


def test_the_same_seed_takes_the_same_rows_and_another_one_others(
    make: Callable[..., Any], experts: list[str], client: openai.OpenAI
) -> None:
    first, same, other = (rows_of(client, make(*experts, rows_per_label=10, seed=seed)["file"]) for seed in (1, 1, 2))
    assert first == same != other


def test_what_a_classifier_tells_apart_is_shown_with_its_version(classifier: str, experts: list[str], ask: Ask) -> None:
    shown = ask("get", f"/experts/{classifier}")
    assert [known["model"] for known in shown["classifies"]] == experts
    assert ask("get", f"/experts/{experts[0]}")["classifies"] == []


def test_experts_whose_rows_are_gone_are_refused_by_name(
    ask: Ask, classifying: Classifying, experts: list[str], make_file: MakeFile, caller: Caller, client: openai.OpenAI
) -> None:
    without = classifying.publish("moved", None)
    file_id = make_file(caller, prompts("sings"), "sings.jsonl")
    gone = classifying.publish("sings", file_id)
    client.delete(f"/files/{file_id}?force=true", cast_to=object)
    held_out = make_file(caller, prompts("hums", 20), "hums.jsonl", purpose="user_data")
    unsplit = classifying.publish("hums", make_file(caller, prompts("hums"), "humming.jsonl"), validation=held_out)
    client.delete(f"/files/{held_out}?force=true", cast_to=object)
    for name in (without, gone, unsplit):
        body = {"name": "which", "experts": [experts[0], name]}
        refused_with(400, f"that {name} was trained on are not in this project", ask, "post", CLASSIFY, body)


CLASSIFY = "/classification_datasets"


def test_experts_that_no_prompt_tells_apart_are_refused(
    ask: Ask, classifying: Classifying, experts: list[str], make_file: MakeFile, caller: Caller
) -> None:
    def refused(message: str, *names: str, **more: Any) -> None:
        refused_with(400, message, ask, "post", CLASSIFY, {"name": "which", "experts": names, **more})

    file_id = make_file(caller, prompts("adds"), "adds.jsonl")
    refused("were trained on the same rows", experts[0], classifying.publish("twin", file_id))
    refused("are of one expert", experts[0], classifying.publish("adds", file_id))
    refused("Rename other", classifying.publish("other", make_file(caller, prompts("o"), "o.jsonl")))
    refused("so its prompts are not for none", *experts, others=[file_id])
    suite = make_file(caller, sums(20), "suite.jsonl", purpose="evals")
    refused("there to evaluate with", *experts, others=[suite])


def release(ask: Ask, experts: list[str], **fields: Any) -> Any:
    body = {"name": "support", "strategy": "classifier", "experts": [{"model": name} for name in experts]}
    return ask("post", "/releases", body | fields)


def test_a_release_pins_its_classifier_and_its_digest_has_it(ask: Ask, classifier: str, experts: list[str]) -> None:
    made = release(ask, experts, classifier=classifier)
    assert (made["strategy"], made["classifier"]["model"]) == ("classifier", classifier)
    assert ask("get", f"/releases/{made['id']}") == made
    with_it, without = (
        release(ask, experts, strategy="centroid", name=name, **more)
        for name, more in (("a", {"classifier": classifier}), ("b", {}))
    )
    assert with_it["digest"] != without["digest"] and without["classifier"] is None
    differences = ask("get", f"/releases/{with_it['id']}/diff?against={without['id']}")["differences"]
    assert differences == [{"what": "classifier", "before": None, "after": classifier}]


def test_a_later_version_of_a_known_expert_is_known(
    ask: Ask, classifier: str, experts: list[str], classifying: Classifying
) -> None:
    later = classifying.publish("adds", None)
    assert release(ask, [later, experts[1]], classifier=classifier)["experts"][0]["model"] == later


def test_a_classifier_that_cannot_answer_for_the_release_is_refused(
    unfrozen: None, ask: Ask, classifier: str, experts: list[str], classifying: Classifying, system_engine: Engine
) -> None:
    unknown = classifying.publish("sings", None)
    refused_with(400, f"does not know {unknown}", release, ask, [*experts, unknown], classifier=classifier)
    refused_with(400, "was not trained to tell experts apart", release, ask, experts, classifier=experts[0])
    refused_with(400, "the strategy 'classifier' asks an expert version", release, ask, experts)
    with system_session(system_engine) as session:
        other = BaseModel(name="other", status="ready", source={}, basis_fingerprint="x", basis_key_prefix="k")
        session.add(other)
        session.flush()
        session.connection().exec_driver_sql(
            "UPDATE expert_versions SET base_model_id = %s FROM experts e WHERE e.id = expert_id AND e.name = 'which'",
            (other.id,),
        )
    refused_with(400, "belongs to the base 'other'", release, ask, experts, classifier=classifier)


def test_a_classifier_that_a_release_pins_is_not_deleted(
    ask: Ask, classifier: str, experts: list[str], system_engine: Engine
) -> None:
    made = release(ask, experts, classifier=classifier)
    refused_with(409, f"{made['id']} pins {classifier}", ask, "delete", f"/experts/{classifier}")
    assert findings(system_engine) == []
    ask("delete", f"/releases/{made['id']}")
    ask("delete", f"/experts/{classifier}")
    assert findings(system_engine) == []
