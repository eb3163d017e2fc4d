"""The cores of a node, divided between the computations that run on it.

Ray gives a worker one OpenMP thread unless cores are reserved for it, so a lone job would leave the other cores idle.
Each computation holds a locked file in a directory of the node while it runs, and counts those of the others before
each turn: alone it takes all cores, and gives them back as soon as another one has begun. The kernel frees the lock of
a process that dies.
"""

import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger("zhub.worker")

DIRECTORY = Path(tempfile.gettempdir()) / f"zhub-cores-{os.getuid()}"
NEW = ".new"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "quota period" in microseconds, or "max"


def sleep_while_waiting() -> None:
    """Have the OpenMP threads of this process sleep while they wait for each other. Call it before torch is imported.

    By default they spin. That saves microseconds on a core that nobody else wants; where another process has the core
    of one thread, the other spins until that is given back, and a job on two threads takes many times as long as on
    one. Who runs the process may say otherwise.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def usable_cores() -> int:
    """The cores that this process may run on, within its container's quota; at least one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, cores if quota == "max" else min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


@contextmanager
def sharing_cores(name: str, directory: Path = DIRECTORY) -> Iterator[Callable[[], int]]:
    """Take part in the division for as long as the context lasts.

    Args:
        name: of the computation, unique on the node.
        directory: the same for all that compute on the node.

    Yields:
        A function that returns how many threads it may use now; 1, where the directory cannot be had or is another
        user's: that is no reason not to compute.
    """
    with ExitStack() as held:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory.lstat().st_uid != os.getuid():
                raise PermissionError(f"{directory} belongs to another user")
            _hold(directory / name, held)
        except OSError as exc:
            log.warning("the cores of this node are not shared: %s", exc, extra={"action": "cores_not_shared"})
            yield lambda: 1
            return
        yield lambda: max(1, usable_cores() // (1 + _others(directory, name)))


def _hold(path: Path, held: ExitStack) -> None:
    new = path.with_name(f"{path.name}{NEW}")
    own = held.enter_context(new.open("w"))
    fcntl.flock(own, fcntl.LOCK_EX)
    new.rename(path)  # only now, so that what bears a name is locked, or its process is dead
    held.callback(path.unlink, missing_ok=True)


def _others(directory: Path, name: str) -> int:
    try:
        return sum(path.name != name and path.suffix != NEW and _is_held(path) for path in directory.iterdir())
    except OSError:  # somebody has cleaned up
        return 0


def _is_held(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it has just ended
        return False
    path.unlink(missing_ok=True)
    return False
