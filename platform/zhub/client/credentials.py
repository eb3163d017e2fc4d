"""Where a zhub is and the key to it: from the environment, from a login, or from the local stack's data directory."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import platformdirs

from zhub.errors import AuthenticationError, UnavailableError

CREDENTIALS_FILE = "credentials.json"
# In the file the address ends with it, so that the file's two entries are arguments of the openai client's constructor.
DIALECT = "/v1"


@dataclass(frozen=True)
class Credentials:
    """An address, without the dialect's ``/v1``, and a key."""

    base_url: str
    api_key: str


def default_data_dir() -> Path:
    return Path(platformdirs.user_data_dir("zhub"))


def login_dir(environ: Mapping[str, str]) -> Path:
    """Where `zhub login` keeps what it got."""
    return Path(environ.get("ZHUB_CONFIG_DIR") or platformdirs.user_config_dir("zhub"))


def find_credentials(data_dir: Path | None, environ: Mapping[str, str]) -> Credentials:
    """``ZHUB_API_URL`` and ``ZHUB_API_KEY`` where they are set, else those of a login, else of the local zhub.

    Args:
        data_dir: of the local zhub; one that is given wins over a login.

    Raises:
        AuthenticationError: an address without a key.
        UnavailableError: no zhub was ever started on this data directory.
    """
    url, key = environ.get("ZHUB_API_URL"), environ.get("ZHUB_API_KEY")
    if url and not key:
        raise AuthenticationError(f"ZHUB_API_URL is {url}, and there is no key for it. Set ZHUB_API_KEY.")
    if url and key:
        return Credentials(url.rstrip("/").removesuffix(DIALECT), key)
    credentials = read_credentials(login_dir(environ)) if data_dir is None else None
    data_dir = data_dir or default_data_dir()
    credentials = credentials or read_credentials(data_dir)
    if credentials is None:
        raise UnavailableError(
            f"No zhub was started on {data_dir} yet. Start one with `zhub up`, give another directory with --data-dir, "
            "or set ZHUB_API_URL and ZHUB_API_KEY to use a remote one."
        )
    return Credentials(credentials.base_url, key or credentials.api_key)


def api_address(data_dir: Path | None, environ: Mapping[str, str]) -> str:
    """``ZHUB_API_URL`` where it is set, else the address of the local zhub: for requests that need no key.

    Raises:
        UnavailableError: no zhub was ever started on this data directory.
    """
    if url := environ.get("ZHUB_API_URL"):
        return url.rstrip("/").removesuffix(DIALECT)
    return find_credentials(data_dir, environ).base_url


def read_credentials(data_dir: Path) -> Credentials | None:
    """What ``zhub up`` or ``zhub login`` wrote there, or None.

    Raises:
        AuthenticationError: the file is there and unreadable.
    """
    path = data_dir / CREDENTIALS_FILE
    try:
        credentials = Credentials(**json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as exc:
        raise AuthenticationError(
            f"{path} cannot be read ({type(exc).__name__}). Remove it, and run `zhub up` or `zhub login` again."
        ) from exc
    return replace(credentials, base_url=credentials.base_url.removesuffix(DIALECT))


def write_credentials(data_dir: Path, credentials: Credentials) -> None:
    """Put the file in place whole, readable by its owner alone. The directory is there."""
    unfinished = data_dir / f"{CREDENTIALS_FILE}.new"
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(replace(credentials, base_url=credentials.base_url + DIALECT)), file, indent=2)
        file.write("\n")
    unfinished.replace(data_dir / CREDENTIALS_FILE)


def forget_login(directory: Path) -> None:
    (directory / CREDENTIALS_FILE).unlink(missing_ok=True)
