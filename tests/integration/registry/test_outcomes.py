"""What the interface tells of a training's outcome: forgetting in words, and the file with the answers."""

import io
import json
from collections.abc import Callable
from typing import Any

import openai
from sqlalchemy import Engine, update

from zhub.client import Client as ZhubClient
from zhub.database.sessions import system_session
from zhub.evaluation.statistics import accuracy, paired_p_value
from zhub.manifest import ANSWERS_FILE, FileEntry
from zhub.models import Job
from zhub.storage.directory import DirectoryStore

Ask = Callable[..., Any]
Publish = Callable[..., str]
METHOD = {"type": "dpo", "dpo": {"hyperparameters": {}}}
REQUEST = {"model": "tiny", "method": METHOD, "seed": 1, "suffix": None, "metadata": {}}


def evaluation(split: str, base: int, expert: int, n: int = 30) -> dict[str, Any]:
    before, after = ([1.0] * right + [0.0] * (n - right) for right in (base, expert))
    measured = {"base": accuracy(before).model_dump(), "expert": accuracy(after).model_dump()}
    return {"split": split, **measured, "p_value": paired_p_value(before, after)}


EVALUATIONS = [
    evaluation("test", 5, 25),
    evaluation("general", 25, 29, n=60),
    evaluation("general/arithmetic", 5, 27),
    evaluation("general/grammar", 20, 2),
]


def test_a_version_says_what_it_does_better_and_worse(ask: Ask, publish_version: Publish) -> None:
    general = ask("get", f"/experts/{publish_version(evaluations=EVALUATIONS)}")["general"]
    assert {part["name"]: part["verdict"] for part in (general, *general["categories"])} == {
        "general": "inside the noise",
        "arithmetic": "better",
        "grammar": "worse",
    }
    assert general["sentence"].startswith("Better at arithmetic (+73 points), worse at grammar (-60 points); 41.7 %")
    assert (general["base"]["n"], general["categories"][0]["base"]["n"]) == (60, 30)


def test_a_job_says_what_its_expert_does_better_and_worse(
    client: openai.OpenAI, publish_version: Publish, system_engine: Engine
) -> None:
    publish_version(evaluations=EVALUATIONS)
    with system_session(system_engine) as session:
        session.execute(update(Job).values(request=REQUEST))
    (job,) = client.fine_tuning.jobs.list()
    result: Any = job.to_dict()["result"]
    assert (result["general_base_mean"], result["general_expert_mean"]) == (25 / 60, 29 / 60)
    assert result["general"].startswith("Better at arithmetic (+73 points), worse at grammar (-60 points)")


def test_a_version_that_was_not_asked_has_no_general_suite(ask: Ask, publish_version: Publish) -> None:
    assert ask("get", f"/experts/{publish_version()}")["general"] is None


def test_the_answers_are_read_line_by_line_and_only_from_a_version_that_has_them(
    publish_version: Publish, store: DirectoryStore, api_url: str, make_key: Callable[..., str]
) -> None:
    pair: dict[str, Any] = {
        "suite": "test",
        "category": None,
        "line": 1,
        "change": "gained",
        "prompt": [{"role": "user", "content": "1 + 2 ="}],
        "expected": "3",
        "base_answer": "4",
        "expert_answer": "3",
        "base_reward": 0.0,
        "expert_reward": 1.0,
    }
    name = publish_version(files=[FileEntry(name=ANSWERS_FILE, size_bytes=1, sha256="a" * 64)])
    other = publish_version("winter")
    store.put(f"k/{ANSWERS_FILE}", io.BytesIO(json.dumps(pair).encode() + b"\n"))
    with ZhubClient(api_url.removesuffix("/v1"), make_key()) as client:
        assert [answered.model_dump() for answered in client.experts.answers(name)] == [pair]
        assert [client.experts.get(version).has_answers for version in (name, other)] == [True, False]
