"""Runs migrations against one connection that ``zhub.database.migrate`` prepared: locked, with timeouts, as the owner."""

from alembic import context

from zhub.models import Base

config = context.config


def run() -> None:
    connection = config.attributes.get("connection")
    if connection is None:
        raise SystemExit(
            "Run migrations with `zhub db upgrade` (or `make migrate`): it takes the lock and the timeouts."
        )
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
