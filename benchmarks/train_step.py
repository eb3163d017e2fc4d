"""One training step of ours against the authors' algorithm and against LoRA, on the same answers, float32.

A step is what training does once answers are graded: log-probabilities under the base for the KL, the gradient, the
update. Both sides train the MLP matrices, which is all that the authors' code trains. Two models: (a) a Llama-shaped
one of random weights, 8 layers of width 512, with 64 sequences of 128 tokens; (b) the shipped base with 256 sequences
of 24, 8 answers to each of 32 prompts as in the default recipe. In each round the sides take turns, and the ratios of
a round are kept: the machine's speed drifts.

The floor is the ratio that counting operations gives: what would be left if both sides ran at one speed.

(d) is a whole step of reinforcement on a real language model, sampling and grading counted in, beside TRL's GRPO with a
LoRA by peft (``trl_step``). The model is the directory that ``zhub base-models add smollm2 --builtin`` makes, or any
other: ``--model DIR``. Without one, or without TRL (extra ``bench``), (d) is left out, with the reason.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from real_base import load
from reference import ReferenceTrainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from zhub_workers.compute.group import ComputeGroup
from zhub_workers.compute.losses import PolicyGradient
from zhub_workers.compute.requests import Differentiate, Logprobs
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import Adapter, PlainAdapter, SvfAdapter, target_names
from zhub_workers.model.base_model import BaseModel, load_base_model
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.lora import LoraModel

SHIPPED = Path(__file__).parents[1] / "workers" / "zhub_workers" / "shipped_base"
KL_COEF = 0.1
LORA_RANK = 16
BARS = {"a": 1.5, "b": 8.0}
HELD_BAR, LORA_BAR = 0.45, 1.05
TRL_BAR = 2.0


class Check(NamedTuple):
    what: str
    value: float
    bar: float
    better: str

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar


@dataclass(frozen=True)
class Answers:
    """One answer to each prompt, as token ids, and what each is worth: 1 or 0."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.prompts)) + sum(map(len, self.completions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="of (d): the directory of a real language model")
    parser.add_argument("--basis", type=Path, help="where its basis is, or is made and kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    torch.set_num_threads(arguments.threads)
    console = Console()
    table = Table(title=f"Seconds of one training step, median of {rounds} rounds, and ratios of the rounds")
    for column in ("model", "reference", "ours", "LoRA", "reference / ours", "floor", "ours / LoRA", "bytes held"):
        table.add_column(column, justify="right")
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, base, answers in models():
            found = measure(base, answers, Path(directory) / name, rounds)
            results[name] = found
            table.add_row(
                name,
                *(f"{found[side]:.2f}" for side in ("reference_s", "ours_s", "lora_s")),
                *(f"{found[ratio]:.2f}×" for ratio in ("speedup", "floor", "over_lora", "held")),
            )
            console.print(f"({name}) {found['speedup']:.2f}× the reference's speed")
        console.print(table)
        beside_trl = measure_beside_trl(arguments.model, arguments.basis, Path(directory), rounds, console)
    share = max(found["parameter_share"] for found in results.values())
    checks = [
        *(
            Check(f"({name}) times faster than the reference", results[name]["speedup"], BARS[name], "higher")
            for name in BARS
        ),
        *(
            Check(f"({name}) bytes held over the reference's", results[name]["held"], HELD_BAR, "lower")
            for name in BARS
        ),
        *(Check(f"({name}) time over LoRA's", results[name]["over_lora"], LORA_BAR, "lower") for name in BARS),
        Check("parameters over LoRA's", share, 0.10, "lower"),
    ]
    if beside_trl:
        results["d"] = beside_trl
        checks.append(Check("(d) times faster than TRL", beside_trl["speedup"], TRL_BAR, "higher"))
    for check in checks:
        console.print(f"{check.what}: {check.value:.3g}, bar {check.bar:g}: {'met' if check.met else 'MISSED'}")
    bars = {check.what: {"value": check.value, "bar": check.bar, "better": check.better} for check in checks}
    machine = f"{platform.machine()}, {arguments.threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    written = {"name": "train_step", "machine": machine, "results": results, "bars": bars}
    (Path(__file__).parent / "results" / "train_step.json").write_text(json.dumps(written, indent=2) + "\n")


def measure_beside_trl(
    model: Path | None, basis: Path | None, scratch: Path, rounds: int, console: Console
) -> dict[str, float]:
    """Seconds and rewards of a whole step on a real model, TRL's and ours; nothing where something is missing."""
    if model is None or not model.is_dir():
        console.print(f"(d) left out: {model or 'no --model'} is not the directory of a model.")
        return {}
    if importlib.util.find_spec("trl") is None:
        console.print("(d) left out: TRL is missing. Install the extra 'bench'.")
        return {}
    adapted = load(model, basis or scratch / "basis")
    pairs = importlib.import_module("trl_step").measure_beside_trl(adapted, model, scratch / "trl", rounds)
    ours, theirs = zip(*pairs, strict=True)
    found = {
        "ours_s": statistics.median(step.seconds for step in ours),
        "trl_s": statistics.median(step.seconds for step in theirs),
        "speedup": statistics.median(b.seconds / a.seconds for a, b in pairs),
        "ours_reward": statistics.mean(step.reward for step in ours),
        "trl_reward": statistics.mean(step.reward for step in theirs),
    }
    table = Table(title=f"(d) Seconds of a whole step of reinforcement, medians of {rounds} rounds, and mean rewards")
    for column in ("TRL", "ours", "TRL / ours", "reward, TRL", "reward, ours"):
        table.add_column(column, justify="right")
    seconds_of_both = (f"{found[side]:.2f}" for side in ("trl_s", "ours_s"))
    rewards = (f"{found[side]:.3f}" for side in ("trl_reward", "ours_reward"))
    table.add_row(*seconds_of_both, f"{found['speedup']:.2f}×", *rewards)
    console.print(table)
    return found


def models() -> Iterator[tuple[str, BaseModel, Answers]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=8192,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    shipped = load_base_model(SHIPPED)
    large = BaseModel(
        model=model,
        tokenizer=None,
        stop_ids=frozenset({2}),
        eos_id=2,
        pad_id=2,
        context_length=256,
        forward_arguments=shipped.forward_arguments,
        device=torch.device("cpu"),
    )
    yield "a", large, random_answers(64, 1, 64, 64, config.vocab_size)
    yield "b", shipped, random_answers(32, 8, 16, 8, shipped.model.config.vocab_size)


def random_answers(prompts: int, group_size: int, prompt: int, completion: int, vocabulary: int) -> Answers:
    asked = torch.randint(3, vocabulary, (prompts, prompt)).repeat_interleave(group_size, 0).tolist()
    answered = torch.randint(3, vocabulary, (prompts * group_size, completion)).tolist()
    return Answers(asked, answered, [float(row % 2) for row in range(len(asked))])


def measure(base: BaseModel, answers: Answers, directory: Path, rounds: int) -> dict[str, float]:
    adapted = AdaptedModel(base, load_basis(directory, decompose_base(base, directory)))
    reference = ReferenceTrainer(base, kl_coef=KL_COEF, seed=0)
    names = target_names(adapted.layers, "mlp", None)
    assert names == reference.matrices
    svf = SvfAdapter(adapted, names, sigmoid=False)
    lora = PlainAdapter(LoraModel(base, rank=LORA_RANK, alpha=2 * LORA_RANK, names=names))
    with stepping(svf, answers) as ours, stepping(lora, answers) as rival:
        signs = [2 * reward - 1 for reward in answers.rewards]

        def original() -> None:
            reference.step(answers.prompts, answers.completions, signs)
            reference.restore()

        times = [[seconds(side) for side in (original, ours, rival)] for _ in range(rounds + 1)][1:]
    parameters = [sum(value.numel() for value in adapter.initial(0).values()) for adapter in (svf, lora)]
    return {
        "reference_s": statistics.median(round_[0] for round_ in times),
        "ours_s": statistics.median(round_[1] for round_ in times),
        "lora_s": statistics.median(round_[2] for round_ in times),
        "speedup": statistics.median(round_[0] / round_[1] for round_ in times),
        "over_lora": statistics.median(round_[1] / round_[2] for round_ in times),
        "floor": floor(adapted, names, answers),
        "held": held_bytes(adapted, names) / sum(map(size, reference.held().values())),
        "parameter_share": parameters[0] / parameters[1],
    }


@contextmanager
def stepping(adapter: Adapter, answers: Answers) -> Iterator[Callable[[], None]]:
    """A function that takes one step as training does."""
    parameters = {name: value.requires_grad_() for name, value in adapter.initial(0).items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
    advantages = torch.tensor(answers.rewards) - 0.5
    token_count = sum(map(len, answers.completions))
    with ComputeGroup().join(adapter, lambda: False) as member:

        def step() -> None:
            reference = member.run(Logprobs(None, answers.prompts, answers.completions))
            loss = PolicyGradient(advantages, token_count, kl_coef=KL_COEF, reference=reference)
            values = {name: value.detach() for name, value in parameters.items()}
            gradient = member.run(Differentiate(values, answers.prompts, answers.completions, loss))
            for name, value in parameters.items():
                value.grad = gradient.values[name]
            optimizer.step()

        yield step


def floor(adapted: AdaptedModel, names: list[str], answers: Answers) -> float:
    """Multiplications of the reference's step over ours, as the shapes give them, attention scores left out.

    Per token and weight both read it in three passes: the base's forward, the policy's, and the backward to the input.
    For the trained matrices of m × n the reference adds a dense gradient, and composes twice with the useless product.
    We add the gradient in the smaller side's square, see ``gradient_form``, and compose once.
    """
    head: int = adapted.base.model.get_output_embeddings().weight.numel()
    layers = sum(layer_weight(layer).numel() for layer in adapted.layers.values())
    scored = sum(map(len, answers.completions))
    theirs = ours = 3 * answers.tokens * layers
    theirs += 3 * answers.tokens * head
    ours += 3 * scored * head
    for name in names:
        m, n = layer_weight(adapted.layers[name]).shape
        r = min(m, n)
        theirs += answers.tokens * m * n + 2 * (m * r * r + m * n * r)
        ours += min(answers.tokens * r * r + r**3, 2 * answers.tokens * r * r) + m * n * r + r**3
    return theirs / ours


def held_bytes(adapted: AdaptedModel, names: list[str]) -> int:
    """Weights, merged weights, factors on the device, gradients, and parameters with Adam's moments."""
    weights = list(adapted.base.model.parameters())
    merged = [layer_weight(adapted.layers[name]) for name in names]
    delta = list(adapted.zero_delta(names).values())
    factors = [*(adapted.factor(name) for name in names), *map(adapted.singular_values, adapted.layers)]
    return size([*weights, *merged, *factors, *delta, *delta, *delta, *delta])


def size(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
