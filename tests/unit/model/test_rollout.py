"""Generation and scoring, against transformers' own generate and slow full forwards."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from zhub.errors import NonFiniteLogitsError, PromptTooLongError
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import generate, token_logprobs

KINDS = ["llama", "gpt2", "neox"]
PROMPTS = [[3, 10, 11, 4], [3, 20, 4], [3, 5, 6, 7, 8, 9, 4], [3, 20, 4]]
Load = Callable[[str], AdaptedModel]


@torch.no_grad()
def next_logits(base: BaseModel, ids: list[int]) -> Tensor:
    logits: Tensor = base.model(torch.tensor([ids])).logits[0, -1]
    return logits


def greedy_by_hand(base: BaseModel, prompt: list[int], count: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < count and (not ids or ids[-1] not in base.stop_ids):
        ids.append(int(next_logits(base, prompt + ids).argmax()))
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_a_forward_per_token_without_padding_or_cache(
    load_adapted: Load, kind: str
) -> None:
    base = load_adapted(kind).base
    found = generate(base, PROMPTS, max_new_tokens=12, temperature=0, seeds=[0] * 4)
    assert [c.token_ids for c in found] == [greedy_by_hand(base, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers_generate(load_adapted: Load, kind: str) -> None:
    base = load_adapted(kind).base
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        reference = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0
        )
        found = generate(base, [prompt], max_new_tokens=10, temperature=0, seeds=[0])
        assert found[0].token_ids == reference[0, len(prompt) :].tolist()


def test_a_sampled_row_depends_on_its_seed_and_not_on_its_batch_mates(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    together = generate(
        base,
        PROMPTS,
        max_new_tokens=[9, 3, 12, 12],
        temperature=[1.0, 0.0, 0.7, 1.3],
        seeds=[1, 2, 3, 4],
        top_p=[1, 1, 0.8, 1],
    )
    for row, (limit, temperature, top_p) in enumerate([(9, 1.0, 1), (3, 0.0, 1), (12, 0.7, 0.8), (12, 1.3, 1)]):
        alone = generate(
            base, [PROMPTS[row]], max_new_tokens=limit, temperature=temperature, seeds=[row + 1], top_p=top_p
        )
        assert alone[0] == together[row]


def test_the_first_token_is_sampled_from_the_tempered_distribution(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    count = 4000
    found = generate(base, [PROMPTS[0]] * count, max_new_tokens=1, temperature=0.8, seeds=range(count))
    counts = Counter(c.token_ids[0] for c in found)
    expected = (next_logits(base, PROMPTS[0]) / 0.8).softmax(0)
    for token, probability in enumerate(expected.tolist()):
        tolerance = 5 * (probability * (1 - probability) / count) ** 0.5 + 1 / count
        assert counts[token] / count == pytest.approx(probability, abs=tolerance)


def test_top_p_samples_only_from_the_smallest_set_that_reaches_it(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    ordered = next_logits(base, PROMPTS[0]).softmax(0).sort(descending=True)
    size = next(k for k in range(1, 100) if float(ordered.values[:k].sum()) >= 0.5)
    found = generate(base, [PROMPTS[0]] * 500, max_new_tokens=1, temperature=1, seeds=range(500), top_p=0.5)
    assert {c.token_ids[0] for c in found} == set(ordered.indices[:size].tolist())


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-38}, {"temperature": 1e-6}, {"temperature": 1.0, "top_p": 5e-324}]
)
def test_the_smallest_temperature_and_top_p_are_greedy(load_adapted: Load, settings: Any) -> None:
    base = load_adapted("llama").base
    found = generate(base, PROMPTS, max_new_tokens=12, seeds=[1, 2, 3, 4], **settings)
    greedy = generate(base, PROMPTS, max_new_tokens=12, seeds=[0] * 4, temperature=0)
    assert [c.token_ids for c in found] == [c.token_ids for c in greedy]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(load_adapted: Load, value: float, temperature: float) -> None:
    base = load_adapted("llama").base
    broken = base.model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, logits: torch.cat([torch.full_like(logits[..., :1], value), logits[..., 1:]], -1)
    )
    try:
        with pytest.raises(NonFiniteLogitsError, match="not finite"):
            generate(base, PROMPTS, max_new_tokens=3, temperature=temperature, seeds=[0] * 4)
    finally:
        broken.remove()


def test_a_model_may_forbid_tokens_by_minus_infinity(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    forbidding = base.model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, logits: torch.cat([logits[..., :5], torch.full_like(logits[..., 5:], -torch.inf)], -1)
    )
    try:
        found = generate(base, PROMPTS, max_new_tokens=5, temperature=[0.0, 1.0, 0.0, 1.0], seeds=[1, 2, 3, 4])
    finally:
        forbidding.remove()
    assert all(token < 5 for completion in found for token in completion.token_ids)


def test_an_answer_ends_with_its_stop_token_or_at_its_length(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    found = generate(base, [PROMPTS[0]] * 64, max_new_tokens=20, temperature=2.0, seeds=range(64))
    assert {c.finish_reason for c in found} == {"stop", "length"}
    for completion in found:
        stops = [token in base.stop_ids for token in completion.token_ids]
        assert not any(stops[:-1])
        assert stops[-1] == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 20
        assert "</s>" not in completion.text
        assert completion.prompt_tokens == 4


def test_tokens_are_reported_as_they_come(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    seen: list[list[int]] = [[], [], [], []]
    found = generate(
        base,
        PROMPTS,
        max_new_tokens=8,
        temperature=1.5,
        seeds=[5, 6, 7, 8],
        on_token=lambda r, token: seen[r].append(token),
    )
    assert seen == [c.token_ids for c in found]


def test_a_stop_is_obeyed_before_the_next_token(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    answers = iter([False, False, True])
    found = generate(base, [PROMPTS[0]], max_new_tokens=30, temperature=0, seeds=[0], should_stop=lambda: next(answers))
    assert len(found[0].token_ids) == 2 and found[0].finish_reason == "length"


def test_the_models_own_sampling_defaults_are_ignored(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    before = generate(base, PROMPTS, max_new_tokens=8, temperature=1, seeds=[1, 2, 3, 4])
    base.model.generation_config.update(top_k=1, repetition_penalty=5.0, do_sample=True)
    assert generate(base, PROMPTS, max_new_tokens=8, temperature=1, seeds=[1, 2, 3, 4]) == before


def test_a_prompt_that_fills_the_context_is_refused_and_a_long_one_gets_what_is_left(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    assert base.context_length == 64
    with pytest.raises(PromptTooLongError) as caught:
        generate(base, [[3, 4], [5] * 64], max_new_tokens=4, temperature=0, seeds=[0, 0])
    assert (caught.value.line, caught.value.tokens, caught.value.limit) == (2, 64, 63)
    found = generate(base, [[5] * 62], max_new_tokens=40, temperature=0, seeds=[0])
    assert len(found[0].token_ids) <= 2


def test_rows_with_their_own_experts_answer_as_each_expert_alone(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    generator = torch.Generator().manual_seed(3)
    experts = [
        {n: scale * torch.randn(z.shape, generator=generator) for n, z in adapted.zero_delta().items()}
        for scale in (0.0, 0.4, 0.4, 0.4)
    ]
    prompts, seeds = [PROMPTS[0]] * 4, [1, 2, 3, 4]
    with adapted.rows({name: torch.stack([e[name] for e in experts]) for name in experts[0]}) as assign:
        mixed = generate(
            adapted.base,
            prompts,
            max_new_tokens=24,
            temperature=1.5,
            seeds=seeds,
            owners=[0, 1, 2, 3],
            assign=assign,
        )
    assert len({len(c.token_ids) for c in mixed}) > 1, "rows must leave the batch at different times"
    for row, expert in enumerate(experts):
        with adapted.merged({name: 1 + values for name, values in expert.items()}):
            alone = generate(adapted.base, [prompts[row]], max_new_tokens=24, temperature=1.5, seeds=[seeds[row]])
        assert alone[0] == mixed[row]


@pytest.mark.parametrize("kind", KINDS)
def test_scored_tokens_are_the_sampled_ones_with_their_stop_token(load_adapted: Load, kind: str) -> None:
    base = load_adapted(kind).base
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    completions = [c.token_ids for c in generate(base, prompts, max_new_tokens=9, temperature=1.5, seeds=range(5))]
    completions[1] = [2]  # an answer that ended at once
    completions[4] = completions[0]  # the same answer twice
    with torch.no_grad():
        logprobs, mask = token_logprobs(base, prompts, completions, temperature=1.5)
    for row, completion in enumerate(completions):
        assert int(mask[row].sum()) == len(completion)
        for position, token in enumerate(completion):
            slow = (next_logits(base, prompts[row] + completion[:position]) / 1.5).log_softmax(0)[token]
            assert float(logprobs[row, position]) == pytest.approx(float(slow), abs=2e-4)
        assert not logprobs[row, len(completion) :].any()


def test_equal_prompts_of_one_expert_are_read_once_and_rows_may_come_in_any_order(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    generator = torch.Generator().manual_seed(4)
    experts = [
        {n: 0.3 * torch.randn(z.shape, generator=generator) for n, z in adapted.zero_delta().items()} for _ in range(2)
    ]
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    owners, seeds = [1, 0, 0, 1, 0, 0], [1, 2, 3, 4, 5, 6]
    read: list[list[int]] = []
    with adapted.rows({name: torch.stack([e[name] for e in experts]) for name in experts[0]}) as assign:

        def watch(rows: Sequence[int]) -> None:
            read.append(list(rows))
            assign(rows)

        mixed = generate(
            adapted.base, prompts, max_new_tokens=12, temperature=1.5, seeds=seeds, owners=owners, assign=watch
        )
        answers = [completion.token_ids for completion in mixed]
        logprobs, _ = token_logprobs(adapted.base, prompts, answers, owners=owners, assign=assign)
    assert read[0] == [0, 0, 1]
    for owner, expert in enumerate(experts):
        rows = [row for row in range(6) if owners[row] == owner]
        with adapted.merged({name: 1 + values for name, values in expert.items()}):
            alone = generate(
                adapted.base,
                [prompts[row] for row in rows],
                max_new_tokens=12,
                temperature=1.5,
                seeds=[seeds[row] for row in rows],
            )
            own, _ = token_logprobs(adapted.base, [prompts[row] for row in rows], [answers[row] for row in rows])
        assert alone == [mixed[row] for row in rows]
        assert torch.allclose(logprobs[rows, : own.shape[1]], own, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [PROMPTS[:3], [PROMPTS[2]] * 3], ids=["apart", "shared"])
def test_the_gradient_of_scored_tokens_is_that_of_a_log_softmax(
    load_adapted: Load, kind: str, prompts: list[list[int]]
) -> None:
    adapted = load_adapted(kind)
    completions = [[5, 6, 2], [9], [30, 31, 32, 33, 2]]
    gradients = []
    for slow in (False, True):
        delta = {name: zeros.requires_grad_() for name, zeros in adapted.zero_delta().items()}
        with adapted.training(delta):
            if slow:
                total = torch.zeros(())
                for prompt, completion in zip(prompts, completions, strict=True):
                    logits = adapted.base.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
                    total = total + (logits / 0.7).log_softmax(1)[range(len(completion)), completion].square().sum()
            else:
                logprobs, _ = token_logprobs(adapted.base, prompts, completions, temperature=0.7)
                total = logprobs.square().sum()
            torch.autograd.backward(total)
        gradients.append({name: values.grad for name, values in delta.items() if values.grad is not None})
    for name, expected in gradients[1].items():
        assert torch.allclose(gradients[0][name], expected, atol=1e-4 * float(expected.abs().max()))


def test_the_head_reads_only_scored_positions(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    rows: list[int] = []
    handle = base.model.lm_head.register_forward_hook(lambda _, __, logits: rows.append(logits.shape[0]))
    with torch.no_grad():
        token_logprobs(base, PROMPTS[:3], [[5, 6], [7], [8, 9, 2]])
    handle.remove()
    assert rows == [6]


def test_sharing_a_prompt_between_answers_does_not_change_the_gradient(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[0]]
    completions = [[5, 6, 2], [9, 2], [30, 31, 32, 2], [5, 6, 2]]

    def gradient(batches: list[list[int]]) -> dict[str, Tensor]:
        delta = {name: zeros.requires_grad_() for name, zeros in adapted.zero_delta().items()}
        with adapted.training(delta):
            for rows in batches:
                logprobs, _ = token_logprobs(adapted.base, [prompts[r] for r in rows], [completions[r] for r in rows])
                torch.autograd.backward(logprobs.sum())
        return {name: values.grad for name, values in delta.items() if values.grad is not None}

    shared, apart = gradient([[0, 1, 2, 3]]), gradient([[0], [1], [2], [3]])
    assert all(torch.allclose(shared[name], apart[name], atol=1e-3) for name in shared)
