"""The ``zhub`` command. It finds the server, calls ``zhub.client``, and prints the answer.

Data goes to standard output, progress and errors to standard error. Nothing here imports the database, the object
store, Ray or torch: a command that needs the database imports it when it runs, and ``zhub up`` starts a process.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import zhub
from zhub.cli import (
    audit,
    base_models,
    chat,
    completions,
    costs,
    database,
    datasets,
    demo,
    doctor,
    evaluations,
    experts,
    feedback,
    graders,
    grants,
    invitations,
    jobs,
    keys,
    login,
    members,
    migrate,
    organizations,
    projects,
    promotions,
    queue,
    refine,
    releases,
    schedules,
    service_accounts,
    storage,
    submit,
    up,
    usage,
    webhooks,
    whoami,
)
from zhub.cli.exits import exit_code
from zhub.cli.output import show_error
from zhub.errors import ZhubError

HELP = (
    "Train, version and serve experts on a frozen base model.\n\n"
    "`zhub up` starts everything on this machine, `zhub demo` shows the whole path. The other commands talk to the "
    "zhub of --data-dir, or to a remote one where ZHUB_API_URL and ZHUB_API_KEY are set.\n\n"
    "Exit codes: 0 ok, 1 error, 2 usage, 3 key refused, 4 not found, 5 conflict, 7 job failed, 130 interrupted."
)

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(base_models.app, name="base-models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(jobs.app, name="jobs")
app.add_typer(queue.app, name="queue")
app.add_typer(experts.app, name="experts")
app.add_typer(evaluations.app, name="evaluations")
app.add_typer(completions.app, name="completions")
app.add_typer(feedback.app, name="feedback")
app.add_typer(graders.app, name="graders")
app.add_typer(grants.app, name="grants")
app.add_typer(promotions.app, name="promotions")
app.add_typer(releases.app, name="releases")
app.add_typer(schedules.app, name="schedules")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(organizations.app, name="organizations")
app.add_typer(projects.app, name="projects")
app.add_typer(members.app, name="members")
app.add_typer(invitations.app, name="invitations")
app.add_typer(keys.app, name="keys")
app.add_typer(service_accounts.app, name="service-accounts")
app.add_typer(database.app, name="db")
app.add_typer(storage.app, name="storage")
schedules.app.command("refine")(refine.refine)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("migrate")(migrate.migrate)
app.command("submit")(submit.submit)
app.command("chat")(chat.chat)
app.command("usage")(usage.usage)
app.command("costs")(costs.costs)
app.command("audit")(audit.audit)
app.command("login")(login.login)
app.command("logout")(login.logout)
app.command("whoami")(whoami.whoami)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; errors of ours become one line and an exit code."""
    try:
        app(argv, prog_name="zhub")
    except ZhubError as exc:
        if os.environ.get("ZHUB_DEBUG"):
            raise
        show_error(exc)
        sys.exit(exit_code(exc))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"zhub {zhub.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ZHUB_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    if debug:
        os.environ["ZHUB_DEBUG"] = "1"
