"""The agent process, one for each Ray cluster. Start it with ``python -m zhub_workers.agent``.

SIGTERM ends it alone, and the attempts go on in their workers. SIGINT says that its cluster stops with it: the attempts
leave their workers first, with checkpoints, and their jobs are queued again.
"""

import sys
import threading
from functools import partial
from pathlib import Path

from prometheus_client import REGISTRY

from zhub.database.sessions import make_engine
from zhub.errors import InvalidRequestError, UnavailableError
from zhub.process import tracing
from zhub.process.config import Settings
from zhub.process.logs import configure_logging
from zhub.process.metrics import serve_metrics
from zhub.process.pulse import BEAT_WITHIN_S, Pulse
from zhub.process.shutdown import stop_event
from zhub.process.threads import start_vital
from zhub.process.wakeup import open_wakeup
from zhub_workers.agent.loop import Agent
from zhub_workers.agent.metrics import SERVING_UP
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.cluster.flavour import flavour_of
from zhub_workers.cluster.gpu_shares import gpu_shares
from zhub_workers.cluster.ray_cluster import CONNECT_TRY_WITHIN_S, connect, gpus_in_cluster
from zhub_workers.serving.app import serving_of
from zhub_workers.serving.keeper import keep_serving


def main() -> None:
    settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    configure_logging(settings.log_format)
    tracing.start_tracing("zhub-agent")
    try:
        if settings.serve:
            settings.require_serving_token()
        serve_metrics(settings)
    except (InvalidRequestError, UnavailableError) as exc:
        sys.exit(str(exc))
    pulse = Pulse(settings.alive_file)
    try:
        connect(settings.ray_address, trying=partial(pulse.beat, "agent", within_s=CONNECT_TRY_WITHIN_S))
    except UnavailableError as exc:
        sys.exit(str(exc))
    # After connect, because Ray installs signal handlers of its own there.
    interrupted = threading.Event()
    stopping = stop_event(interrupted)
    gpus = 0 if settings.device == "cpu" else gpus_in_cluster()
    shares = gpu_shares(gpus, settings.slots, settings.worker_gpus)
    launcher = RayLauncher(
        flavour_of(settings, shares),
        slots=settings.slots,
        jobs_per_worker=settings.jobs_per_worker,
        device=settings.device,
        log_format=settings.log_format,
    )
    engine = make_engine(settings.database_url, pool_size=2, pre_ping=False)
    agent = Agent(settings, engine, launcher, partial(pulse.beat, "agent", within_s=BEAT_WITHIN_S))
    if settings.serve:
        REGISTRY.register(SERVING_UP)
        serving = serving_of(settings, gpus=shares.replica)
        keep = partial(
            keep_serving,
            serving,
            note=partial(note_serving, settings.ready_file),
            stopping=stopping,
            beat=lambda within_s: pulse.beat("serving", within_s=within_s),
        )
        start_vital(keep, name="serving", stopping=stopping)
    agent.run(open_wakeup(settings.redis_url), stopping, cluster_stops=interrupted)


def note_serving(ready_file: Path | None, answers: bool) -> None:
    """Tell who looks at the metric, or for the file, whether serving answers."""
    SERVING_UP.set(answers)
    if ready_file is None:
        return
    if answers:
        ready_file.write_text("serving\n")
    else:
        ready_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
