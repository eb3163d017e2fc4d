"""What each route needs, as the route declares it."""

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from zhub_api.rights import Needs, NeedsInProject


@dataclass(frozen=True)
class DeclaredRoute:
    """A route with the scopes that it needs; None: it declares nothing."""

    method: str
    path: str
    scopes: tuple[str, ...] | None
    in_project: bool
    """Whether it needs them in the project that its path names."""


def declared_routes(app: FastAPI) -> Iterator[DeclaredRoute]:
    """Every route of the interface's document."""
    documented = app.openapi()["paths"]
    for route in iter_route_contexts(app.routes):
        path = str(route.path).replace(":path}", "}")
        for method in sorted(route.methods or ()):
            if method.lower() not in documented.get(path, {}):
                continue
            needs = [of.dependency for of in route.dependencies if isinstance(of.dependency, Needs | NeedsInProject)]
            scopes = tuple(scope for need in needs for scope in need.scopes)
            in_project = any(isinstance(need, NeedsInProject) for need in needs)
            yield DeclaredRoute(method, path, scopes if needs else None, in_project)
