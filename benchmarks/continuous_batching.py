"""Answers that join and leave between two tokens against batches that end with their longest answer.

The rival is the engine that zhub had before: it takes all requests that wait as one batch, and the next when the last
of them has ended. Both get the same requests at the same times, prompts of a few words and answers of 4 to 256 tokens.
Time is that of the one processor which they use, so that the ratios hold beside other work: a request that comes at
second 3 comes when the engine has computed, or waited, for three seconds. Beside them `model.generate` for one request
after another, which is what `transformers serve` does without continuous batching, and without HTTP in its way here.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lanes
import torch
import transformers
from rich.console import Console

from zhub.generation import Ended, Line, Text
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel, render_prompt
from zhub_workers.model.rollout import generate

LOAD = 0.7  # of what the batches of before get done
SHORTEST, LONGEST = 4, 256
LONG_PROMPT_TOKENS = 2000
BATCH_ROWS = 64
BARS = {
    "throughput over batches, saturated": (1.5, "higher"),
    "throughput over one after another": (1.5, "higher"),
    "mean latency over batches": (0.5, "lower"),
    "p99 latency over batches": (0.5, "lower"),
    "gap beside a long prompt over the usual": (3.0, "lower"),
    "share of the next turn read from the cache": (0.9, "higher"),
}


@dataclass(frozen=True)
class Request:
    """``at`` is the second at which it comes."""

    at: float
    text: str
    new_tokens: int


class Clock:
    """Seconds of processor time, and those that were waited."""

    def __init__(self) -> None:
        self._waited = -time.process_time()

    def now(self) -> float:
        return time.process_time() + self._waited

    def wait_until(self, moment: float) -> None:
        self._waited += max(0.0, moment - self.now())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--model", type=Path, help="a real base, as save_pretrained() writes it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    console = Console()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for index, (name, directory) in enumerate(lanes.bases(root, arguments.model).items()):
            results[name] = measured(directory, root / str(index), arguments.requests)
            console.print(name, results[name])
    title = "Continuous batching, one processor, ratios"
    # Without a real base the run is a look.
    path = Path(__file__).parent / "results" / "continuous_batching.json"
    lanes.report(title, results, BARS, path if arguments.model else None)


def measured(directory: Path, root: Path, count: int) -> dict[str, float]:
    """All ratios of one base."""
    base = replace(lanes.load(directory), stop_ids=frozenset())  # so that answers have the length that is asked for
    longest = min(LONGEST, (base.context_length or LONGEST) - 64)
    at_once = requests(count, 0.0, longest)
    batches = run_batches(base, at_once)
    running = run_lane(bench_of(base, root), at_once)
    alone = run_alone(base, at_once[: max(4, count // 6)])
    rate = LOAD * count / batches.seconds
    spread = requests(count, rate, longest)
    before, now = run_batches(base, spread), run_lane(bench_of(base, root), spread)
    found = {
        "throughput over batches, saturated": running.saturated / batches.saturated,
        "throughput over one after another": running.throughput / alone.throughput,
        "mean latency over batches": statistics.mean(now.latencies) / statistics.mean(before.latencies),
        "p99 latency over batches": quantile(now.latencies) / quantile(before.latencies),
        "tokens a second": running.throughput,
    }
    if (base.context_length or 1 << 20) > LONG_PROMPT_TOKENS + LONGEST:
        found["gap beside a long prompt over the usual"] = gap_ratio(bench_of(base, root))
    found["share of the next turn read from the cache"] = second_turn(bench_of(lanes.load(directory), root))
    return found


def bench_of(base: BaseModel, root: Path) -> lanes.Bench:
    return lanes.Bench(AdaptedModel(base, None), root)


def requests(count: int, rate: float, longest: int) -> list[Request]:
    """Poisson arrivals at ``rate`` a second; 0 is all at once. Lengths are even on a logarithmic scale."""
    rng, at, made = random.Random(7), 0.0, []
    for number in range(count):
        at += rng.expovariate(rate) if rate else 0.0
        length = round(SHORTEST * (longest / SHORTEST) ** rng.random())
        made.append(Request(at, f"What is {number} plus {rng.randrange(100)}?", length))
    return made


@dataclass(frozen=True)
class Run:
    """``latencies`` from a request's coming to its last token; ``seconds`` until all were answered.

    ``saturated`` is tokens a second for as long as more requests are not answered than rows fit a batch.
    """

    latencies: list[float]
    tokens: int
    seconds: float
    saturated: float = 0.0

    @property
    def throughput(self) -> float:
        return self.tokens / self.seconds


def run_batches(base: BaseModel, asked: list[Request]) -> Run:
    """The rival: what waits is one batch, and the next begins when its last answer has ended."""
    clock, done, left = Clock(), dict[Request, float](), list(asked)
    saturated = 0.0
    while left:
        if len(left) <= BATCH_ROWS and done:
            saturated = saturated or sum(request.new_tokens for request in done) / clock.now()
        clock.wait_until(left[0].at)
        batch = [request for request in left if request.at <= clock.now()][:BATCH_ROWS]
        left = left[len(batch) :]
        ids: list[list[int]] = [[] for _ in batch]

        def on_token(row: int, token: int, batch: list[Request] = batch, ids: list[list[int]] = ids) -> None:
            ids[row].append(token)
            base.tokenizer.decode(ids[row], skip_special_tokens=True)
            if len(ids[row]) == batch[row].new_tokens:
                done[batch[row]] = clock.now()

        generate(
            base,
            [prompt_of(base, request) for request in batch],
            max_new_tokens=[request.new_tokens for request in batch],
            temperature=0.0,
            seeds=[0] * len(batch),
            on_token=on_token,
        )
    return run_of(asked, done, saturated)


def run_lane(bench: lanes.Bench, asked: list[Request]) -> Run:
    """Ours."""
    clock, done, left = Clock(), dict[Request, float](), list(asked)
    saturated = 0.0

    def on_line(request: Request) -> Callable[[Line], object]:
        return lambda line: done.setdefault(request, clock.now()) if isinstance(line, Ended) else None

    while left or not bench.lane.is_idle:
        if bench.lane.is_idle:
            clock.wait_until(left[0].at)
        while left and left[0].at <= clock.now():
            request = left.pop(0)
            bench.start(said(request.text), request.new_tokens, on_line(request))
        bench.lane.step()
        if len(asked) - len(done) <= BATCH_ROWS and not saturated:
            to_come = sum(answer.max_tokens - len(answer.tokens) for answer in bench.lane.running)
            saturated = (sum(request.new_tokens for request in asked) - to_come) / clock.now()
    return run_of(asked, done, saturated)


def run_alone(base: BaseModel, asked: list[Request]) -> Run:
    """`model.generate`, one request after another."""
    clock, done = Clock(), dict[Request, float]()
    for request in asked:
        ids = torch.tensor([prompt_of(base, request)])
        with torch.no_grad():
            base.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=base.pad_id,
            )
        done[request] = clock.now()
    return run_of(asked, done)


def gap_ratio(bench: lanes.Bench) -> float:
    """The longest gap between two tokens of an answer while a long prompt is read, over the usual gap."""
    clock = Clock()
    moments: list[float] = []
    # Its characters may be of several tokens, so it is not its pieces that are counted.
    bench.start(said("Count for me."), 200, lambda _line: None)
    words = "tell me about the number seven and its friends "
    per_word = len(bench.adapted.base.tokenizer(words)["input_ids"])
    for index in range(200):
        if index == 60:
            usual = statistics.median(gaps(moments)[20:])
            before = len(moments)
            bench.start(said(words * (LONG_PROMPT_TOKENS // per_word)), 2, lambda _line: None)
        bench.lane.step()
        moments.append(clock.now())
    # The single longest may be the collector's.
    return sorted(gaps(moments[before:]))[-2] / usual


def gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)]


def second_turn(bench: lanes.Bench) -> float:
    """The share of a conversation's second prompt that need not be read again."""
    lines: list[Line] = []
    text = "What is twelve plus thirty? Please think about it, and say how you came to it. "
    base = bench.adapted.base
    history = said(text * max(2, min(400, (base.context_length or 400) // 2) // len(base.tokenizer(text)["input_ids"])))
    for _ in range(2):
        lines = []
        prompt = len(render_prompt(base, history))
        bench.start(history, 24, lines.append)
        bench.finish()
        answer = "".join(line.text for line in lines if isinstance(line, Text))
        history += [{"role": "assistant", "content": answer}, *said("And?")]
    (ended,) = (line for line in lines if isinstance(line, Ended))
    return ended.cached_tokens / prompt


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompt_of(base: BaseModel, request: Request) -> list[int]:
    return render_prompt(base, said(request.text))


def run_of(asked: list[Request], done: dict[Request, float], saturated: float = 0.0) -> Run:
    latencies = [done[request] - request.at for request in asked]
    return Run(latencies, sum(request.new_tokens for request in asked), max(done.values()), saturated)


def quantile(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


if __name__ == "__main__":
    main()
