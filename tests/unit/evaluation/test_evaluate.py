"""An evaluation by the worker, against answers that a tiny model gives when each row is asked alone."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zhub.evaluation.statistics import pass_at_k
from zhub.graders import Grader, StringCheckGrader
from zhub.specs import BaseModelSource, BasisReference, EvaluateSpec, StoredFile
from zhub_workers.compute.group import ComputeGroup, Member
from zhub_workers.evaluation import evaluate
from zhub_workers.evaluation.evaluate import following, run_evaluation
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapters import SvfAdapter
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.rollout import generate

ROWS = [
    {"messages": [{"role": "user", "content": f"{'ab' * (n % 3)}{n} + 1 ="}], "answer": "abcdefgh"[n]} for n in range(8)
]
LINES = [*ROWS, ROWS[-1]]  # the last row twice
GRADER: Grader = StringCheckGrader(
    type="string_check", name="holds", input="{{sample.output_text}}", reference="{{item.answer}}", operation="like"
)


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def adapter(load_adapted: Callable[[str], Any]) -> SvfAdapter:
    model = load_adapted("llama")
    return SvfAdapter(model, list(model.zero_delta()), sigmoid=False)


@pytest.fixture
def member(adapter: SvfAdapter) -> Iterator[Member]:
    with ComputeGroup().join(adapter, lambda: False) as joined:
        yield joined


def spec_of(**changed: Any) -> EvaluateSpec:
    values: dict[str, Any] = {
        "base": BaseModelSource(name="tiny"),
        "basis": BasisReference(weights_fingerprint="w", basis_fingerprint="b", key_prefix="k"),
        "z": None,
        "file": StoredFile(name="suite.jsonl", key="k", sha256="0" * 64, size_bytes=1),
        "grader": GRADER,
        "max_new_tokens": 12,
        "k": 1,
        "n": 0,
        "temperature": 0.0,
        "seed": 0,
    }
    return EvaluateSpec(**(values | changed))


SAMPLED = spec_of(k=2, n=4, temperature=1.0, seed=3)


def run(member: Member, rows_path: Path, spec: EvaluateSpec, values: Any = None) -> dict[str, Any]:
    answering = following(member, values, spec.max_new_tokens)
    return run_evaluation(
        spec, member, answering, Grading(GRADER), rows_path, rows_path.parent, on_event=lambda *_event: None
    )


def alone(member: Member, row: dict[str, Any], *, temperature: float = 0.0, seed: int = 0) -> str:
    """The answer to one row, asked by itself."""
    prompt = render_prompt(member.base, row["messages"])
    (found,) = generate(
        member.base, [prompt], max_new_tokens=12, temperature=temperature, seeds=[seed], should_stop=lambda: False
    )
    return found.text


def written(rows_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (rows_path.parent / evaluate.ROWS_FILE).read_text().splitlines()]


def test_each_distinct_row_has_the_reward_of_its_greedy_answer_in_the_files_order(
    member: Member, rows_path: Path
) -> None:
    expected = [float(str(row["answer"]) in alone(member, row)) for row in ROWS]
    assert 0 < sum(expected) < len(expected)
    assert run(member, rows_path, spec_of()) == {"rewards": expected, "parsed": [True] * 8, "pass_at_k": None}


def test_the_answers_are_those_of_the_expert_given(member: Member, adapter: SvfAdapter, rows_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    zero = adapter.initial(0)
    values = {name: torch.randn(value.shape, generator=generator) for name, value in zero.items()}
    run(member, rows_path, spec_of(), values)
    with adapter.merged(values):
        expected = [alone(member, row) for row in ROWS]
    assert [line["answer"] for line in written(rows_path)] == expected != [alone(member, row) for row in ROWS]


def test_the_rows_can_be_read_with_their_answers(member: Member, rows_path: Path) -> None:
    found = run(member, rows_path, spec_of())
    assert written(rows_path) == [
        {
            "line": line,
            "prompt": row["messages"],
            "answer": alone(member, row),
            "reward": found["rewards"][line - 1],
            "parsed": True,
        }
        for line, row in enumerate(ROWS, start=1)
    ]


def test_pass_at_k_is_estimated_from_all_samples_of_each_row(member: Member, rows_path: Path) -> None:
    rng = random.Random(SAMPLED.seed)
    estimates = []
    for row in ROWS:
        samples = [alone(member, row, temperature=1.0, seed=rng.getrandbits(62)) for _ in range(SAMPLED.n)]
        passed = sum(str(row["answer"]) in sample for sample in samples)
        estimates.append(pass_at_k(SAMPLED.n, passed, SAMPLED.k))
    assert len(set(estimates)) > 1
    assert run(member, rows_path, SAMPLED)["pass_at_k"] == pytest.approx(sum(estimates) / len(ROWS))


def test_how_many_are_answered_at_once_changes_nothing(
    member: Member, rows_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(member, rows_path, SAMPLED)
    monkeypatch.setattr(evaluate, "ANSWERS_AT_ONCE", 3)
    assert run(member, rows_path, SAMPLED) == whole
