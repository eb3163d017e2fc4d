"""What tests of releases share."""

from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.queue import invariants


def findings(engine: Engine) -> list[invariants.Finding]:
    """What breaks the rules about aliases and releases."""
    with system_session(engine) as session:
        return [one for one in invariants.examine(session) if "alias" in one.rule or "release" in one.rule]
