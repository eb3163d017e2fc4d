"""Chat through a whole stack with two replicas: some are killed, an expert's alias moves, and a tenant floods.

Capacity is what the stack answers when asked as much as it takes. Then three tenants send requests at random times (an
open loop: nobody waits for an answer before the next request), together at 70 % of what is theirs of that capacity
where four tenants want all of it; the fourth keeps hundreds of requests waiting all the time, from a process of its
own: what the others wait for is zhub, and not the client of the flood. A request that a kill can
explain was under way when the replica died, or begun within the seconds until the front has noticed.

`--seconds 300` is the run whose result is kept.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import lanes
import psutil
import torch
from rich.console import Console
from safetensors.torch import save_file
from shipped import DIRECTORY, NAME
from transformers.utils import CONFIG_NAME

from zhub.cli.database_operations import bootstrap, system_url
from zhub.client import Client
from zhub.client.credentials import Credentials, read_credentials
from zhub.embedded.children import free_ports
from zhub.embedded.data_dir import DataDir, load_secrets
from zhub.registry.peft_config import CONFIG_FILE

LOAD, POLITE, FLOOD = 0.7, 3, 300
FLOOD_NICE = 3  # the client of the flood waits for a processor, where there are few, rather than zhub for it
TOKENS = 32
VERSIONS = 4  # of the expert, whose alias goes from one to the next
MOVE_EVERY_S = 10.0
NOTICED_WITHIN_S = 5.0
START_WITHIN_S = 600.0
BARS = {
    "failed requests that no kill explains": (0.0, "lower"),
    "streams cut without an error event": (0.0, "lower"),
    "p99 over p50 of the other tenants": (3.0, "lower"),
}


@dataclass
class Asked:
    """A request: when it came and ended, when its first token came, and how it ended."""

    at: float
    first_s: float | None = None
    took_s: float = 0.0
    end: str = "cut"  # or whole, event (an error event), refused (429), failed (any other status)
    why: str = ""


@dataclass
class Tenant:
    """A key, and what came of its requests."""

    client: httpx.AsyncClient
    asked: list[Asked] = field(default_factory=list)

    @classmethod
    def of(cls, url: str, key: str) -> Self:
        headers = {"authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None)
        return cls(httpx.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits))

    async def chat(self, number: int, model: str) -> Asked:
        asked = Asked(time.monotonic())
        self.asked.append(asked)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"What is {number} plus {number * 7 % 100}?"}],
            "max_tokens": TOKENS,
            "stream": True,
            "logit_bias": {"1": -100},  # the end of an answer: all are of one length
        }
        try:
            async with self.client.stream("POST", "/chat/completions", json=body) as response:
                if response.status_code != 200:
                    asked.end = "refused" if response.status_code == 429 else "failed"
                    asked.why = (await response.aread()).decode()[:300]
                else:
                    await self._read(response, asked)
        except httpx.HTTPError as exc:
            asked.why = repr(exc)
        asked.took_s = time.monotonic() - asked.at
        return asked

    async def _read(self, response: httpx.Response, asked: Asked) -> None:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                asked.end = "whole"
            elif line.startswith('data: {"error"'):
                asked.end, asked.why = "event", line
            elif asked.first_s is None and '"content": ""' not in line and line:
                asked.first_s = time.monotonic() - asked.at


class Stack:
    """`zhub up` of its own, with an expert of several versions and a key for each tenant."""

    def __init__(self, root: Path) -> None:
        self.data_dir = root / "data"
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}/v1"
        environment = os.environ | {"ZHUB_SERVING_REPLICAS": "2"}
        command = [sys.executable, "-m", "zhub.embedded", "--data-dir", str(self.data_dir), "--port", str(port)]
        self.process = subprocess.Popen(
            command, env=environment, stdout=(root / "log").open("wb"), stderr=subprocess.STDOUT
        )

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(90)

    def wait_ready(self) -> Client:
        ready = self.data_dir / "run" / "agent.ready"
        waited_for(lambda: ready.exists() and len(self.replicas()) == 2, "serving")
        credentials = self.credentials()
        client = Client(credentials.base_url.removesuffix("/v1"), credentials.api_key)
        waited_for(lambda: any(base.status == "ready" for base in client.base_models.list()), "the base")
        return client

    def credentials(self) -> Credentials:
        found = read_credentials(self.data_dir)
        assert found is not None, "the stack has written them before it is ready"
        return found

    def key(self, organization: str) -> str:
        url = system_url(None, self.data_dir)
        return bootstrap(url, load_secrets(DataDir(self.data_dir)).secret_key, organization, "main")

    def replicas(self) -> list[int]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "ServeReplica:zhub" in " ".join(child.cmdline()):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return found


def waited_for(question: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + START_WITHIN_S
    while not question():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what} did not come within {START_WITHIN_S:.0f} s")
        time.sleep(0.5)


def save_lora(directory: Path, seed: int) -> Path:
    """A LoRA of small random changes of the shipped base's MLPs, as PEFT saves it."""
    base = json.loads((DIRECTORY / CONFIG_NAME).read_text())
    hidden, inner, rank = base["hidden_size"], base["intermediate_size"], 4
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(base["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inner, generator=generator) * 0.01
        tensors[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator) * 0.01
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    config |= {"target_modules": ["down_proj"], "base_model_name_or_path": NAME}
    (directory / CONFIG_FILE).write_text(json.dumps(config))
    return directory


async def at_random_times(rate: float, until: float, send: Callable[[int], Awaitable[Any]], seed: int) -> None:
    """An open loop: ``send`` is called at Poisson arrivals, whatever has become of the calls before."""
    rng, number = random.Random(seed), 0
    under_way: set[asyncio.Task[Any]] = set()
    at = time.monotonic()
    while (at := at + rng.expovariate(rate)) < until:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        under_way.add(asyncio.create_task(send(number)))  # type: ignore[arg-type]  # they are coroutines
        number += 1
    await asyncio.gather(*under_way)


async def keep_asking(tenant: Tenant, model: str, count: int, until: float) -> None:
    """``count`` requests at a time, all the time; a refusal is followed after the second that it asks for."""

    async def one(number: int) -> None:
        while time.monotonic() < until:
            if (await tenant.chat(number, model)).end != "whole":
                await asyncio.sleep(1.0)

    await asyncio.gather(*(one(number) for number in range(count)))


def flooded(url: str, key: str, until: float) -> list[Asked]:
    """What came of the requests of the flood, in a process of its own."""

    async def ask() -> list[Asked]:
        tenant = Tenant.of(url, key)
        await keep_asking(tenant, NAME, FLOOD, until)
        await tenant.client.aclose()
        return tenant.asked

    os.nice(FLOOD_NICE)
    return asyncio.run(ask())


async def move_alias(owner: httpx.AsyncClient, version: int) -> None:
    moved = await owner.put("/experts/default.moving/aliases/prod", json={"version": f"default.moving@v{version}"})
    moved.raise_for_status()


async def harmed(stack: Stack, owner: httpx.AsyncClient, until: float, kills: list[float]) -> None:
    """Kill a replica a quarter and five eighths of the way, and move the alias all the time."""
    began = time.monotonic()
    due = [began + (until - began) * part for part in (0.25, 0.625)]
    version = 0
    while (now := time.monotonic()) < until - 1:
        if due and now >= due[0] and len(stack.replicas()) == 2:
            due.pop(0)
            os.kill(random.Random(7).choice(sorted(stack.replicas())), signal.SIGKILL)
            kills.append(time.monotonic())
        version += 1
        await move_alias(owner, version % VERSIONS + 1)
        await asyncio.sleep(min(MOVE_EVERY_S, (until - began) / 10))


async def measured(stack: Stack, owner: Client, seconds: float, flooder: Executor) -> dict[str, float]:
    polite = [Tenant.of(stack.url, stack.key(f"polite-{number}")) for number in range(POLITE - 1)]
    warm = Tenant.of(stack.url, stack.key("warm"))
    moving = Tenant.of(stack.url, stack.credentials().api_key)
    flood = stack.key("flood")
    await move_alias(moving.client, 1)
    await keep_asking(warm, NAME, 64, time.monotonic() + seconds / 10)
    began, before = time.monotonic(), len(warm.asked)
    await keep_asking(warm, NAME, 64, began + seconds / 5)
    capacity = (len(warm.asked) - before) / (time.monotonic() - began)
    share = capacity / (POLITE + 1)
    until, kills = time.monotonic() + seconds, list[float]()
    flooding = asyncio.get_running_loop().run_in_executor(flooder, flooded, stack.url, flood, until)
    await asyncio.gather(
        *(
            # One of them asks for the expert whose alias moves.
            at_random_times(LOAD * share, until, lambda n, t=tenant: t.chat(n, NAME), seed)  # type: ignore[misc]
            for seed, tenant in enumerate(polite)
        ),
        at_random_times(LOAD * share, until, lambda n: moving.chat(n, "default.moving@prod"), 99),
        harmed(stack, moving.client, until, kills),
    )
    others = [asked for tenant in (*polite, moving) for asked in tenant.asked]
    for tenant in (*polite, warm, moving):
        await tenant.client.aclose()
    return told(others, await flooding, kills, capacity)


def told(others: list[Asked], flood: list[Asked], kills: list[float], capacity: float) -> dict[str, float]:
    def by_a_kill(asked: Asked) -> bool:
        return any(asked.at - NOTICED_WITHIN_S <= kill <= asked.at + asked.took_s for kill in kills)

    everybody = others + flood
    failed = [asked for asked in everybody if asked.end not in ("whole", "refused")]
    unexplained = [asked for asked in failed if not by_a_kill(asked)]
    unexplained += [asked for asked in others if asked.end == "refused"]
    for asked in unexplained[:5]:
        print("not explained:", asked)
    print("how requests ended:", Counter(asked.end for asked in others), Counter(asked.end for asked in flood))
    took = [asked.took_s for asked in others if asked.end == "whole"]
    first = [asked.first_s for asked in others if asked.first_s is not None]
    return {
        "failed requests that no kill explains": len(unexplained),
        "streams cut without an error event": sum(asked.end == "cut" for asked in everybody),
        "p99 over p50 of the other tenants": quantile(took, 0.99) / statistics.median(took),
        "requests a second, capacity": capacity,
        "answers of the others": len(took),
        "answers of the flood": sum(asked.end == "whole" for asked in flood),
        "refusals of the flood": sum(asked.end == "refused" for asked in flood),
        "replicas killed": len(kills),
        "answers that broke off with them": len(failed) - sum(asked.end != "refused" for asked in unexplained),
        "p50 of an answer, s": statistics.median(took),
        "p50 of a first token, s": statistics.median(first),
        "p99 of a first token, s": quantile(first, 0.99),
    }


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load; the kept result has 300")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        stack = Stack(root)
        try:
            owner = stack.wait_ready()
            for number in range(VERSIONS):
                record = owner.imports.create("moving", save_lora(root / f"lora-{number}", number), base=NAME)
                owner.imports.wait_ended(record.id)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as flooder:
                results = asyncio.run(measured(stack, owner, arguments.seconds, flooder))
        finally:
            stack.close()
    Console().print(results)
    lanes.report(
        f"Chat of three tenants beside a flood, {arguments.seconds:.0f} s",
        {NAME: results},
        BARS,
        Path(__file__).parent / "results" / "serving_load.json",
    )


if __name__ == "__main__":
    main()
