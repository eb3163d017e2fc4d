"""Real processes come to harm while clients enqueue, cancel, pause and resume: every job ends, and none ends twice.

``ZHUB_CHAOS_MINUTES`` is how long faults are mixed, ``ZHUB_CHAOS_SEED`` which come in the first round: that of each is
printed. A seed repeats what is done, and when; what the processes make of it is theirs.
"""

import itertools
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from chaos_rig import LEASE_S, Rig
from faults import FAULTS, GROUPS

MINUTES = float(os.environ.get("ZHUB_CHAOS_MINUTES", 0))
SEED = int(os.environ.get("ZHUB_CHAOS_SEED", 1 if not MINUTES else random.SystemRandom().randrange(10**6)))
CLIENTS = ("client-0", "client-1")
MAX_FAULTS_AT_A_TIME = 4


@contextmanager
def working_clients(rig: Rig, seed: int, *, may_fail: bool = False) -> Iterator[None]:
    """Clients that are at work throughout; afterwards everything ends, and what must hold is checked."""
    for name in CLIENTS:
        rig.start_client(name, f"{name} of round {seed}")
    rig.agent_at_work()
    yield
    rig.settle()
    rig.check(may_fail=may_fail)


def wait_for_a_new_job(rig: Rig) -> None:
    """Until a job that is enqueued from now on has made a version."""
    (now,) = rig.ask("SELECT now() AS now")
    made = "SELECT 1 FROM jobs WHERE kind = 'train' AND state = 'succeeded' AND created_at > :now LIMIT 1"
    rig.until("a new job to succeed", lambda: rig.ask(made, now=now.now))


@pytest.mark.parametrize("group", GROUPS)
def test_every_job_ends_as_it_should_despite(rig: Rig, group: str) -> None:
    rng = random.Random(SEED)
    print(f"ZHUB_CHAOS_SEED={SEED}: {group}", flush=True)
    with working_clients(rig, SEED):
        for fault in GROUPS[group]:
            with fault(rig, rng) as done:
                rig.until(f"{fault.__name__} to do its harm", done)
            wait_for_a_new_job(rig)


def test_every_job_ends_as_it_should_whatever_comes_together(rig: Rig) -> None:
    give_up = time.monotonic() + 60 * MINUTES
    for seed in itertools.count(SEED):
        mix(rig, seed)
        if time.monotonic() >= give_up:
            break


def mix(rig: Rig, seed: int) -> None:
    """One round of several faults that overlap."""
    rng = random.Random(seed)
    names = rng.sample(sorted(FAULTS), rng.randint(2, MAX_FAULTS_AT_A_TIME))
    print(f"ZHUB_CHAOS_SEED={seed}: {', '.join(names)}", flush=True)
    with working_clients(rig, seed, may_fail=True):
        with ExitStack() as harm:
            for name in names:
                harm.enter_context(FAULTS[name](rig, rng))
                rig.live(rng.uniform(0.0, 2.0))
            rig.live(rng.uniform(0.0, 3 * LEASE_S))
        wait_for_a_new_job(rig)
