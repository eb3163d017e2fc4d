"""The real agent, whose workers are processes: ``agent_program.py <folder of the workers> <process to end with>``."""

import signal
import sys
import threading
from pathlib import Path

from process_launcher import ProcessLauncher

from zhub.database.sessions import make_engine
from zhub.process.config import Settings
from zhub.process.logs import configure_logging
from zhub.process.wakeup import open_wakeup
from zhub_workers.agent.loop import Agent


def main() -> None:
    folder, owner = Path(sys.argv[1]), int(sys.argv[2])
    configure_logging("text")
    settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda _signal, _frame: stopping.set())
    agent = Agent(settings, make_engine(settings.database_url, pool_size=2), ProcessLauncher(folder, owner))
    (folder / "agent").write_text(str(agent.id))
    agent.run(open_wakeup(settings.redis_url), stopping)


if __name__ == "__main__":
    main()
