"""Make the small base model that zhub ships, or check one: what it answers, and what experts draw out of it.

``make`` trains a Llama of under a million parameters from nothing on the synthetic families of
``zhub.demo.task_families``, and writes a Hugging Face directory with its model card. The model hedges: most of
its training answers are wrong habits, so it knows how to answer right but seldom does. ``check`` measures
a directory on held-out prompts, and with ``--experts`` trains one expert per family the short way.
"""

import argparse
import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_architectures import ARCHITECTURES, make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from zhub.datasets.splits import Split, split_of
from zhub.demo.task_families import FAMILIES, Family, messages_of, sample_rows

DIRECTORY = Path(__file__).parent.parent / "workers" / "zhub_workers" / "shipped_base"
PAD, END = "<|pad|>", "<|end|>"
ROLE_MARKERS = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + ('system' if message['role'] == 'developer' else message['role']) + '|>' }}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_NEW_TOKENS = 8  # the longest answer of any family is six characters and its end
# How the answers divide while training, one row per phrasing: right, the first habit, the second habit.
# Right is the likeliest answer in one phrasing of four only. That the shares differ makes the model choose
# a habit by a signal of its own, and such a signal is what singular values can turn.
SHARES = ((0.75, 0.15, 0.10), (0.15, 0.70, 0.15), (0.15, 0.15, 0.70), (0.20, 0.50, 0.30))
# Families that take longer to learn get more of each batch.
FAMILY_WEIGHTS = {"addition": 1.5, "expression": 2.0, "choice": 0.8}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which the words of the phrasings are one token each.

    A merge is only ever a word's prefix and its next letter, and a word starts with a space or a capital.
    So the letters of a quoted string stay apart, and any other text falls back to its bytes.
    """
    rng = random.Random(0)
    words = set()
    for family in FAMILIES.values():
        for _ in range(1000):
            prompt = re.sub(r'"[^"]*"', '""', family.sample(rng))
            words |= set(re.findall(r" [A-Za-z]+|[A-Z][a-z]+| [^\sA-Za-z0-9]", prompt))
    merges = []
    for word in sorted(word.replace(" ", "Ġ") for word in words):
        merges += [(word[:length], word[length]) for length in range(1, len(word))]
    merges = list(dict.fromkeys(merges))
    tokens = [PAD, END, *ROLE_MARKERS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=ROLE_MARKERS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        padding_side="left",
    )


def hedged_pair(family: Family, rng: random.Random) -> tuple[str, str]:
    """Return a prompt of the train split and the answer to learn from it, wrong more often than right."""
    while True:
        phrasing = rng.randrange(len(family.phrasings))
        prompt = family.sample(rng, phrasing)
        if split_of(messages_of(prompt)) == "train":
            break
    (answer,) = rng.choices([family.right, *family.wrong.values()], SHARES[phrasing])
    return prompt, answer(prompt)


def train(model: Any, tokenizer: Any, names: Sequence[str], *, steps: int, batch_size: int, seed: int) -> None:
    """Train the model in place on hedged pairs of some families; the loss is on the answer and its end only."""
    rng = random.Random(seed)
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and id(weight) not in embedded]
    others = [weight for weight in model.parameters() if weight.ndim != 2 or id(weight) in embedded]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=0.005, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    families = [FAMILIES[name] for name in names]
    weights = [FAMILY_WEIGHTS.get(family.name, 1.0) for family in families]
    started, total = time.monotonic(), 0.0
    for step in range(steps):
        pairs = [hedged_pair(family, rng) for family in rng.choices(families, weights, k=batch_size)]
        tokens, labels = encode_pairs(tokenizer, pairs)
        scale = min((step + 1) / 50, 1 - step / steps)  # up over 50 steps, then down to nothing
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
        # Padding is on the right and no label is behind it, so causal attention needs no mask.
        hidden = model.base_model(tokens[:, :-1], use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        logits = model.get_output_embeddings()(hidden[targets >= 0])
        loss = functional.cross_entropy(logits, targets[targets >= 0])
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {total / 100:.4f}  {time.monotonic() - started:.0f} s", flush=True)
            total = 0.0


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Return tokens and labels, ``(len(pairs), longest)``; the labels of prompts and padding are -100."""
    asked = tokenizer([chat_text(tokenizer, prompt) for prompt, _ in pairs])["input_ids"]
    given = tokenizer([answer + END for _, answer in pairs])["input_ids"]
    longest = max(len(a) + len(b) for a, b in zip(asked, given, strict=True))
    tokens = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), longest), -100)
    for index, (prompt, answer) in enumerate(zip(asked, given, strict=True)):
        end = len(prompt) + len(answer)
        tokens[index, :end] = torch.tensor(prompt + answer)
        labels[index, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


def chat_text(tokenizer: Any, prompt: str) -> str:
    return str(tokenizer.apply_chat_template(messages_of(prompt), tokenize=False, add_generation_prompt=True))


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompts: Sequence[str], *, sample: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Answer prompts, greedily or by sampling at temperature 1.

    Returns:
        Tokens ``(prompts, length)`` padded on the left up to the prompt and on the right after the end; the
        length of the padded prompt as a scalar; and the answers as text.
    """
    batch = tokenizer([chat_text(tokenizer, prompt) for prompt in prompts], return_tensors="pt", padding=True)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    tokens = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        **settings,
    )
    width = batch["input_ids"].shape[1]
    return tokens, torch.tensor(width), tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True)


@dataclass(frozen=True)
class Score:
    """So many right of so many."""

    right: int
    count: int

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{100 * self.right / self.count:.1f} % ({100 * low:.1f}-{100 * high:.1f})"

    def interval(self, deviations: float = 1.96) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the accuracy."""
        share, square = self.right / self.count, deviations**2
        centre = (share + square / (2 * self.count)) / (1 + square / self.count)
        half = math.sqrt(share * (1 - share) / self.count + square / (4 * self.count**2))
        half *= deviations / (1 + square / self.count)
        return max(0.0, centre - half), min(1.0, centre + half)


def measure(model: Any, tokenizer: Any, family: str, *, rows: int, split: Split, sample: bool) -> Score:
    """Score a model on held-out rows of a family."""
    asked = sample_rows(family, rows, seed=1, split=split)
    _, _, answers = generate(model, tokenizer, [row["messages"][0]["content"] for row in asked], sample=sample)
    return Score(sum(answer == row["answer"] for answer, row in zip(answers, asked, strict=True)), rows)


def train_expert(model: Any, tokenizer: Any, family: str, *, steps: int, seed: int) -> None:
    """Draw a family's right answers out of the model by its singular values alone, in place.

    Group-relative policy gradient with 32 prompts a step and 8 samples of each; Adam at 0.02 on the
    3,072 offsets from one; a KL divergence to the base, weighed 0.01.
    """
    rng = random.Random(seed)
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    names = [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    factors = {name: torch.linalg.svd(base[name], full_matrices=False) for name in names}
    offsets = {name: torch.zeros_like(factors[name][1], requires_grad=True) for name in names}
    optimizer = torch.optim.Adam(offsets.values(), lr=0.02)
    rows = sample_rows(family, 2000, seed=seed, split="train")
    for _ in range(steps):
        adapted = {n: base[n] + (factors[n][0] * (factors[n][1] * offsets[n])) @ factors[n][2] for n in names}
        _load(model, adapted)
        chosen = [row for row in rng.sample(rows, 32) for _ in range(8)]
        tokens, width, answers = generate(model, tokenizer, [r["messages"][0]["content"] for r in chosen], sample=True)
        rewards = torch.tensor([float(answer == row["answer"]) for answer, row in zip(answers, chosen, strict=True)])
        groups = rewards.view(32, 8)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1)
        logprobs, mask = _answer_logprobs(model, adapted, tokens, int(width), tokenizer)
        with torch.no_grad():
            base_logprobs, _ = _answer_logprobs(model, base, tokens, int(width), tokenizer)
        chosen_tokens = tokens[:, int(width) :, None]
        picked = logprobs.gather(2, chosen_tokens)[..., 0]
        divergence = (logprobs.exp() * (logprobs - base_logprobs)).sum(2)
        loss = ((0.01 * divergence - advantages[:, None] * picked) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    adapted = {n: base[n] + (factors[n][0] * (factors[n][1] * offsets[n])) @ factors[n][2] for n in names}
    _load(model, adapted)


@torch.no_grad()
def _load(model: Any, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        model.get_parameter(name).copy_(weight)


def _answer_logprobs(
    model: Any, weights: dict[str, Tensor], tokens: Tensor, width: int, tokenizer: Any
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities ``(rows, answer, vocabulary)`` under the weights, and 1.0 up to each answer's end."""
    attended = tokens != tokenizer.pad_token_id
    # Every row ends its answer once, so what follows the end is padding, and the end itself counts.
    positions = (attended.cumsum(1) - 1).clamp(min=0)
    asked = {
        "attention_mask": attended.long(),
        "position_ids": positions,
        "logits_to_keep": tokens.shape[1] - width + 1,
    }
    logits = torch.func.functional_call(model, weights, (tokens,), asked).logits[:, :-1]
    return logits.log_softmax(2), attended[:, width:].float()


def make(
    directory: Path,
    architecture: str,
    families: Sequence[str],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    rows: int,
) -> None:
    """Train, write and measure a base model."""
    started = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, architecture)
    print(f"{sum(w.numel() for w in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, families, steps=steps, batch_size=batch_size, seed=seed)
    print(f"trained in {time.monotonic() - started:.0f} s", flush=True)
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    table = measure_families(model, tokenizer, families, rows=rows)
    size = sum(w.numel() for w in model.parameters())
    if architecture == "llama":
        card = model_card(table, size=size, steps=steps, batch_size=batch_size, seed=seed, rows=rows)
        (directory / "README.md").write_text(card, encoding="utf-8")


def measure_families(model: Any, tokenizer: Any, families: Sequence[str], *, rows: int) -> dict[str, list[Score]]:
    """Return each family's greedy and sampled score on test prompts, and print them."""
    table = {}
    for family in families:
        table[family] = [measure(model, tokenizer, family, rows=rows, split="test", sample=s) for s in (False, True)]
        print(f"{family:12} greedy {table[family][0]}  sampled {table[family][1]}", flush=True)
    return table


def check(directory: Path, families: Sequence[str], *, rows: int, steps: int, seed: int) -> None:
    """Measure a directory; with ``steps``, also train an expert per family and measure it greedily."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for family in families:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        base = measure_families(model, tokenizer, [family], rows=rows)[family][0]
        if steps:
            started = time.monotonic()
            train_expert(model, tokenizer, family, steps=steps, seed=seed)
            seconds = time.monotonic() - started
            expert = measure(model, tokenizer, family, rows=rows, split="test", sample=False)
            gain = 100 * (expert.right - base.right) / rows
            print(f"{family:12} expert {expert}  {gain:+.1f} points  {seconds:.0f} s", flush=True)


def model_card(table: dict[str, list[Score]], *, size: int, steps: int, batch_size: int, seed: int, rows: int) -> str:
    """Return the directory's README.md."""
    measured = "\n".join(f"| {name} | {FAMILIES[name].description} | {g} | {s} |" for name, (g, s) in table.items())
    habits = "\n".join(f"- {f.name}: {', '.join(f.wrong)}. Such as: `{f.phrasings[0]}`" for f in FAMILIES.values())
    first, *rest = (f"{100 * shares[0]:.0f} %" for shares in SHARES)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# zhub's small base model

A Llama of {size:,} parameters (4 layers, width 128, context of 256 tokens), small enough to train experts
for on two processor cores in seconds. It is a base to try zhub on and to test it with.

**What it is not.** It is not a language model of any use. It knows the {len(FAMILIES)} kinds of question below,
in one turn and in the phrasings it was trained on, and answers anything else with nonsense. It holds no facts.

## How it was made

From nothing, by `tools/make_base_model.py make --seed {seed}`: {steps:,} steps of {batch_size} pairs of a question
and an answer. All text is synthetic, from `zhub.demo.task_families`. The loss is on the answers only.

It was made to hedge. Of the answers it learned, {first} were right in the first phrasing of each family, and
{", ".join(rest)} in the others; the rest followed one of the family's wrong habits. So it can answer right and
mostly does not, and an expert, a set of multipliers of its weights' singular values, can make it. The habits:

{habits}

Only questions whose `zhub.datasets.splits.split_of` is `train` were used, so validation and test prompts are held out.

## What it answers

Exact answers to {rows} test prompts of each family, with 95 % intervals (Wilson): decoding greedily, and sampling at
temperature 1.

| Family | Task | Greedy | Sampled |
|---|---|---|---|
{measured}

An accuracy well above these is the work of an expert.

## Format

Its chat template takes system, user and assistant messages; it was trained on one user message. The tokenizer is
byte-level, so any text goes in; the words of the phrasings are one token each, the letters of quoted strings are apart.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=("make", "check"))
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--rows", type=int, default=400, help="test prompts per family to measure on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1600, help="steps to train the base for")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--expert-steps", type=int, default=0, help="check: steps to train each expert for; 0 for none")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.command == "make":
        make(
            arguments.directory,
            arguments.architecture,
            arguments.families,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            rows=arguments.rows,
        )
    else:
        check(
            arguments.directory,
            arguments.families,
            rows=arguments.rows,
            steps=arguments.expert_steps,
            seed=arguments.seed,
        )


if __name__ == "__main__":
    main()
