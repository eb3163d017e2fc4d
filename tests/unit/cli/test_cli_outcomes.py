"""What the command line shows of a training's outcome: answers before and after, and what was forgotten."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from api_examples import EXPERT, JOB, MANIFEST, ROUTING, Z

from zhub.manifest import Accuracy, FileEntry

Run = Callable[..., int]
FILES = f"/v1/experts/{EXPERT}/files"


def accuracy(mean: float) -> dict[str, Any]:
    return Accuracy(mean=mean, low=mean - 0.1, high=mean + 0.1, n=320).model_dump()


def part(name: str, base: float, expert: float, verdict: str) -> dict[str, Any]:
    return {"name": name, "base": accuracy(base), "expert": accuracy(expert), "p_value": 0.004, "verdict": verdict}


GENERAL = part("general", 0.5, 0.4, "worse") | {
    "sentence": "Better at arithmetic (+20 points), worse at grammar (-30 points).",
    "categories": [part("arithmetic", 0.3, 0.5, "better"), part("grammar", 0.6, 0.3, "worse")],
}


def line(number: int, change: str, suite: str = "test", **fields: Any) -> dict[str, Any]:
    rewards = {"lost": (1.0, 0.0), "gained": (0.0, 1.0), "same": (0.25, 0.25)}[change]
    pair = {
        "suite": suite,
        "category": "grammar" if suite == "general" else None,
        "line": number,
        "change": change,
        "prompt": [{"role": "user", "content": f"question {number}?"}],
        "expected": "right",
        "base_answer": f"before {number}",
        "expert_answer": f"after {number}",
        "base_reward": rewards[0],
        "expert_reward": rewards[1],
    }
    return pair | fields


LINES = [
    *(line(number, "lost") for number in range(1, 6)),
    *(line(number, "gained") for number in range(6, 11)),
    line(11, "same"),
    line(12, "lost", suite="general"),
]


@pytest.fixture
def version(api: Any) -> None:
    """A version that was asked the general suite, and keeps what was answered."""
    content = "".join(json.dumps(pair) + "\n" for pair in LINES).encode()
    entry = FileEntry(name="answers.jsonl", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest = MANIFEST.model_copy(update={"files": [*MANIFEST.files, entry]})
    api.publish(manifest, {"z.safetensors": Z, "routing.safetensors": ROUTING, "answers.jsonl": content})
    api.answers["GET", f"/v1/experts/{EXPERT}"]["general"] = GENERAL


@pytest.mark.usefixtures("version")
def test_a_version_is_shown_with_what_it_does_better_and_worse(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "show", EXPERT) == 0
    out = capsys.readouterr().out
    rows = {row.split()[0]: row for row in out.splitlines() if row}
    assert "30.0 % [20.0, 40.0]" in rows["arithmetic"] and rows["arithmetic"].endswith("better")
    assert rows["general"].endswith("worse") and rows["grammar"].endswith("worse")
    assert "Better at arithmetic (+20 points), worse at grammar (-30 points)." in out


@pytest.mark.usefixtures("version")
def test_a_version_is_shown_with_three_answers_that_it_lost_and_three_that_it_gained(
    zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("experts", "show", EXPERT) == 0
    captured = capsys.readouterr()
    shown = [row.split()[:2] for row in captured.out.splitlines() if row.startswith(("lost", "gained"))]
    assert shown == [["lost", "1"], ["lost", "2"], ["lost", "3"], ["gained", "6"], ["gained", "7"], ["gained", "8"]]
    assert f"zhub experts answers {EXPERT}" in captured.err


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ((), [*range(1, 12)]),
        (("--change", "gained"), [*range(6, 11)]),
        (("--change", "same"), [11]),
        (("--limit", "2"), [1, 2]),
        (("--general",), [12]),
    ],
)
def test_answers_are_chosen_by_their_change_and_their_suite(
    options: tuple[str, ...], numbers: list[int], zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("experts", "answers", EXPERT, *options, "--json") == 0
    assert [pair["line"] for pair in json.loads(capsys.readouterr().out)] == numbers


@pytest.mark.usefixtures("version")
def test_an_answer_is_on_one_line_and_shows_a_reward_between_right_and_wrong(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = line(1, "same", base_answer="a\n\x1b[31m b", expert_answer=None, expected=None)
    api.add("GET", f"{FILES}/answers.jsonl", json.dumps(odd).encode() + b"\n")
    assert zhub("experts", "answers", EXPERT) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["same", "1", "question", "1?", "-", "a", "\ufffd[31m", "b", "(0.25)", "-", "(0.25)"]


def test_a_version_of_an_earlier_release_has_no_answers_and_says_so(
    zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("experts", "answers", EXPERT) == 0
    assert "trained by an earlier release" in capsys.readouterr().err
    assert zhub("experts", "show", EXPERT) == 0
    assert "BESIDE ITS TASK" not in capsys.readouterr().out


@pytest.mark.usefixtures("version")
def test_a_version_is_shown_although_its_answers_cannot_be_read(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse("GET", f"{FILES}/answers.jsonl", 503, "store_error", "The store is away.")
    assert zhub("experts", "show", EXPERT) == 0
    captured = capsys.readouterr()
    assert EXPERT in captured.out and "What it answered cannot be shown now: The store is away." in captured.err


def test_a_job_is_shown_with_what_became_of_its_base_beside_its_task(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    means = {"base_mean": 0.25, "expert_mean": 0.75, "p_value": 0.01, "general": "Worse at grammar (-30 points)."}
    result = {"best_step": 9, "learned_nothing": False, **means}
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", JOB | {"result": result})
    assert zhub("jobs", "show", "ftjob-1") == 0
    assert "Worse at grammar (-30 points)." in capsys.readouterr().out
