"""The whole path through the real parts, as a user of the openai client walks it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from suites import GRADER
from tiny_models import save_tiny

from zhub.demo.task_families import sample_rows
from zhub.manifest import MANIFEST_FILE, Manifest, sha256_file

pytestmark = pytest.mark.ray


def zhub(stack: Any, *arguments: str) -> str:
    """Run the command line tool against the stack and return what it prints."""
    done = subprocess.run(
        [Path(sys.executable).with_name("zhub"), *arguments],
        env={"ZHUB_DATA_DIR": str(stack.data_dir), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def sorting_job(stack: Any, e2e: Any) -> Any:
    """A finished job that trained an expert for one task family of the shipped base."""
    job = e2e.train(stack.client, sample_rows("sorting", 600, seed=7), "sorting", n_steps=40)
    return e2e.wait_for_job(stack.client, job.id)


def test_a_trained_expert_is_far_better_than_its_base_on_rows_it_never_saw(stack: Any, sorting_job: Any) -> None:
    assert sorting_job.status == "succeeded", sorting_job.error
    version = stack.client.get(f"/experts/{sorting_job.fine_tuned_model}", cast_to=dict[str, Any])
    test = next(e for e in version["manifest"]["evaluations"] if e["split"] == "test")
    assert test["expert"]["mean"] >= test["base"]["mean"] + 0.3
    assert test["p_value"] < 0.01


def test_expert_base_and_auto_answer_and_say_who_did(stack: Any, sorting_job: Any) -> None:
    row = sample_rows("sorting", 1, seed=99, split="test")[0]

    def ask(model: str, **more: Any) -> Any:
        return stack.client.chat.completions.create(
            model=model, messages=row["messages"], temperature=0, max_tokens=16, **more
        )

    expert = ask(sorting_job.fine_tuned_model)
    assert [e["name"] for e in expert.experts] == [sorting_job.fine_tuned_model]
    base = ask("zhub-tiny")
    assert base.experts == [] and base.routing["strategy"] == "base"
    zhub(stack, "experts", "promote", sorting_job.fine_tuned_model)
    # Other tests train on the same kind of rows, but promote nothing.
    auto = ask("auto")
    assert auto.routing["strategy"] == "auto"
    assert [e["name"] for e in auto.experts] == [sorting_job.fine_tuned_model]
    assert auto.choices[0].message.content == expert.choices[0].message.content
    mixed = ask("zhub-tiny", extra_body={"experts": [{"model": sorting_job.fine_tuned_model, "weight": 1.0}]})
    assert mixed.choices[0].message.content == expert.choices[0].message.content


def test_a_streamed_answer_is_the_plain_one(stack: Any, sorting_job: Any) -> None:
    arguments: dict[str, Any] = {
        "model": sorting_job.fine_tuned_model,
        "messages": sample_rows("sorting", 1, seed=98, split="test")[0]["messages"],
        "temperature": 0,
        "max_tokens": 16,
    }
    plain = stack.client.chat.completions.create(**arguments)
    chunks = list(
        stack.client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == plain.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == plain.choices[0].finish_reason
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens


def test_a_trained_expert_shows_what_it_gained_and_whether_its_base_had_anything_to_forget(
    stack: Any, sorting_job: Any
) -> None:
    options = ("--change", "gained", "--limit", "3", "--json")
    gained = json.loads(zhub(stack, "experts", "answers", sorting_job.fine_tuned_model, *options))
    assert [(pair["base_reward"], pair["expert_reward"]) for pair in gained] == [(0, 1)] * 3
    assert all(pair["expert_answer"] == pair["expected"] != pair["base_answer"] for pair in gained)
    events = zhub(stack, "jobs", "events", sorting_job.id)
    assert "The base knows too little to lose anything" in events


def test_a_pulled_expert_verifies(stack: Any, sorting_job: Any, tmp_path: Path) -> None:
    zhub(stack, "experts", "pull", sorting_job.fine_tuned_model, "--directory", str(tmp_path / "expert"))
    manifest = Manifest.model_validate_json((tmp_path / "expert" / MANIFEST_FILE).read_bytes())
    shown = json.loads(zhub(stack, "experts", "show", sorting_job.fine_tuned_model, "--json"))
    assert manifest.digest == shown["digest"]
    for file in manifest.files:
        assert sha256_file(tmp_path / "expert" / file.name) == file.sha256


@pytest.fixture(scope="session", params=["gpt2", "neox"])
def foreign_base(stack: Any, e2e: Any, request: Any, tmp_path_factory: Any) -> Iterator[str]:
    """A base model of another architecture, with its own tokenizer and chat template, added by the command line."""
    name = f"tiny-{request.param}"
    directory = save_tiny(tmp_path_factory.mktemp(name), request.param)
    zhub(stack, "base-models", "add", name, "--path", str(directory))
    e2e.until(f"base model {name}", lambda: name in [m.id for m in stack.client.models.list().data], 120)
    yield name


def test_a_job_leaves_its_log(stack: Any, sorting_job: Any) -> None:
    lines = [json.loads(line) for line in zhub(stack, "jobs", "logs", sorting_job.id, "--json").splitlines()]
    messages = [line["message"] for line in lines]
    assert messages[0].startswith("Attempt 1 on ") and {line["fence"] for line in lines} == {1}
    assert any(message.startswith("Step 40/40: reward") for message in messages)
    assert any(message.startswith("Checkpoint at step") for message in messages)
    followed = zhub(stack, "jobs", "logs", sorting_job.id, "--json", "--follow").splitlines()
    assert [json.loads(line) for line in followed] == lines


def test_any_base_model_takes_the_whole_path(stack: Any, e2e: Any, foreign_base: str) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"What comes after {i}?"}], "answer": str(i + 1)} for i in range(200)
    ]
    # A random model is never right, so every reward is the same.
    hyperparameters = {"n_steps": 3, "max_new_tokens": 4, "preflight_prompts": 0}
    job = e2e.train(stack.client, rows, f"next-{foreign_base}", model=foreign_base, **hyperparameters)
    job = e2e.wait_for_job(stack.client, job.id)
    assert job.status == "succeeded", job.error
    answer = stack.client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "What comes after 7?"}], max_tokens=4
    )
    assert answer.choices[0].message.content is not None
    assert answer.routing["base_model"] == foreign_base


def test_supervised_training_publishes_a_version_too(stack: Any, e2e: Any) -> None:
    rows = [
        {"messages": [*row["messages"], {"role": "assistant", "content": row["answer"]}]}
        for row in sample_rows("sorting", 200, seed=3)
    ]
    file_id = e2e.upload(stack.client, rows, "supervised")
    job = stack.client.fine_tuning.jobs.create(
        model="zhub-tiny",
        training_file=file_id,
        suffix="copy",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_steps": 10, "max_new_tokens": 16}}},
    )
    job = e2e.wait_for_job(stack.client, job.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == "default.copy@v1"


def test_a_running_job_is_cancelled_and_leaves_no_version(stack: Any, e2e: Any) -> None:
    job = e2e.train(stack.client, sample_rows("sorting", 300, seed=5), "cancelled", n_steps=2000)
    e2e.wait_for_step(stack.client, job.id)
    stack.client.fine_tuning.jobs.cancel(job.id)
    job = e2e.wait_for_job(stack.client, job.id, timeout_s=30)
    assert job.status == "cancelled"
    assert job.fine_tuned_model is None
    with pytest.raises(openai.NotFoundError):
        stack.client.models.retrieve("default.cancelled@v1")


CONTAINS = """
def grade(sample, item):
    return float(item["answer"] in sample["output_text"])
"""


def test_a_paused_job_frees_its_worker_and_goes_on_from_its_checkpoint(stack: Any, e2e: Any) -> None:
    hyperparameters = {"n_steps": 12, "eval_interval": 1000, "checkpoint_interval": 3}
    grader = {"type": "python", "name": "contains", "source": CONTAINS}
    jobs = stack.client.fine_tuning.jobs
    job = e2e.train(stack.client, sample_rows("sorting", 300, seed=11), "paused", grader=grader, **hyperparameters)
    e2e.until("a checkpoint", lambda: jobs.checkpoints.list(job.id).data, 120)
    jobs.pause(job.id)
    e2e.until("the job to pause", lambda: jobs.retrieve(job.id).status == "paused", 30)
    newest = jobs.checkpoints.list(job.id).data[0]
    row = sample_rows("sorting", 1, seed=99, split="test")[0]
    answer = stack.client.chat.completions.create(
        model=newest.fine_tuned_model_checkpoint, messages=row["messages"], max_tokens=16
    )
    assert [e["name"] for e in answer.experts] == [newest.fine_tuned_model_checkpoint]
    jobs.resume(job.id)
    job = e2e.wait_for_job(stack.client, job.id)
    assert job.status == "succeeded", job.error
    messages = [event.message for event in jobs.list_events(job.id, limit=100).data]
    assert f"Resumed after step {newest.step_number}." in messages


def test_a_lora_differs_from_an_svf_in_one_word_answers_and_is_measured_beside_it(
    stack: Any, e2e: Any, sorting_job: Any
) -> None:
    job = e2e.train(stack.client, sample_rows("sorting", 300, seed=13), "lora", adapter="lora", n_steps=10)
    job = e2e.wait_for_job(stack.client, job.id)
    assert job.status == "succeeded", job.error
    answer = stack.client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": 'Sort the letters of "dbca".'}]
    )
    assert [expert["name"] for expert in answer.experts] == [job.fine_tuned_model]
    held_out = e2e.upload(stack.client, sample_rows("sorting", 100, seed=17, split="test"), "held-out")
    asked = {
        "model": sorting_job.fine_tuned_model,
        "file": held_out,
        "grader": GRADER,
        "max_new_tokens": 16,
        "compare_with": [job.fine_tuned_model],
    }
    created = stack.client.post("/evaluations", body=asked, cast_to=dict[str, Any])

    def finished() -> Any:
        found = stack.client.get(f"/evaluations/{created['id']}", cast_to=dict[str, Any])
        ended = [one["status"] in ("succeeded", "failed") for one in (found, *found["others"])]
        return found if all(ended) else None

    found = e2e.until("the evaluations", finished, 120)
    assert {one["model"] for one in found["others"]} == {"zhub-tiny", job.fine_tuned_model}
    base = next(one for one in found["others"] if one["model"] == "zhub-tiny")
    assert base["comparison"]["verdict"] == "better"
    again = stack.client.post("/evaluations", body=asked, cast_to=dict[str, Any])
    assert again["id"] == created["id"]
