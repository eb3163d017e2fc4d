"""What can go wrong, each as a context: entered it harms, left it repairs.

In between it answers whether the harm has been done: whether others have taken over, or an answer was lost.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from chaos_rig import Rig

Done = Callable[[], bool]
Fault = Callable[[Rig, random.Random], AbstractContextManager[Done]]


def _at_once() -> bool:
    return True


@contextmanager
def agent_killed(rig: Rig, rng: random.Random) -> Iterator[Done]:
    rig.restart(rng.choice(rig.agents))
    yield _at_once


@contextmanager
def leader_killed(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    rig.restart(rig.leader())
    yield _at_once


@contextmanager
def client_killed(rig: Rig, rng: random.Random) -> Iterator[Done]:
    rig.restart(rng.choice([name for name in rig.parts if name.startswith("client")]))
    yield _at_once


@contextmanager
def worker_killed(rig: Rig, rng: random.Random) -> Iterator[Done]:
    workers = sorted(rig.workers())
    if workers:
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int(rng.choice(workers).with_suffix(".pid").read_text()), signal.SIGKILL)
    yield _at_once


@contextmanager
def agent_frozen(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    """For longer than its leases; then it goes on with attempts whose jobs others have ended."""
    name = rig.agent_at_work()
    rig.parts[name].freeze()
    yield rig.taken_over(name)
    rig.parts[name].thaw()


@contextmanager
def leader_frozen(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    name = rig.leader()
    rig.parts[name].freeze()
    yield lambda: rig.leader() != name
    rig.parts[name].thaw()


@contextmanager
def agent_cut_off(rig: Rig, rng: random.Random) -> Iterator[Done]:
    """In the moment in which it publishes; that arrives when somebody else is doing the job again."""
    name = rng.choice(rig.agents)
    proxy = rig.proxies[name]
    proxy.stall(before=b"succeeded")
    yield lambda: proxy.held is not None and rig.done_again(name, proxy.held)
    proxy.mend()


@contextmanager
def leader_cut_off(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    name = rig.leader()
    rig.proxies[name].stall()
    yield lambda: rig.leader() != name
    rig.proxies[name].mend()


@contextmanager
def postgres_restarted(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    rig.restart_postgres()
    yield _at_once


@contextmanager
def backends_terminated(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    rig.terminate_backends()
    yield _at_once


@contextmanager
def commit_replies_lost(rig: Rig, rng: random.Random) -> Iterator[Done]:
    """Claims, heartbeats, publications and requested changes take effect, but their caller receives no answer."""
    proxies = list(rig.proxies.values())
    before = [proxy.commits_swallowed for proxy in proxies]
    for proxy in proxies:
        proxy.swallow_commits(after=rng.randrange(5), every=rng.randint(5, 15))
    yield lambda: all(proxy.commits_swallowed >= count + 2 for proxy, count in zip(proxies, before, strict=True))
    for proxy in proxies:
        proxy.mend()


@contextmanager
def database_slow(rig: Rig, rng: random.Random) -> Iterator[Done]:
    for proxy in rig.proxies.values():
        proxy.delay(rng.uniform(0.005, 0.05))
    yield _at_once
    for proxy in rig.proxies.values():
        proxy.mend()


@contextmanager
def redis_killed(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    rig.redis.kill()
    yield _at_once
    rig.start_redis()


@contextmanager
def redis_flushed(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    rig.tell_redis("FLUSHALL")
    yield _at_once


@contextmanager
def store_away(rig: Rig, _rng: random.Random) -> Iterator[Done]:
    refused = rig.store_proxy.refused
    rig.store_proxy.cut()
    yield lambda: rig.store_proxy.refused > refused
    rig.store_proxy.mend()


@contextmanager
def store_slow(rig: Rig, rng: random.Random) -> Iterator[Done]:
    rig.store_proxy.delay(rng.uniform(0.1, 0.5))
    yield _at_once
    rig.store_proxy.mend()


GROUPS: dict[str, tuple[Fault, ...]] = {
    "processes that are killed": (agent_killed, leader_killed, client_killed, worker_killed),
    "an agent that comes back": (agent_frozen, agent_cut_off),
    "a leader that comes back": (leader_frozen, leader_cut_off),
    "a database that fails": (postgres_restarted, backends_terminated, commit_replies_lost, database_slow),
    "Redis and the store failing": (redis_killed, redis_flushed, store_away, store_slow),
}
FAULTS: dict[str, Fault] = {fault.__name__: fault for group in GROUPS.values() for fault in group}
