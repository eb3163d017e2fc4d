"""One step of reinforcement of ours beside one of TRL's GRPO with a LoRA by peft, on a real language model.

Both read the same rows, sample 8 answers of up to 12 tokens to each of 8 prompts at temperature 1, have them graded by
the same grader, weigh the divergence from the base alike, and compute in float32. Apart from that both have their
defaults: a step of ours measures what it did to the policy, too. TRL generates by transformers (``use_vllm=False``),
and differentiates 16 answers at once, about as many tokens as ours does; 64 take 13 GB.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import shipped
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from zhub.datasets.rows import parse_row
from zhub.demo.language_tasks import LANGUAGE_TASKS
from zhub_workers.compute.group import ComputeGroup, Member
from zhub_workers.evaluation.grading import EncodedRow, Grading, encode_rows
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.train import base_state
from zhub_workers.training.trainer import Trainer

TASK = LANGUAGE_TASKS["sums"]
PROMPTS, GROUP, ANSWER_TOKENS = 8, 8, 12
ROWS = 200
TRL_MICRO_BATCH = 16
KL_COEF = 0.01
LORA_RANK = 16


class Step(NamedTuple):
    """One step: how long it took, and the mean reward of its answers."""

    seconds: float
    reward: float


class Ours:
    """Training by the defaults, step by step."""

    def __init__(self, adapted: AdaptedModel, member: Member) -> None:
        spec = spec_of_ours()
        job = TrainingJob(spec, member, Grading(spec.grader), lambda _level, _message, _data: None)
        lines = [json.dumps(row).encode() for row in TASK.sample_rows(ROWS, seed=1)]
        rows = [parse_row(line, raw) for line, raw in enumerate(lines, 1)]
        self.rows = encode_rows(adapted.base, rows, with_target=False, should_stop=lambda: False)
        self.grading = job.grading
        self._trainer = Trainer(job, base_state(job, [0.0]), lambda _state, _metrics: None)

    def step(self) -> Step:
        started = time.perf_counter()
        metrics = self._trainer.step(self.rows)
        return Step(time.perf_counter() - started, metrics["train_reward_mean"])


class Rounds(TrainerCallback):  # type: ignore[misc]
    """After each step of TRL's one of ours, so that both meet the same machine."""

    def __init__(self, ours: Ours) -> None:
        self.pairs: list[tuple[Step, Step]] = []  # ours, TRL's
        self.rewards: list[float] = []  # of TRL's answers in this step
        self._ours = ours
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.rewards = []
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        theirs = Step(time.perf_counter() - self._began, sum(self.rewards) / len(self.rewards))
        self.pairs.append((self._ours.step(), theirs))


def measure_beside_trl(adapted: AdaptedModel, model: Path, directory: Path, rounds: int) -> list[tuple[Step, Step]]:
    """Take ``rounds`` steps of each, after one that is not counted; return those of ours and of TRL's."""
    with ComputeGroup().join(make_adapter(adapted, spec_of_ours().hyperparameters), lambda: False) as member:
        ours = Ours(adapted, member)
        turns = Rounds(ours)

        def reward(completions: Sequence[Any], line: Sequence[int], **_: Any) -> list[float]:
            """The same grader's, of the same rows."""
            asked: list[EncodedRow] = [ours.rows[of - 1] for of in line]
            found = [grade.reward for grade in ours.grading([answer[0]["content"] for answer in completions], asked)]
            turns.rewards.extend(found)
            return found

        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(model),
            reward_funcs=reward,
            args=trl_config(directory, rounds + 1),
            train_dataset=Dataset.from_list(
                [{"prompt": list(row.row.prompt), "line": row.row.line} for row in ours.rows]
            ),
            peft_config=LoraConfig(
                r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[turns],
        )
        trainer.train()
    return turns.pairs[1:]


def spec_of_ours() -> Any:
    asked = {"batch_size": PROMPTS, "group_size": GROUP, "max_new_tokens": ANSWER_TOKENS, "kl_coef": KL_COEF}
    return shipped.spec_of(asked, rows=ROWS, grader=TASK.grader)


def trl_config(directory: Path, steps: int) -> Any:
    return GRPOConfig(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=TRL_MICRO_BATCH,
        gradient_accumulation_steps=PROMPTS * GROUP // TRL_MICRO_BATCH,
        num_generations=GROUP,
        max_completion_length=ANSWER_TOKENS,
        temperature=1.0,
        beta=KL_COEF,
        use_vllm=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=1,
    )
