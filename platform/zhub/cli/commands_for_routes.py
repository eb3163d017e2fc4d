"""Which command does what a route of the API does: the API's errors name routes, and the command line commands."""

import re

COMMANDS = {
    "DELETE /v1/experts/{expert}/aliases/{alias}": ("zhub experts demote",),
    "DELETE /v1/releases/{release}/aliases/{alias}": ("zhub releases demote",),
    "DELETE /v1/releases/{release}/aliases/{alias}/shadow": ("zhub releases shadow",),
    "DELETE /v1/releases/{version}": ("zhub releases rm",),
    "DELETE /v1/schedules/{schedule_id}": ("zhub schedules rm",),
    "GET /v1/catalogue": ("zhub experts search",),
    "GET /v1/base_models": ("zhub base-models ls",),
    "GET /v1/experts": ("zhub experts ls",),
    "GET /v1/models": ("zhub experts ls", "zhub base-models ls"),
    "GET /v1/releases": ("zhub releases ls",),
    "GET /v1/organization/costs": ("zhub costs",),
    "GET /v1/organization/usage/completions": ("zhub usage",),
    "GET /v1/protected_aliases": ("zhub experts protected",),
    "POST /v1/alias_requests/{request_id}/decision": ("zhub experts approve",),
    "POST /v1/access_requests": ("zhub grants ask",),
    "POST /v1/base_models": ("zhub base-models add",),
    "POST /v1/classification_datasets": ("zhub releases classifier",),
    "POST /v1/files": ("zhub datasets push",),
    "POST /v1/fine_tuning/alpha/graders/run": ("zhub graders run",),
    "POST /v1/organization/invites": ("zhub invitations send",),
    "POST /v1/stored_completions/settings": ("zhub completions enable",),
    "POST /v1/promotions/{promotion_id}/cancel": ("zhub promotions cancel",),
    "PUT /v1/experts/{expert}/aliases/{alias}": ("zhub experts promote",),
    "PUT /v1/releases/{release}/aliases/{alias}": ("zhub releases promote",),
    "PUT /v1/releases/{release}/aliases/{alias}/shadow": ("zhub releases shadow",),
}
ROUTE = re.compile(r"`?\b((?:GET|POST|PUT|PATCH|DELETE) /v1/[\w/{}-]+)`?")


def with_commands(text: str) -> str:
    """The text with each route replaced by its command. A route that no command is for stays."""
    return ROUTE.sub(_commands, text)


def _commands(route: re.Match[str]) -> str:
    return " or ".join(f"`{command}`" for command in COMMANDS.get(route[1], ())) or route[0]
