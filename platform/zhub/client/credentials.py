"""Where a zhub is and the key to it: from the environment, or from the data directory of the local stack."""

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


def find_credentials(data_dir: Path, environ: Mapping[str, str]) -> Credentials:
    """``ZHUB_API_URL`` and ``ZHUB_API_KEY`` where they are set, else what ``zhub up`` wrote into ``data_dir``.

    Raises:
        AuthenticationError: an address without a key.
        UnavailableError: no zhub was ever started on this data directory.
    """
    url, key = environ.get("ZHUB_API_URL"), environ.get("ZHUB_API_KEY")
    if url and not key:
        raise AuthenticationError(f"ZHUB_API_URL is {url}, and there is no key for it. Set ZHUB_API_KEY.")
    if url and key:
        return Credentials(url.rstrip("/").removesuffix(DIALECT), key)
    credentials = read_credentials(data_dir)
    if credentials is None:
        raise UnavailableError(
            f"No zhub was started on {data_dir} yet. Start one with `zhub up`, give another directory with --data-dir, "
            "or set ZHUB_API_URL and ZHUB_API_KEY to use a remote one."
        )
    return Credentials(credentials.base_url, key or credentials.api_key)


def read_credentials(data_dir: Path) -> Credentials | None:
    """What ``zhub up`` wrote, or None where it never ran.

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
            f"{path} cannot be read ({type(exc).__name__}). Remove it and start `zhub up` again: it makes a new key."
        ) from exc
    return replace(credentials, base_url=credentials.base_url.removesuffix(DIALECT))


def write_credentials(data_dir: Path, credentials: Credentials) -> None:
    """Put the file in place whole, readable by its owner alone."""
    unfinished = data_dir / f"{CREDENTIALS_FILE}.new"
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(replace(credentials, base_url=credentials.base_url + DIALECT)), file, indent=2)
        file.write("\n")
    unfinished.replace(data_dir / CREDENTIALS_FILE)
