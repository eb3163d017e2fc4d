"""Rows of one batch that follow 16 experts, against rows of the base, LoRA rows, and one expert after another.

A row's part of the work that the experts add has a limit that arithmetic gives: the square factor of each adapted
matrix is read twice for each token beside the matrix itself. Both that share of operations and what was measured are
printed. Everything is the time of one processor, the forms in turn, medians over rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import lanes
import peft
import psutil
import torch
import transformers
from rich.console import Console

from zhub.answering import ExpertReference
from zhub.generation import Line
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel, render_prompt
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.rollout import generate
from zhub_workers.serving.lane import Lane

ROWS = 16
STEPS = 24
EXPERTS = 1000
LORA_RANK = 16
MLP = ("gate_proj", "up_proj", "down_proj")
BARS = {
    "16 experts over the base, MLP": (0.75, "higher"),
    "16 experts over the base, all linear layers": (0.55, "higher"),
    "16 mixtures of four over the base, all linear layers": (0.55, "higher"),
    "measured over the limit, MLP": (0.9, "higher"),
    "measured over the limit, all linear layers": (0.9, "higher"),
    "over one after another with recomposed weights": (8.0, "higher"),
    "over a mixed batch of PEFT LoRAs": (1.3, "higher"),
    "with 1,000 experts here over 16": (0.95, "higher"),
    "memory of 1,000 experts over their z": (1.1, "lower"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a real base, as save_pretrained() writes it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    console = Console()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for index, (name, directory) in enumerate(lanes.bases(root, arguments.model).items()):
            base = replace(lanes.load(directory), stop_ids=frozenset())
            adapted = lanes.with_basis(base, root / f"basis-{index}")
            results[name] = measured(adapted, root / f"bench-{index}", arguments.rounds)
            console.print(name, results[name])
    title = f"{ROWS} rows that follow {ROWS} experts, one processor, ratios"
    # Without a real base the run is a look.
    path = Path(__file__).parent / "results" / "mixed_batch.json"
    lanes.report(title, results, BARS, path if arguments.model else None)


def measured(adapted: AdaptedModel, root: Path, rounds: int) -> dict[str, float]:
    """All ratios of one base; more is faster, but for memory."""
    bench = lanes.Bench(adapted, root)
    of_mlp = [bench.expert(seed, only=MLP) for seed in range(ROWS)]
    of_all = [bench.expert(seed) for seed in range(ROWS)]
    quarter = [expert.model_copy(update={"weight": 0.25}) for expert in of_all]
    followed: dict[str, list[list[ExpertReference]]] = {
        "base": [[] for _ in range(ROWS)],
        "mlp": [[expert] for expert in of_mlp],
        "all": [[expert] for expert in of_all],
        "mixtures": [[quarter[(row + k) % ROWS] for k in range(4)] for row in range(ROWS)],
    }
    times: dict[str, list[float]] = {form: [] for form in (*followed, "recomposed", "peft", "many")}
    held = resident_experts(bench)
    lora = peft_model(adapted.base)
    for _ in range(rounds):
        for form, experts in followed.items():
            times[form].append(step_seconds(bench, experts))
        times["many"].append(step_seconds(bench, [[expert] for expert in held[0][-ROWS:]]))
        times["recomposed"].append(recomposed_seconds(adapted))
        times["peft"].append(lora())

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))

    limits = {"MLP": limit(adapted, MLP), "all linear layers": limit(adapted, ("",))}
    found = {
        "16 experts over the base, MLP": ratio("base", "mlp"),
        "16 experts over the base, all linear layers": ratio("base", "all"),
        "16 mixtures of four over the base, all linear layers": ratio("base", "mixtures"),
        "limit, MLP": limits["MLP"],
        "limit, all linear layers": limits["all linear layers"],
        "measured over the limit, MLP": ratio("base", "mlp") / limits["MLP"],
        "measured over the limit, all linear layers": ratio("base", "all") / limits["all linear layers"],
        "over one after another with recomposed weights": ratio("recomposed", "all"),
        "over a mixed batch of PEFT LoRAs": ratio("peft", "all"),
        "with 1,000 experts here over 16": ratio("all", "many"),
        "memory of 1,000 experts over their z": held[1],
    }
    return found


def step_seconds(bench: lanes.Bench, followed: Sequence[Sequence[ExpertReference]]) -> float:
    """Of one token for each row, once all prompts are read."""

    def ignore(_line: Line) -> None: ...

    for row, experts in enumerate(followed):
        bench.start(message(row), 2 * STEPS, ignore, experts)
    lane: Lane = bench.lane
    while any(answer.unread > 1 for answer in lane.running) or len(lane.running) < ROWS:
        lane.step()
    for _ in range(3):
        lane.step()
    began = time.process_time()
    for _ in range(STEPS):
        lane.step()
    taken = (time.process_time() - began) / STEPS
    bench.finish()
    return taken


def recomposed_seconds(adapted: AdaptedModel) -> float:
    """Of one token for each row, where each row's weights are made and then it is answered alone."""
    base = adapted.base
    began = time.process_time()
    for row in range(2):
        with adapted.merged(lanes.random_z(adapted, row)):
            generate(base, [prompt_of(base, row)], max_new_tokens=STEPS, temperature=0.0, seeds=[0])
    return (time.process_time() - began) / 2 * ROWS / STEPS


def peft_model(base: BaseModel) -> Callable[[], float]:
    """Of one token for each row, each with its own LoRA of PEFT."""
    view = AdaptedModel(base, None).weight_sharing_view().base
    config = peft.LoraConfig(r=LORA_RANK, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(view.model, config, adapter_name="0")
    for row in range(1, ROWS):
        model.add_adapter(str(row), config)
    model.eval()
    names = [str(row) for row in range(ROWS)]
    ids = torch.tensor([[base.eos_id] * 24] * ROWS)

    def run() -> float:
        with torch.no_grad():
            cache = model(ids, use_cache=True, adapter_names=names).past_key_values
            began = time.process_time()
            for _ in range(STEPS):
                cache = model(ids[:, :1], past_key_values=cache, use_cache=True, adapter_names=names).past_key_values
        return (time.process_time() - began) / STEPS

    return run


def resident_experts(bench: lanes.Bench) -> tuple[list[ExpertReference], float]:
    """Experts that the replica holds, and what they take of memory over the bytes of their multipliers."""
    process = psutil.Process()
    experts = [bench.expert(1000 + number) for number in range(EXPERTS)]
    bench.experts.change(bench.adapted, experts[0])
    before = process.memory_info().rss
    bytes_of_z = sum(bench.experts.change(bench.adapted, expert).size_bytes for expert in experts)
    return experts, (process.memory_info().rss - before) / bytes_of_z


def limit(adapted: AdaptedModel, only: tuple[str, ...]) -> float:
    """The share of speed that is left if nothing but the operations of the experts comes to those of the base."""
    head = int(adapted.base.model.get_output_embeddings().weight.numel())
    operations = head + sum(layer_weight(layer).numel() for layer in adapted.layers.values())
    added = sum(2 * s.numel() ** 2 for name, (_, s, _) in adapted.basis.factors.items() if name.endswith(only))
    return operations / (operations + added)


def message(row: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell me something about the number {row}."}]


def prompt_of(base: BaseModel, row: int) -> list[int]:
    return render_prompt(base, message(row))


if __name__ == "__main__":
    main()
