"""Which ways of reading several rows a base allows: measured on tiny models of many architectures, and honoured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch

from zhub.errors import NonFiniteLogitsError
from zhub_workers.model.base_model import BaseModel, Batching, load_base_model
from zhub_workers.model.caches import new_cache, select_rows
from zhub_workers.model.reading import sample_rows, tried, try_reading
from zhub_workers.model.rollout import forward_arguments, generate, token_logprobs
from zhub_workers.model.routing import prompt_embeddings

PROMPTS = [[3, 20, 4], [3, 5, 6, 7, 8, 9, 4], [3, 20, 4], [3, 9, 9, 4]]
ANSWERS = [[5, 6, 7], [9], [8, 7], [5, 6, 7, 2]]
# Which architecture allows what is transformers' own doing, and may change with its releases.
WHOLE = ["llama", "gemma3_text", "mixtral", "falcon_h1", "lfm2", "nemotron_h", "zamba2"]
PARTIAL = ["qwen3_next", "olmo_hybrid", "jamba", "zamba", "recurrent_gemma", "minimax"]
Load = Callable[[str], BaseModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    torch.set_num_threads(1)
    made: dict[str, BaseModel] = {}

    def loaded(name: str) -> BaseModel:
        if name not in made:
            made[name] = load_base_model(families.save_tiny(tmp_path_factory.mktemp(name), name))
        return made[name]

    return loaded


def logprobs_by_hand(base: BaseModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = base.model(torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
    return torch.stack([logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)])


@pytest.mark.parametrize("name", WHOLE)
def test_an_architecture_that_keeps_its_rows_apart_is_read_in_every_way(load: Load, name: str) -> None:
    reading = try_reading(load(name))
    assert reading.batching == Batching() and reading.refused == {}
    assert reading.cached is None


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("qwen3_next", "continued"),  # its gradient alone: the state is overwritten where it is
        ("jamba", "continued"),
        ("zamba", "continued"),
        ("recurrent_gemma", "padded"),
        ("recurrent_gemma", "selected"),
        ("minimax", "padded"),
        ("deepseek_v32", "together"),
    ],
)
def test_a_way_that_changes_a_row_is_refused_with_what_was_found(load: Load, name: str, way: str) -> None:
    reading = try_reading(load(name))
    assert not getattr(reading.batching, way)
    assert "differ" in reading.refused[way] or "Error" in reading.refused[way]


def test_a_cache_that_gives_other_probabilities_than_one_forward_is_noticed(load: Load) -> None:
    assert "than in one forward" in (try_reading(load("deepseek_v32")).cached or "")


def test_logits_that_are_not_finite_are_noticed(load: Load) -> None:
    base = load("llama")
    weight = base.model.model.layers[0].mlp.down_proj.weight
    kept = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(NonFiniteLogitsError):
            try_reading(base)
    finally:
        weight.copy_(kept)


@pytest.mark.parametrize("name", ["llama", *PARTIAL])
def test_a_tried_base_answers_each_row_of_a_batch_as_it_does_alone(load: Load, name: str) -> None:
    base = tried(load(name))
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.9}
    together = generate(base, PROMPTS, seeds=range(4), **settings)
    for row, prompt in enumerate(PROMPTS):
        assert generate(base, [prompt], seeds=[row], **settings) == [together[row]]


@pytest.mark.parametrize("name", ["llama", *PARTIAL])
def test_a_tried_base_scores_each_answer_as_one_forward_alone_does(load: Load, name: str) -> None:
    base = tried(load(name))
    logprobs, mask = token_logprobs(base, PROMPTS, ANSWERS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        torch.testing.assert_close(
            logprobs[row, : len(answer)], logprobs_by_hand(base, prompt, answer), atol=1e-4, rtol=1e-4
        )
        assert mask[row].sum() == len(answer)


@pytest.mark.parametrize(
    "batching", [Batching(together=False), Batching(padded=False), Batching(selected=False), Batching(continued=False)]
)
def test_every_way_of_batching_gives_the_same_answers_and_scores(load: Load, batching: Batching) -> None:
    base = load("llama")
    limited = replace(base, batching=batching)
    settings: dict[str, Any] = {"max_new_tokens": [1, 6, 3, 6], "temperature": 0.9, "seeds": range(4)}
    assert generate(limited, PROMPTS, **settings) == generate(base, PROMPTS, **settings)
    # Several answers to one long prompt, which would be shared.
    shared = [[3, *range(5, 25), 4]] * 4
    expected = token_logprobs(base, shared, ANSWERS)
    torch.testing.assert_close(token_logprobs(limited, shared, ANSWERS), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prompt_embeddings(limited, PROMPTS), prompt_embeddings(base, PROMPTS))


def test_a_base_without_batching_is_given_one_row_at_a_time(load: Load) -> None:
    base = replace(load("llama"), batching=Batching(together=False))
    seen: list[int] = []
    handle = base.model.register_forward_pre_hook(
        lambda _module, _args, arguments: seen.append(len(arguments["input_ids"])), with_kwargs=True
    )
    try:
        generate(base, PROMPTS, max_new_tokens=3, temperature=0, seeds=[0] * 4)
        token_logprobs(base, PROMPTS, ANSWERS)
    finally:
        handle.remove()
    assert set(seen) == {1}


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "falcon_h1", "lfm2", "minimax", "deepseek_v3"])
def test_selected_rows_of_a_cache_go_on_as_if_they_had_been_read_alone(load: Load, name: str) -> None:
    base = load(name)
    rows = torch.tensor([row[:7] for row in sample_rows(base)[:3]])
    cache = new_cache(base.model)
    mask = torch.ones_like(rows)
    base.model(**forward_arguments(base, rows[:, :6], mask[:, :6]), past_key_values=cache, use_cache=True)
    select_rows(cache, torch.tensor([2, 0, 2]))
    last = forward_arguments(base, rows[[2, 0, 2], 6:], mask)
    after = base.model(**last, past_key_values=cache, use_cache=True).logits[:, -1]
    alone = torch.cat([base.model(rows[[row]], use_cache=False).logits[:, -1] for row in (2, 0, 2)])
    torch.testing.assert_close(after, alone, atol=1e-4, rtol=1e-3)


def test_rows_are_sampled_within_a_short_context(load: Load) -> None:
    base = replace(load("llama"), context_length=12)
    assert max(map(len, sample_rows(base))) == 12
    assert try_reading(base).batching == Batching()


def test_a_row_holds_no_special_token(load: Load, tmp_path: Path) -> None:
    base = load("llama")
    special = {*base.tokenizer.all_special_ids, *base.stop_ids, base.pad_id}
    assert not special.intersection(token for row in sample_rows(base) for token in row)
