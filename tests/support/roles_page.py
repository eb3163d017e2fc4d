"""The page that says what each role may do: written from the table of scopes and the routes' declarations."""

from declared_rights import declared_routes
from fastapi import FastAPI

from zhub.tenancy.scopes import TABLE, Area, Role, scopes_of

BEGIN, END = "<!-- the tables begin -->\n", "<!-- the tables end -->\n"


def tables(app: FastAPI) -> str:
    """Two tables in Markdown: scopes by role, and routes by scope."""
    roles = list(Role)[::-1]
    lines = ["| scope | to | " + " | ".join(role.word for role in roles) + " |", "|---|---" + "|---" * len(roles) + "|"]
    for scope in TABLE:
        cells = ["yes" if scope.name in scopes_of(role, None) else "" for role in roles]
        meaning = scope.meaning if scope.area != Area.PLATFORM else f"{scope.meaning}; an operator's"
        lines.append(f"| `{scope.name}` | {meaning} | " + " | ".join(cells) + " |")
    lines += ["", "| route | needs |", "|---|---|"]
    for route in sorted(declared_routes(app), key=lambda route: (route.path, route.method)):
        if route.scopes is not None:
            needed = ", ".join(f"`{scope}`" for scope in route.scopes) or "a key"
            lines.append(f"| `{route.method} {route.path}` | {needed} |")
    return "\n".join(lines) + "\n"


def with_tables(page: str, app: FastAPI) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + tables(app) + "\n" + END + rest.split(END)[1]
