"""A few tiny architectures, one of each kind, from registration to an answer: what is ready does not fail later."""

from collections.abc import Callable

import pytest
import torch
from architectures import RECIPES, Outcome, walk

Walk = Callable[[str], Outcome]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    torch.set_num_threads(1)
    made: dict[str, Outcome] = {}

    def outcome(name: str) -> Outcome:
        if name not in made:
            made[name] = walk(name, "", tmp_path_factory.mktemp(name))
        return made[name]

    return outcome


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2", "llama4_text", "qwen3_next", "jamba", "recurrent_gemma"])
def test_a_ready_base_trains_by_both_recipes_and_answers_as_alone_and_as_generate(walked: Walk, name: str) -> None:
    outcome = walked(name)
    assert outcome.register == "ready"
    assert outcome.stages == dict.fromkeys([*RECIPES, "serve", "generate"], "ok")
    assert outcome.failures == [] and outcome.trains


def test_a_base_that_serves_only_answers(walked: Walk) -> None:
    outcome = walked("deepseek_v32")
    assert "serve_only" in outcome.limitations
    assert outcome.stages == {"reinforcement": "refused", "supervised": "refused", "serve": "ok", "generate": "ok"}


def test_an_architecture_without_a_key_value_cache_is_refused_by_name(walked: Walk) -> None:
    assert walked("mamba2").register.startswith("refused: mamba2: Mamba2ForCausalLM has no key-value cache")
