"""The relay of webhooks: a thread of the scheduler that sends due deliveries. After a crash they are sent again.

Each scheduler has a relay. They need no leader, because each delivery is claimed by one of them. A relay mostly waits
for slow receivers, so it waits for all of them concurrently on its own event loop, and queries the database in threads.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.errors import UnavailableError
from zhub.process.pulse import Beat, no_beat
from zhub.webhooks import deliveries
from zhub.webhooks.deliveries import Due
from zhub.webhooks.safe_http import Outbound, Outcome

MAX_IN_FLIGHT = 64  # requests of this process; the next two limits are also per process
MAX_IN_FLIGHT_OF_ORG = 8  # so that an organisation whose receivers all hang does not block the others
THREADS = 32  # a name look-up occupies a thread, also after its deadline
POLL_S = 1.0
FORGET_EVERY_S = 3600.0

log = logging.getLogger("zhub.relay")


def relay(
    engine: Engine,
    outbound: Outbound,
    secret_key: str,
    stopping: threading.Event,
    beat: Beat = no_beat,
) -> None:
    """Send due deliveries until ``stopping`` is set: to many endpoints at once, to each one delivery at a time.

    ``beat`` is called in every round; each lasts as long as its statements do.
    """
    asyncio.run(_relay(engine, outbound, secret_key, stopping, beat))


async def _relay(engine: Engine, outbound: Outbound, secret_key: str, stopping: threading.Event, beat: Beat) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="relay"))
    in_flight: dict[asyncio.Task[None], Due] = {}
    forgot_at = float("-inf")
    while not stopping.is_set():
        beat()
        try:
            if time.monotonic() - forgot_at >= FORGET_EVERY_S:
                await asyncio.to_thread(_forget, engine)
                forgot_at = time.monotonic()
            for due in await asyncio.to_thread(_claim, engine, list(in_flight.values())):
                in_flight[asyncio.create_task(_deliver(engine, outbound, secret_key, due))] = due
        except UnavailableError as exc:
            log.warning("%s", exc, extra={"action": "database_away"})
        except Exception:  # the next round may succeed, and the webhooks of all projects depend on this loop
            log.exception("the relay failed", extra={"action": "relay_failed"})
        if not in_flight:
            await asyncio.sleep(POLL_S)
            continue
        done, _ = await asyncio.wait(in_flight, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            due = in_flight.pop(task)
            if failure := task.exception():
                # The claim expires, and the delivery is sent again.
                extra = {"action": "webhook_unrecorded", "org_id": due.org_id}
                log.error("webhook %s was not recorded: %s", due.id, failure, exc_info=failure, extra=extra)


def _claim(engine: Engine, in_flight: list[Due]) -> list[Due]:
    room = MAX_IN_FLIGHT - len(in_flight)
    if room <= 0:
        return []
    with system_session(engine) as session:
        return deliveries.claim(session, in_flight=in_flight, room=room, room_of_org=MAX_IN_FLIGHT_OF_ORG)


async def _deliver(engine: Engine, outbound: Outbound, secret_key: str, due: Due) -> None:
    headers = due.headers(secret_key, deliveries.now_utc())
    outcome = await outbound.post(due.url, headers, due.body().encode())
    ended = outcome.status_code or outcome.error
    extra = {"action": "webhook_sent", "org_id": due.org_id, "status_code": outcome.status_code}
    log.info("webhook %s to endpoint %s: %s", due.id, due.endpoint_id, ended, extra=extra)
    await asyncio.to_thread(_record, engine, due, outcome)


def _record(engine: Engine, due: Due, outcome: Outcome) -> None:
    with system_session(engine) as session:
        deliveries.record(session, due, outcome)


def _forget(engine: Engine) -> None:
    with system_session(engine) as session:
        deliveries.forget(session)
