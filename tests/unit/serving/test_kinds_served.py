"""Serving answers with experts of every kind, in one batch, as their weights would."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from served_engines import Served, text_of

from zhub.answering import ExpertReference
from zhub.generation import Ended, Started
from zhub.recipes import AdapterKind, SupervisedHyperparameters
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import Adapter, adapter_settings, make_adapter
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.rollout import generate
from zhub_workers.serving import experts as experts_module

KINDS: tuple[AdapterKind, ...] = get_args(AdapterKind)
PROMPTS = [f"add {i} and {i + 7}" for i in range(40)]


class Kind:
    """An expert of one kind with random values, and how it answers when it is merged into the weights."""

    def __init__(self, served: Served, kind: AdapterKind) -> None:
        hyper = SupervisedHyperparameters(n_steps=1, adapter=kind, lora_rank=4, lora_alpha=8.0)
        self.adapter: Adapter = make_adapter(AdaptedModel(served.base, served.basis), hyper)
        generator = torch.Generator().manual_seed(KINDS.index(kind))
        self.values = self.adapter.values(
            {
                name: value + 0.3 * torch.randn(value.shape, generator=generator)
                for name, value in self.adapter.initial(0).items()
            }
        )
        file = ExpertFile(kind, self.adapter.exported(self.values), adapter_settings(hyper))
        self.reference: ExpertReference = served.expert_of(kind, file, PROMPTS)

    def merged_answer(self, content: str) -> str:
        prompt = render_prompt(self.adapter.base, [{"role": "user", "content": content}])
        with self.adapter.merged(self.values):
            return generate(self.adapter.base, [prompt], max_new_tokens=12, temperature=0.0, seeds=[0])[0].text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    return Served(tmp_path_factory.mktemp("served"), model_directory("llama"))


@pytest.fixture(scope="module")
def kinds(served: Served) -> dict[AdapterKind, Kind]:
    return {kind: Kind(served, kind) for kind in KINDS}


def test_one_batch_answers_with_experts_of_every_kind_as_they_do_when_merged(
    served: Served, kinds: dict[AdapterKind, Kind]
) -> None:
    requests = [served.request("add 3 and 4", experts=[kind.reference]) for kind in kinds.values()]
    together = served.ask_all([*requests, served.request("add 3 and 4")])
    expected = [kind.merged_answer("add 3 and 4") for kind in kinds.values()]
    assert [text_of(lines) for lines in together[:-1]] == expected
    assert len(set(map(text_of, together))) == len(KINDS) + 1, "the answers must differ for this to mean anything"


def test_a_mixture_may_hold_several_kinds(served: Served, kinds: dict[AdapterKind, Kind]) -> None:
    parts = [kind.reference.model_copy(update={"weight": 0.3}) for kind in kinds.values()]
    lines = served.ask(served.request("add 3 and 4", experts=parts))
    assert isinstance(lines[0], Started) and lines[0].strategy == "mixture"
    assert isinstance(lines[-1], Ended)


def test_auto_may_choose_an_expert_of_any_kind(served: Served, kinds: dict[AdapterKind, Kind]) -> None:
    lines = served.ask(served.request("add 12 and 19", candidates=[kinds["dora"].reference]))
    assert isinstance(lines[0], Started) and [expert.name for expert in lines[0].experts] == ["dora"]
    assert text_of(lines) == kinds["dora"].merged_answer("add 12 and 19")


def test_experts_that_fill_the_memory_are_dropped_the_least_recently_used_first(
    served: Served, kinds: dict[AdapterKind, Kind], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    adapted = AdaptedModel(served.base, served.basis)
    held = experts_module.Experts(served.store, tmp_path)
    lora, svf, frames = (kinds[name].reference for name in ("lora", "svf", "frames"))
    first, second = held.change(adapted, svf), held.change(adapted, lora)
    assert held.change(adapted, svf) is first
    monkeypatch.setattr(experts_module, "MAX_CHANGES_BYTES", held.size_bytes)
    held.change(adapted, frames)
    assert held.size_bytes <= experts_module.MAX_CHANGES_BYTES
    assert held.change(adapted, svf) is first
    assert held.change(adapted, lora) is not second
