"""``zhub db`` and what else of ``zhub queue`` reads the database itself: errors for people, and exit codes."""

from pathlib import Path

import pytest

from zhub.cli import main

NOBODY = "postgresql://zhub@127.0.0.1:1/zhub"

COMMANDS = [
    ("db", "upgrade", "--url", NOBODY),
    ("db", "logins", "--url", NOBODY, "--api-password", "a", "--system-password", "b"),
    ("db", "bootstrap", "--organization", "acme", "--url", NOBODY, "--secret-key", "x" * 32),
    ("db", "quota", "acme", "--url", NOBODY),
    ("queue", "doctor", "--url", NOBODY),
    ("queue", "redrive", "--url", NOBODY, "--within-hours", "1.5"),
]


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.mark.parametrize("arguments", COMMANDS, ids=[" ".join(arguments[:2]) for arguments in COMMANDS])
def test_a_database_that_is_away_is_an_error_that_says_so(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.lower().startswith("error: the database does not answer: ")


def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("db", "quota", "acme", "--url", "nonsense") == 1
    assert "error: ZHUB_DATABASE_URL: expected postgresql://…" in capsys.readouterr().err


def test_a_short_secret_key_is_refused_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("db", "bootstrap", "--organization", "acme", "--url", NOBODY, "--secret-key", "short") == 1
    assert "ZHUB_SECRET_KEY must have at least 32 characters" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("queue", "doctor"), ("queue", "redrive"), ("db", "quota", "acme")])
def test_without_an_address_the_database_of_the_local_zhub_is_looked_for(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZHUB_DATABASE_URL", raising=False)
    assert run(*command, "--data-dir", str(tmp_path)) == 1
    assert f"No database runs on {tmp_path}. Start it with `zhub up`" in capsys.readouterr().err
