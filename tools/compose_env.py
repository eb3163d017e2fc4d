"""Write ``.env`` for docker-compose.yml, with random passwords. What the file already says is kept."""

import argparse
import os
import secrets
from collections.abc import Callable
from pathlib import Path

# Hexadecimal, because most of them become part of a URL.
SECRETS: dict[str, Callable[[], str]] = {
    "POSTGRES_PASSWORD": lambda: secrets.token_hex(24),
    "ZHUB_API_LOGIN_PASSWORD": lambda: secrets.token_hex(24),
    "ZHUB_SYSTEM_LOGIN_PASSWORD": lambda: secrets.token_hex(24),
    "REDIS_PASSWORD": lambda: secrets.token_hex(24),
    "S3_ACCESS_KEY": lambda: secrets.token_hex(10).upper(),
    "S3_SECRET_KEY": lambda: secrets.token_hex(24),
    "RAY_AUTH_TOKEN": lambda: secrets.token_hex(32),
    "ZHUB_SERVING_TOKEN": lambda: secrets.token_hex(32),
    "ZHUB_SECRET_KEY": lambda: secrets.token_hex(32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=Path(__file__).parent.parent / ".env")
    path: Path = parser.parse_args().file
    present = path.read_text() if path.exists() else ""
    missing = [name for name in SECRETS if not any(line.startswith(f"{name}=") for line in present.splitlines())]
    if not missing:
        print(f"{path}: nothing is missing.")
        return
    if present and not present.endswith("\n"):
        present += "\n"
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(present + "".join(f"{name}={SECRETS[name]()}\n" for name in missing))
    unfinished.replace(path)
    print(f"{path}: added {', '.join(missing)}.")


if __name__ == "__main__":
    main()
