"""Tiny random models of many architectures, from registration to an answer: a base that is ready never fails later.

Each goes the way that a team's model goes: it is loaded and tried, decomposed, trained for two steps by reinforcement
and two on targets, and answers a batch whose rows follow the base and two experts, each row as it is answered alone by
merged weights, and the base as transformers' own ``generate`` answers. What the trial refuses, or registers with a
limitation, is told; what it lets in and does not do afterwards is a failure.
"""

import argparse
import json
import os
import platform
import string
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import shipped
import torch
import transformers
from families import FAMILIES, save_tiny
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zhub.errors import UnsupportedModelError
from zhub.graders import StringCheckGrader
from zhub.recipes import Recipe
from zhub.specs import TrainSpec
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.compute.sizes import sizes_of
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import BaseModel, load_base_model, render_prompt
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.model.rollout import generate
from zhub_workers.model.trial import try_base

PROMPTS = ["say a", "what is 2 + 3?", "b", "name one colour, please: red or blue?"]
ROWS = [f"{'please ' * (number % 3)}say {letter}{number}" for letter in "abcd" for number in range(6)]
NEW_TOKENS = 8
RECIPES: tuple[Recipe, ...] = ("reinforcement", "supervised")
LEAST_CONFIGURATIONS = 40
TRAINABLE_BARS = {"dense": 1.0, "mixture": 0.9, "hybrid": 0.85}  # the rest is refused, or serves only


@dataclass
class Outcome:
    """What became of one architecture. ``failures``: what it did not do after it was registered as ready."""

    family: str
    register: str = ""
    limitations: list[str] = field(default_factory=list)
    adapted_share: float = 0.0
    stages: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def trains(self) -> bool:
        return all(self.stages.get(recipe) == "ok" for recipe in RECIPES)

    def stage(self, name: str, work: Callable[[], str]) -> None:
        """Do one stage; what it returns, or raises, is its result. Anything but "ok" is a failure."""
        try:
            self.stages[name] = work()
        except Exception as exc:
            self.stages[name] = f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
        if self.stages[name] != "ok":
            self.failures.append(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="some architectures, of which no result is written")
    asked = parser.parse_args().names
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    console = Console()
    table = Table(title="From registration to an answer, tiny random models")
    columns = ("architecture", "family", "register", "adapted", *RECIPES, "serve", "generate", "limitations", "s")
    for column in columns:
        table.add_column(column)
    outcomes = {}
    for family, architectures in FAMILIES.items():
        for name in architectures:
            if asked and name not in asked:
                continue
            with tempfile.TemporaryDirectory() as directory:
                outcomes[name] = outcome = walk(name, family, Path(directory))
            stages = [outcome.stages.get(stage, "–") for stage in (*RECIPES, "serve", "generate")]
            share = f"{outcome.adapted_share:.0%}"
            told = ", ".join(outcome.limitations)
            table.add_row(name, family, outcome.register, share, *stages, told, f"{outcome.seconds:.1f}")
            console.print(f"{name}: {outcome.register}, {', '.join(stages)} {told}")
    console.print(table)
    if not asked:
        write(outcomes, console)


def walk(name: str, family: str, directory: Path) -> Outcome:
    """One architecture from its files to answers."""
    outcome = Outcome(family)
    began = time.perf_counter()
    try:
        trial = try_base(load_base_model(save_tiny(directory / "model", name), name=name), name)
    except UnsupportedModelError as exc:
        outcome.register = f"refused: {exc}"
        return outcome
    base = trial.base
    outcome.register = "ready"
    outcome.limitations = [limitation.name for limitation in trial.limitations]
    sizes = sizes_of(base.model, base.model.dtype)
    outcome.adapted_share = sizes.adapted_parameters / sizes.parameters
    adapted = AdaptedModel(base, load_basis(directory / "basis", decompose_base(base, directory / "basis")))
    for recipe in RECIPES:
        if "serve_only" in outcome.limitations:
            outcome.stages[recipe] = "refused"
        else:
            outcome.stage(recipe, partial(trained, adapted, recipe, directory))
    outcome.stage("serve", partial(served, adapted))
    outcome.stage("generate", partial(generated, adapted))
    outcome.seconds = time.perf_counter() - began
    return outcome


def trained(adapted: AdaptedModel, recipe: Recipe, directory: Path) -> str:
    """Two steps of a recipe, with validation and all that a job does around them."""
    path = directory / f"{recipe}.jsonl"
    answer = [{"role": "assistant", "content": "yes"}] if recipe == "supervised" else []
    rows = [{"messages": [{"role": "user", "content": prompt}, *answer]} for prompt in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = training(recipe, grader_for(adapted.base))
    adapter = make_adapter(adapted, spec.hyperparameters)
    with ComputeGroup().join(adapter, lambda: False) as member:
        result = shipped.run(spec, member, path)
    if not all(bool(z.isfinite().all()) for z in result.artifact.values()):
        return "z is not finite"
    return "ok" if result.steps else "no step was taken"


def grader_for(base: BaseModel) -> StringCheckGrader:
    """A grader that rewards about half of what a random base says, so that there is something to learn: a letter."""
    prompts = [render_prompt(base, [{"role": "user", "content": prompt}]) for prompt in ROWS]
    answers = generate(base, prompts, max_new_tokens=NEW_TOKENS, temperature=1.0, seeds=range(len(prompts)))
    half = len(answers) / 2
    letter = min(string.ascii_lowercase, key=lambda letter: abs(sum(letter in a.text for a in answers) - half))
    return StringCheckGrader(
        type="string_check", name="letter", input="{{sample.output_text}}", reference=letter, operation="like"
    )


def training(recipe: Recipe, grader: StringCheckGrader) -> TrainSpec:
    asked: dict[str, Any] = {"n_steps": 2, "batch_size": 4, "max_new_tokens": NEW_TOKENS, "eval_interval": 1}
    if recipe == "reinforcement":
        return shipped.spec_of(
            asked | {"group_size": 4}, rows=len(ROWS), seed=7, recipe=recipe, grader=grader.model_dump()
        )
    return shipped.spec_of(asked, rows=len(ROWS), seed=7, recipe=recipe, grader=None)


def served(adapted: AdaptedModel) -> str:
    """A batch whose rows follow the base and two experts, against each row alone under merged weights."""
    base = adapted.base
    prompts = [render_prompt(base, [{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    generator = torch.Generator().manual_seed(1)
    zero = adapted.zero_delta()
    experts = [
        {name: 0.3 * (2 * torch.rand(delta.shape, generator=generator) - 1) for name, delta in zero.items()}
        for _ in range(2)
    ]
    deltas: list[dict[str, Tensor]] = [zero, *experts]
    owners = [0, 1, 2, 2]
    stack = {name: torch.stack([delta[name] for delta in deltas]) for name in zero}
    settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "temperature": 0.0}
    with adapted.rows(stack) as assign:
        together = generate(base, prompts, seeds=[0] * 4, owners=owners, assign=assign, **settings)
    for row, owner in enumerate(owners):
        with adapted.merged({name: 1 + value for name, value in deltas[owner].items()}):
            [alone] = generate(base, [prompts[row]], seeds=[0], **settings)
        if alone.token_ids != together[row].token_ids:
            return f"row {row} is answered otherwise in a batch"
    return "ok"


def generated(adapted: AdaptedModel) -> str:
    """The base's greedy answers against transformers' own."""
    base = adapted.base
    prompts = [render_prompt(base, [{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    own = generate(base, prompts, max_new_tokens=NEW_TOKENS, temperature=0.0, seeds=[0] * len(prompts))
    for prompt, answer in zip(prompts, own, strict=True):
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": base.pad_id}
        theirs = base.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
        if theirs != answer.token_ids:
            return "generate answers otherwise"
    return "ok"


def write(outcomes: dict[str, Outcome], console: Console) -> None:
    """Write the results with their bars."""
    ready = [outcome for outcome in outcomes.values() if outcome.register == "ready"]
    failed = sum(bool(outcome.failures) for outcome in ready)
    bars: dict[str, dict[str, float | str]] = {
        "ready bases that fail later": {"value": failed, "bar": 0, "better": "lower"},
        "configurations": {"value": len(outcomes), "bar": LEAST_CONFIGURATIONS, "better": "higher"},
    }
    for family, bar in TRAINABLE_BARS.items():
        of_family = [outcome.trains for outcome in outcomes.values() if outcome.family == family]
        what = f"share of the {family} architectures that can be trained"
        bars[what] = {"value": round(sum(of_family) / len(of_family), 3), "bar": bar, "better": "higher"}
    for what, found in bars.items():
        console.print(f"{what}: {found['value']}, bar {found['bar']}")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {versions}"
    results = {name: asdict(outcome) for name, outcome in outcomes.items()}
    written = {"name": "architectures", "machine": machine, "results": results, "bars": bars}
    (Path(__file__).parent / "results" / "architectures.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
