"""The data directory of the embedded stack: what is in it, who may use it, whether it can be used at all."""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from zhub.errors import EmbeddedError

MIN_FREE_BYTES = 500_000_000


@dataclass(frozen=True)
class DataDir:
    """The layout. Only ``path`` and ``postgres`` are entered by any other user than ours."""

    path: Path

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def objects(self) -> Path:
        return self.path / "objects"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def record(self) -> Path:
        return self.run / "processes.json"

    @property
    def agent_ready(self) -> Path:
        return self.run / "agent.ready"

    @property
    def lock(self) -> Path:
        return self.path / "zhub.lock"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets.json"


@dataclass(frozen=True)
class Secrets:
    """Made once: the hashes of all API keys depend on ``secret_key``."""

    secret_key: str
    ray_token: str
    """Required by this Ray, which runs any code that it is sent."""

    @property
    def serving_token(self) -> str:
        """Required by serving; derived, so that data directories of earlier releases have one too."""
        return hmac.new(self.secret_key.encode(), b"serving", hashlib.sha256).hexdigest()


def open_data_dir(path: Path) -> DataDir:
    """Create the directories that are missing.

    Raises:
        EmbeddedError: the directory cannot be made or written, or its disk is full.
    """
    data_dir = DataDir(path.expanduser().absolute())
    try:
        # Where root makes it, the user that PostgreSQL runs as passes through to its own directory, and can list
        # nothing. Where it is there already, its mode is its maker's decision.
        data_dir.path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        for folder in (data_dir.objects, data_dir.cache, data_dir.logs, data_dir.run):
            folder.mkdir(mode=0o700, exist_ok=True)
        data_dir.lock.open("a").close()
    except FileExistsError as exc:
        raise EmbeddedError(f"{exc.filename}: expected a directory, found a file.") from exc
    except OSError as exc:
        raise EmbeddedError(
            f"{data_dir.path}: the data directory cannot be written ({exc.strerror}). Choose another with --data-dir."
        ) from exc
    check_free_bytes(data_dir.path, shutil.disk_usage(data_dir.path).free)
    return data_dir


def check_free_bytes(path: Path, free_bytes: int) -> None:
    """Raise EmbeddedError if so little is free that PostgreSQL would stop in the middle of work."""
    if free_bytes < MIN_FREE_BYTES:
        raise EmbeddedError(
            f"{path}: the disk is full: expected at least {MIN_FREE_BYTES // 1_000_000} MB free, "
            f"found {free_bytes // 1_000_000} MB. Free some space, or choose another disk with --data-dir."
        )


@contextmanager
def locked(data_dir: DataDir, *, port: int) -> Iterator[None]:
    """Hold the data directory for this process; the kernel releases it when the process ends, however it ends.

    Raises:
        EmbeddedError: another stack runs on it.
    """
    with data_dir.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise EmbeddedError(f"{data_dir.path} is in use: {_holder(data_dir)}.") from exc
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "port": port}))
        lock.flush()
        yield


def load_secrets(data_dir: DataDir) -> Secrets:
    """The secrets of this data directory, made at the first call.

    Raises:
        EmbeddedError: the file is there and cannot be read; new secrets would void every API key.
    """
    try:
        return Secrets(**json.loads(data_dir.secrets.read_text()))
    except FileNotFoundError:
        return _make_secrets(data_dir)
    except (ValueError, TypeError) as exc:
        raise EmbeddedError(f"{data_dir.secrets}: expected the secrets of this stack, found something else.") from exc


def _make_secrets(data_dir: DataDir) -> Secrets:
    made = Secrets(secret_key=secrets.token_urlsafe(32), ray_token=secrets.token_hex(32))
    unfinished = data_dir.secrets.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(made), file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(data_dir.secrets)
    return made


def _holder(data_dir: DataDir) -> str:
    try:
        holder = json.loads(data_dir.lock.read_text())
        return f"zhub already runs there as process {holder['pid']}, on port {holder['port']}"
    except (ValueError, KeyError, OSError):
        return "another process holds its lock"
